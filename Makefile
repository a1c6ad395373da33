# `make demo` and `make test` work from nothing: Debian, Python 3.11 or later, pip, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format clean

demo: $(VENV)/.demo
	$(BIN)/ovs demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

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
