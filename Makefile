# `make` lists what there is. Every target makes its own environment in .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export WANDB_MODE ?= offline
export NO_ALBUMENTATIONS_UPDATE = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-slow test-release check format bench bench-gpu clean

# Two workers; tests that start processes of their own are one group, so that they do not meet.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP) ## The environment alone (the other targets do this themselves)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	@echo "installing the packages of constraints.txt into $(VENV) ..."
	@UV=$$(command -v uv || echo $(BIN)/uv); \
	  $$UV pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## Compare methods on the embedded town; the table is at the end, pictures are in runs/demo
	$(BIN)/sfda compare compare/demo.yaml --out runs/demo

test: $(STAMP) ## Every test but those of whole commands
	$(PYTEST) --durations 30

test-fast: $(STAMP) ## The tests that take milliseconds
	$(PYTEST) -m 'not medium and not slow and not release'

test-slow: $(STAMP) ## Whole commands and notebooks, on small data
	$(PYTEST) -m 'slow and not release' --durations 30

test-release: $(STAMP) ## The demo, the notebooks and the README at full size: an hour, before the README's figures change
	$(BIN)/python -m pytest -m release --timeout 3000 --durations 10

check: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Speed, as ratios to named references: one table; fails where a row is not met
	$(BIN)/python tests/benchmarks

bench-gpu: $(STAMP) ## The same on a GPU, with and without bfloat16
	$(BIN)/python tests/benchmarks --gpu

clean: ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis dist
