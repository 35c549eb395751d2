# The two commands to know: `make demo` and `make test`. Both install what is missing.
PYTHON ?= python3
VENV   ?= .venv
PHOTOS ?=
# Processes that run tests side by side; 0 runs them one by one, in this process.
TESTERS ?= 2
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: help setup demo test lint format bench clean

help:
	@echo "make demo [PHOTOS=~/Pictures]   photos in, colourized photos out, in a few minutes"
	@echo "make test                       the whole test suite"
	@echo "make lint                       ruff and mypy"
	@echo "make bench [PHOTOS=DIR]         the figures of the README, as ratios; ONLY='loader palette'"
	@echo "make setup                      only install, into $(VENV)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=python3.x"; exit 2; }
	@echo "installing into $(VENV): about 2 GB, a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/cc demo $(if $(PHOTOS),--photos "$(PHOTOS)")

test: $(READY)
	@$(BIN)/python -m pytest --numprocesses=$(TESTERS) --dist=loadfile

lint: $(READY)
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)
	@$(BIN)/python -m tests.benchmarks $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
