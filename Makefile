# `make help` lists the commands. Each one first installs what is missing into $(VENV).
PYTHON ?= python3
VENV   ?= .venv
PHOTOS ?=
ONLY   ?=
# Test processes that run in parallel; 0 runs all tests in this one.
TESTERS ?= 2
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest --numprocesses=$(TESTERS) --dist=loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo check test lint format bench docs clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F '\t' '{ printf "make %-8s %s\n", $$1, $$2 }'

setup: $(READY) ## install into .venv, with pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=python3.x"; exit 2; }
	@echo "installing into $(VENV): 3.1 GB, a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## photos in, colourized photos out; PHOTOS=~/Pictures uses yours
	@$(BIN)/cc demo $(if $(PHOTOS),--photos "$(PHOTOS)")

check: lint ## linters, types and the fast tests: no Ray, server or browser; about 7 minutes
	@$(PYTEST) -m "not slow"

test: $(READY) ## all tests; TESTERS=2 in parallel
	@$(PYTEST)

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/mypy

format: $(READY) ## let ruff fix and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## the figures of docs/performance.md, as ratios; PHOTOS=DIR ONLY='loader palette'
	@$(BIN)/python -m tests.benchmarks $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(ONLY),--only $(ONLY))

docs: $(READY) ## the documentation as a site, in build/site; warnings are errors
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo "build/site/index.html"

clean: ## delete caches, builds and the demo's folder
	rm -rf demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
