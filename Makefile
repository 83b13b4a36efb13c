# Everything installs into .venv; nothing outside this folder is changed.
PYTHON ?= python3
WORKERS ?= 2
# Its tests wait for heartbeats: one more than a small machine has cores.
E2E_WORKERS ?= 3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Compiled once, not by each of the processes that tests start.
export PYTHONDONTWRITEBYTECODE :=
PIN := $(BIN)/uv pip compile pyproject.toml --group install --no-annotate --quiet --custom-compile-command 'make lock' $(UPGRADE)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-e2e check lock format up down clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

.venv/installed: pyproject.toml requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	# Only these very files: their hashes are compared, and nothing is built or resolved on the way.
	$(BIN)/pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement requirements-dev.txt
	# A torch that is there already stays as it is: which build of it is for you to choose.
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

install: .venv/installed ## install into .venv

demo: .venv/installed ## draw an example twice, from two noises, into renders/
	$(BIN)/regional render examples/two_halves.yaml --set batch_size=2 --flow

test: .venv/installed ## tests without servers, in minutes
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup -m 'not e2e'

test-e2e: .venv/installed ## end to end: real servers and workers, kills, faults, a browser
	# Of these files alone, because to import the others takes longer than many a test.
	$(BIN)/pytest --numprocesses $(E2E_WORKERS) --dist loadgroup --no-loadscope-reorder -m e2e $$(grep -l e2e tests/test_*.py)

check: .venv/installed ## format, lint, types, layer contracts, consistent packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/pip check

lock: .venv/installed ## pin versions and hashes anew after pyproject.toml has changed; UPGRADE=--upgrade: the newest ones
	$(PIN) --extra dev --output-file requirements-dev.txt
	$(PIN) --constraint requirements-dev.txt --output-file requirements.txt

format: .venv/installed ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: .venv/installed ## start server, pools, workers and deployments on this machine; again: only what does not run
	$(BIN)/python -m prefect_regional_diffusion.deployments.up

down: .venv/installed ## stop what `make up` has started; runs go back into the queue
	$(BIN)/python -m prefect_regional_diffusion.deployments.up --down

clean: ## remove what was installed and rendered here
	rm -rf .venv .regional renders .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
