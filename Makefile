# Everything runs in .venv; `make demo` and `make test` install what they need first.

VENV := .venv
# The first of these that is Python 3.11 or 3.12 makes the environment; PYTHON=... on the command line wins.
PYTHON := $(firstword $(foreach name,python3 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; (3, 11) <= sys.version_info < (3, 13) and print("$(name)")' 2>/dev/null)))
TORCH := torch==2.13.0
RUNS := demo_output
# Test files that run at once. Those of hosts and faults have the machine to themselves, for they go by the clock.
WORKERS := 2
INSTALLED := $(VENV)/.installed
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.DEFAULT_GOAL := help
.PHONY: help install demo recall test faults cluster-faults tensorboard clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## Make .venv with the tested versions (once).

$(INSTALLED): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3.12 install" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt $(TORCH)
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[test]'
	touch $@

demo: $(INSTALLED) ## Train a toy ChatGLM on a small knowledge base and compare its answers (5 minutes).
	$(IN_VENV) examples/demo.sh

recall: $(INSTALLED) ## Train a toy and count learnt facts asked in unseen words, and unseen entities (nightly).
	$(IN_VENV) examples/recall.sh

test: $(INSTALLED) ## Check style and run all tests.
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --ignore=tests/cluster --ignore=tests/faults
	$(VENV)/bin/python -m pytest tests/faults tests/cluster

faults: $(INSTALLED) ## Injure trainings in every way the fault matrix names (25 minutes; QUICK=1: 3; ROWS="4 7").
	$(VENV)/bin/python tests/faults $(if $(QUICK),--quick) $(ROWS)

cluster-faults: $(INSTALLED) ## The same between hosts of tests/cluster (10 minutes; needs root; ROWS="9 17").
	$(VENV)/bin/python tests/cluster/faults $(ROWS)

tensorboard: $(INSTALLED) ## Look at runs: make tensorboard RUNS=folder
	$(VENV)/bin/python -m tensorboard.main --logdir "$(RUNS)"

clean: ## Remove the demo's output and caches; .venv stays.
	rm -rf demo_output recall_output build .pytest_cache .ruff_cache medsft.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
