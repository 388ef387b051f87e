# Two commands do everything: `make demo` and `make test` set up what they need first.
# VENV=path uses another environment; PYTHON=python3.12 makes it with another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := $(VENV)/.ready-docs
FLOOR ?= .venv-floor

.PHONY: demo test test-all test-floor setup check bench docs

demo: $(READY)
	$(BIN)/fewbits demo

test: $(READY)
	$(BIN)/pytest -q -n 2 --dist loadfile

test-all: $(READY)
	$(BIN)/pytest -q -n 2 --dist loadfile -m "slow or not slow"

# The tests with the lowest versions that pyproject.toml allows, in an environment of their own.
test-floor: $(FLOOR)/.ready
	$(FLOOR)/bin/pytest -q -n 2 --dist loadfile

$(FLOOR)/.ready: pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install -q -c constraints-floor.txt -e '.[test]'
	touch $(FLOOR)/.ready

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/kernel_speed.py
	$(BIN)/python benchmarks/coding.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/recurrent.py
	$(BIN)/python benchmarks/mnist_mlp.py
	$(BIN)/python benchmarks/resnet20_cifar10.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/summary.py

# Writes the generated pages and pictures, then the site into site/; a warning is an error.
docs: $(DOCS)
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(DOCS): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $(DOCS)
