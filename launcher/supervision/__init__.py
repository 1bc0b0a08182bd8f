"""From the start of a job to its end: watched, started again, put back into the queue."""
