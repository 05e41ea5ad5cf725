# Everything runs in .venv, which the first command creates from the exact
# versions in constraints.txt. Another Python, other versions (here the newest that
# setup.cfg allows) and another folder:
#   make test PYTHON=python3.14 CONSTRAINTS= VENV=/tmp/newest
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Else each of the many processes of the tests compiles all of torch's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-network lint

help:
	@echo "make demo   separate a mixture of two people, with numbers and a picture"
	@echo "make test   run all tests and the examples in the docstrings"
	@echo "make test-network   load the authors' models from the Hub (270 MB)"
	@echo "make lint   check the code's style"

demo: $(STAMP)
	$(BIN)/python demo/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-network: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m network tests/models/test_sources.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The stamp comes last, so an installation that was cut off is done again.
$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
		|| { echo "speechbrain_spgm needs Python 3.10 to 3.14, and $(PYTHON)" \
		"is not one of them: name one with make PYTHON=/path/to/python3.12." >&2; exit 1; }
	@echo "Installing into $(VENV); the first time this takes some minutes (PyTorch)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(CONSTRAINTS:%=--constraint %) --editable '.[demo,test]'
	@touch $@
