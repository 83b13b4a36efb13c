# Everything installs into .venv; nothing outside this folder is changed.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check format up down clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt torch
	# A torch that is there already stays as it is, so its pin is left out here.
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed ## install into .venv

demo: .venv/installed ## draw an example twice, from two noises, into renders/
	$(BIN)/regional render examples/two_halves.yaml --set batch_size=2 --flow

test: .venv/installed ## all tests
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup

check: .venv/installed ## format, lint, types, layer contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: .venv/installed ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: .venv/installed ## start server, pools, workers and deployments on this machine; again: only what does not run
	$(BIN)/python -m deployments.up

down: .venv/installed ## stop what `make up` has started; runs go back into the queue
	$(BIN)/python -m deployments.up --down

clean: ## remove what was installed and rendered here
	rm -rf .venv .regional renders .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
