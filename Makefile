PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
START ?= 0
COUNT ?= 100000

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := src tests
PAGE := src/afmol/serve/page

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz lint format docs viewer clean

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

# Each process takes the next tests of its own part, and those of another's when it has none left.
test: $(STAMP)  ## all tests, on up to four processes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

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

# The page's viewer, as it is published: https://www.npmjs.com/package/3dmol. Its licence and its SHA-256 stand beside it.
viewer:  ## take src/afmol/serve/page/3Dmol-min.js from the npm registry again
	npm pack --silent 3dmol@2.5.5
	tar xzf 3dmol-2.5.5.tgz package/build/3Dmol-min.js package/LICENSE
	mv package/build/3Dmol-min.js $(PAGE)/3Dmol-min.js
	mv package/LICENSE $(PAGE)/3Dmol-LICENSE.txt
	rm -r 3dmol-2.5.5.tgz package
	cd $(PAGE) && sha256sum -c 3Dmol-min.js.sha256

# .venv by name: a VENV that was given belongs to whoever made it.
clean:  ## remove .venv, out/ and caches
	rm -rf .venv out docs/_build .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
