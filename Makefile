# `make demo` and `make test` work from nothing: Debian, Python 3.11 or later, pip, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format clean

demo: $(VENV)/.demo
	$(BIN)/ovs demo

# The export stage's tests load Paddle, which has crashed in a process that did much else: one process a file.
test: $(VENV)/.dev
	$(BIN)/python -X faulthandler -m pytest --ignore=tests/export
	set -e; for file in tests/export/test_*.py; do $(BIN)/python -X faulthandler -m pytest $$file; done

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src export tests benchmarks
	$(BIN)/ruff check src export tests benchmarks
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format src export tests benchmarks
	$(BIN)/ruff check --fix src export tests benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu]"
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist output
