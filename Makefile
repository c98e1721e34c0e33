# Gauntlet's commands; `make help` lists them. Only Python 3.11 or newer, make and the package registries are needed.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name) 2>/dev/null),$(name))))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install dev demo serve paper test slow storm bench soak check lint clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## create the environment
dev: $(VENV)/.dev ## the environment with what tests and linters need

demo: install ## run the quickstart suite, never another, on a service of its own, print both matrices, stop
	$(BIN)/python -m worker.serve --suite quickstart --stop

serve: SUITE ?= quickstart
serve: install ## as demo, with SUITE=NAME another suite, and stay up (SUITE= posts nothing)
	$(BIN)/python -m worker.serve --suite "$(SUITE)"

paper: SUITE ?= e2sad-mnist
paper: install ## run the paper's protocol on a GPU, or go on with it; SUITE=e2sad-mnist-tiny tries it; tables in docs/results
	$(BIN)/python -m worker.serve --suite "$(SUITE)" --dataset "$(DATASET)" --stop --results docs/results

test: dev ## the test suite, with a real PostgreSQL and a real Redis
	$(BIN)/python -m pytest -n 2 --dist loadgroup --rerun-show-tracebacks -m "not slow"

slow: dev ## the tests that wait for minutes: storms of faults, outages, lost answers
	$(BIN)/python -m pytest -n 2 --dist loadgroup --rerun-show-tracebacks -m slow

storm: dev ## three minutes of faults over real stages; STORM="--faults 1000 --seconds 3600 --out docs/results/storm.json"
	$(BIN)/python -m tests.storm $(STORM)

bench: dev ## training and crafting against plain loops, foolbox, ART and the ceilings; then the service's figures
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench $(BENCH)
	$(BIN)/python -m bench service $(SERVICE)

soak: dev ## a service under a slow trickle: memory drift, descriptors; SOAK="--hours 24"
	$(BIN)/python -m scripts.soak $(SOAK)

lint: dev ## formatting, lint, types, dependency rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

check: lint test slow ## what CI runs

clean: ## remove the environment and the local state
	rm -rf $(VENV) var build *.egg-info
