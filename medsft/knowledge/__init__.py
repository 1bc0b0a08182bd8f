"""Knowledge graph -> question-answer pairs to train on."""
