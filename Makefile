# `make demo` and `make test` work from nothing: Debian, Python 3.11 or later, pip, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARITY_VENV := .venv-parity
# An interpreter that has paddlex[cv]==3.7.2 and paddlepaddle==3.2.2; made if it is not given.
PADDLEX ?= $(PARITY_VENV)/bin/python

.PHONY: demo test parity lint format clean

demo: $(VENV)/.demo
	$(BIN)/ovs demo

# The export stage's tests load Paddle, which has crashed in a process that did much else: one process a file. Pytest ends
# with 5 where a file is skipped whole, for want of an extra that is not part of dev (train).
test: $(VENV)/.dev
	$(BIN)/python -X faulthandler -m pytest --ignore=tests/export
	set -e; for file in tests/export/test_*.py; do $(BIN)/python -X faulthandler -m pytest $$file || test $$? -eq 5; done

# Every comparison with PaddleX runs, also after one has failed.
parity: $(VENV)/.dev $(if $(filter $(PARITY_VENV)/%,$(PADDLEX)),$(PARITY_VENV)/.done)
	status=0; for script in tests/parity/compare_*.py; do $(BIN)/python $$script --paddlex $(PADDLEX) || status=1; done; exit $$status

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

$(PARITY_VENV)/.done:
	$(PYTHON) -m venv --clear $(PARITY_VENV)
	$(PARITY_VENV)/bin/pip install --quiet --disable-pip-version-check "paddlex[cv]==3.7.2" "paddlepaddle==3.2.2"
	touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) build dist output
