# `make demo` and `make test` work from nothing: Debian, Python 3.11 or later, pip, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format clean

demo: $(VENV)/.demo
	$(BIN)/ovs demo

# The export stage's tests load Paddle: in a process of its own, since it has crashed beside faiss.
test: $(VENV)/.dev
	$(BIN)/python -X faulthandler -m pytest --ignore=tests/export
	$(BIN)/python -X faulthandler -m pytest tests/export

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
