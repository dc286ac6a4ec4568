# Every target first makes .venv when it is missing or older than pyproject.toml or constraints.txt.
# PYTHON chooses the interpreter (3.11 to 3.13): make test PYTHON=python3.12
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help demo dev test check format docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## a governed workflow from start to end, on private servers (ARGS="--approve --json")
	@$(VENV)/bin/agent-runtime demo $(ARGS)

dev: $(STAMP)  ## workers, beat and a private Valkey for your workspace.yaml, until Ctrl-C
	@$(VENV)/bin/agent-runtime dev $(ARGS)

test: $(STAMP)  ## the tests (ARGS="-k name")
	@$(RUN) -m pytest $(ARGS)

check: $(STAMP)  ## format, lint, types and tests
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy --strict runtime tasks
	$(RUN) -m pytest

format: $(STAMP)  ## rewrite the sources in the project's format
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

docs: $(STAMP)  ## write the generated pages again
	$(RUN) docs/generate_states.py

bench: $(STAMP)  ## figures with their floors
	@$(RUN) -m bench $(ARGS)

clean:  ## remove .venv, caches and the embedded servers' files
	rm -rf $(VENV) .agent-runtime .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# All of this goes to standard error: standard output belongs to the command that was asked for.
$(STAMP): pyproject.toml constraints.txt
	@{ command -v '$(PYTHON)' >/dev/null || { \
	    echo "There is no '$(PYTHON)'. Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.12"; exit 1; }; \
	  '$(PYTHON)' -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	    echo "'$(PYTHON)' is $$('$(PYTHON)' --version 2>&1), but 3.11, 3.12 or 3.13 is needed. Name another one: make PYTHON=python3.12"; exit 1; }; \
	  echo "Installing into $(VENV) (once; again when pyproject.toml or constraints.txt changes) ..."; \
	  '$(PYTHON)' -m venv --clear $(VENV); \
	  $(RUN) -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[embedded,flower,test]'; \
	  touch $@; } >&2
