# Everything runs in .venv, which the first command creates from the exact
# versions in constraints.txt. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help demo test test-network lint

help:
	@echo "make demo   separate a mixture of two people, with numbers and a picture"
	@echo "make test   run all tests and the examples in the docstrings"
	@echo "make test-network   load the authors' models from the Hub (210 MB)"
	@echo "make lint   check the code's style"

demo: $(STAMP)
	$(BIN)/python demo/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-network: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m network tests/inference/test_sources.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The stamp comes last, so an installation that was cut off is done again.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
		|| { echo "speechbrain_spgm needs Python 3.10, 3.11 or 3.12, and $(PYTHON)" \
		"is not one of them: name one with make PYTHON=/path/to/python3.12." >&2; exit 1; }
	@echo "Installing into .venv; the first time this takes some minutes (PyTorch)."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,test]'
	@touch $@
