# Two commands do everything on a fresh machine with Python 3.11 or newer and make:
#   make run    install, start Guardian with an embedded PostgreSQL, show how to use it
#   make test   install, run the tests
# `make help` lists the rest.

SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTEST := $(BIN)/pytest

.PHONY: help run demo test test-fast test-slow lint types imports format coverage ci docs examples sim explore lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Guardian needs Python 3.11 or newer, and found none." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install -q pip; } || { rm -rf $(VENV); \
	  echo "Could not make a virtual environment. On Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing Guardian (once) ..."
	@$(PIP) install -q --require-hashes -r requirements.lock
	@$(PIP) install -q --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing Guardian and its tools (once) ..."
	@$(PIP) install -q --require-hashes -r requirements-dev.lock
	@$(PIP) install -q --no-deps -e .
	@touch $@ $(VENV)/.installed

run: $(VENV)/.installed ## start one node with everything in it; Ctrl-C stops it
	@exec $(BIN)/guardian serve --log-format text

demo: $(VENV)/.installed ## start three nodes, show who leads, let you kill one
	@exec $(BIN)/guardian demo

test: $(VENV)/.installed-dev ## all tests of the default run, the fast ones first
	@$(PYTEST) -q $(PYTEST_FLAGS)

test-fast: $(VENV)/.installed-dev ## only the tests that start no processes
	@$(PYTEST) -q -m "not slow"

test-slow: $(VENV)/.installed-dev ## only the tests with several processes
	@$(PYTEST) -q -m slow

lint: $(VENV)/.installed-dev ## ruff: lint and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict
	@$(BIN)/mypy

imports: $(VENV)/.installed-dev ## the import rules of the architecture
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## format in place
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

examples: $(VENV)/.installed-dev ## run every example as a user would
	@$(BIN)/python examples/counter.py
	@$(BIN)/python examples/members.py
	@$(BIN)/python examples/kv_store.py
	@$(BIN)/python examples/real_documents.py

sim: $(VENV)/.installed-dev ## simulate the core under faults, many seeds (SEEDS=0:2000)
	@$(BIN)/python -m jepsen_like sim --seeds $(or $(SEEDS),0:2000)

explore: $(VENV)/.installed-dev ## try every order of events within bounds, millions of states (LIMIT=2000000)
	@$(BIN)/python -m jepsen_like explore --limit $(or $(LIMIT),2000000)
	@$(BIN)/python -m jepsen_like explore --limit $(or $(LIMIT),2000000) --start elected \
	  --terms 1 --timeouts 1 --changes 1 --heartbeats 0 --step-downs 0
	@$(BIN)/python -m jepsen_like explore --limit $(or $(LIMIT),2000000) --start divided \
	  --terms 2 --timeouts 2 --entries 0 --heartbeats 0 --step-downs 0

docs: $(VENV)/.installed-dev ## build the documentation site
	@$(BIN)/sphinx-build -q -W -n -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

ci: ## what CI runs
	@bash .ci/run

lock: ## renew the locks (needs uv)
	uv pip compile --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links pyproject.toml -o requirements.lock
	uv pip compile --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --extra dev --extra docs -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## remove what was installed and built here; never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov docs/_build
