# make train, make test: each builds the environment first and then runs one command; ARGS are passed on to it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: train test test-slow test-launchers mutants lint help

help:
	@grep -E '^# make|^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ -/'

train: $(VENV)/.installed  ## train, test and report the default operator
	$(BIN)/python -m ups.run stage=operator $(ARGS)

test: $(VENV)/.installed-dev lint  ## lint, types and the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

# Ray's plugin and SkyPilot want older packages than constraints.txt has
test-launchers: $(VENV)-launchers/.installed  ## sweeps on a local Ray cluster, and SkyPilot's parser, in an environment of their own
	OMP_NUM_THREADS=1 $(VENV)-launchers/bin/python -m pytest -k "ray or sky" tests/test_launchers.py $(ARGS)

mutants: $(VENV)/.installed-dev  ## would the tests notice a wrong number? an hour on two cores; ARGS="--area ttc" for a part
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff, mypy and the order of imports
	$(BIN)/ruff check ups tests benchmarks
	$(BIN)/ruff format --check ups tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# torch comes first and from the index of its CPU builds, its dependencies later from the default one;
# TORCH_INDEX= takes torch from there too, with CUDA
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH = -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)-launchers/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-launchers
	$(VENV)-launchers/bin/python -m pip install -q --no-deps $(TORCH)
	$(VENV)-launchers/bin/python -m pip install -q -e ".[ray]" skypilot pytest
	@touch $@
