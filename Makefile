# `make test` and `make demo` set up what they need, on a machine with Python 3.11 to 3.13 and nothing else.

VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first of these that runs. A name on the PATH may be a version manager's stand-in that does not.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VERSION = $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST_ARGS ?= -n 3
# What `make lowest` and `make wheel` run; `make test` runs everything.
TESTS ?= tests/unit tests/docs tests/typing

.DEFAULT_GOAL := help

.PHONY: help demo test coverage lowest wheel lint fmt docs pins clean load

help:  ## What can be made
	@awk -F ':.*##' '/^[a-z]+:.*##/ { printf "  make %-10s%s\n", $$1, $$2 }' Makefile

demo: $(VENV)/runtime  ## Run a Chainlit app on forebay, with an embedded database
	$(BIN)/forebay demo

test: lint  ## Lint, check the types, and run every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

coverage: $(VENV)/development  ## Count the branches that tests/unit and tests/integration take; too few fail
	$(BIN)/python -m pytest $(PYTEST_ARGS) --cov --cov-report=term:skip-covered tests/unit tests/integration \
		--ignore tests/unit/pipeline/test_cost.py  # which counts instructions, and would count the coverage's own

lowest: $(VENV)/development  ## Run TESTS with the oldest releases that pyproject.toml admits
	mkdir -p build
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version $(VERSION) --no-header --no-annotate \
		pyproject.toml --output-file build/lowest.txt
	sed '/^-/d' requirements-dev.in > build/tools.txt
	.ci/environment build/lowest $(BIN)/python -r build/lowest.txt -r build/tools.txt
	build/lowest/bin/python -m pip --quiet install --no-deps --editable .
	build/lowest/bin/python -m pytest $(PYTEST_ARGS) $(TESTS)

wheel: $(VENV)/development  ## Build the sdist, and from that the wheel, into dist/, and run TESTS with the wheel
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	.ci/environment build/wheel $(BIN)/python -r requirements-dev.txt
	build/wheel/bin/python -m pip --quiet install --no-deps --force-reinstall dist/*.whl
	build/wheel/bin/python -c 'import forebay; assert "site-packages" in forebay.__file__, forebay.__file__'
	build/wheel/bin/python -m pytest $(PYTEST_ARGS) $(TESTS)

load: $(VENV)/development  ## Let Locust's people chat, then audit the database (LAYER=, USERS=, DURATION=)
	$(BIN)/python -m loadtests.load

lint: $(VENV)/development  ## Lint, check the types and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/development  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/development  ## Render docs/ as a site in build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

pins: $(VENV)/development  ## Pin the newest versions of everything in requirements*.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --no-emit-index-url --no-header --no-annotate \
		--quiet pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --no-emit-index-url --no-header --no-annotate \
		--quiet requirements-dev.in --output-file requirements-dev.txt

clean:  ## Remove what was set up
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(BIN)/python:
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "forebay needs Python 3.11, 3.12 or 3.13; found: $(or $(PYTHON),none) (make PYTHON=/path/to/python)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is incomplete; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON), once"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/runtime: requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing the pinned packages"
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --editable .
	@touch $@

$(VENV)/development: requirements-dev.txt | $(VENV)/runtime
	@echo "Installing the development tools"
	@$(PIP) install -r requirements-dev.txt
	@touch $@
