# Everything a checkout can do. `make run` and `make test` set up by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXPERIMENT ?= eim_oe
SWEEP ?= eim_oe_tpe
ARGS ?=
# A worker a core, each with one thread: models as small as the tests' are slower with more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help setup run sweep test test-slow faults lint bench ui clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## make the virtual environment and install the package into it

run: $(VENV)/.installed  ## the main job on the embedded data: EXPERIMENT=eim_oe ARGS="seed=1"
	$(BIN)/python -m eomt_exp +experiment=$(EXPERIMENT) $(ARGS)

sweep: $(VENV)/.installed  ## a study of sweeps/: SWEEP=eim_oe_tpe ARGS="hydra.sweeper.n_trials=20"
	$(BIN)/python -m eomt_exp -m +sweep=$(SWEEP) $(ARGS)

test: $(VENV)/.installed-dev  ## lint and the quick tests, two minutes on two cores
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the others: kills, faults, several processes, whole commands, parity
	$(PYTEST) -m slow $(ARGS)

faults: $(VENV)/.installed-dev  ## play a full disk, a dead worker and other faults; what happens, as a table
	$(BIN)/python -m tests.test_faults

lint: $(VENV)/.installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## speed beside the alternative, in the same run
	$(BIN)/python -m benchmarks $(ARGS)

ui: $(VENV)/.installed  ## MLflow's pages on this machine only
	@echo "MLflow on http://127.0.0.1:5000 (Ctrl-C ends it)"
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$${EOMT_OUTPUTS:-outputs}/mlflow.db --host 127.0.0.1 --port 5000

clean:  ## remove caches; outputs/ and the environment stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

# Installed once; again when pyproject.toml changes. `.installed` is touched last, so that an
# install that was broken off is done again.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is %s: make run PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
