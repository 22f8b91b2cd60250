PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
START ?= 0
COUNT ?= 100000

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := src tests

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz lint format docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV)"

install: $(STAMP)  ## the environment $(VENV) with the package, editable

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## predict an example: a table here, files in out/
	$(BIN)/afmol demo -o out

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

fuzz: $(STAMP)  ## mutated files through every reader: make fuzz SEED=1 START=0 COUNT=100000
	$(BIN)/python tests/fuzz.py --seed $(SEED) --start $(START) --count $(COUNT) --out out/fuzz

lint: $(STAMP)  ## format, rules and types, changing nothing
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(STAMP)  ## format and mend what can be mended
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs: $(STAMP)  ## the pages in docs/_build, warnings are errors
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build

# .venv by name: a VENV that was given belongs to whoever made it.
clean:  ## remove .venv, out/ and caches
	rm -rf .venv out docs/_build .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
