PYTHON ?= python3
FUZZ_SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help run kernel test test-all lint bench fuzz clean

help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(VENV)/.run ## Install what is needed, boot a Linux, run uname in it, and leave nothing behind
	$(BIN)/cerne run --rm tiny -- uname -a

test: $(VENV)/.test lint kernel ## Run the checks and the tests (under 15 minutes)
	$(BIN)/pytest --numprocesses 2 -m "not slow" --reruns 1 --rerun-show-tracebacks

test-all: $(VENV)/.test lint kernel ## Run every test, the slow ones too
	$(BIN)/pytest

kernel: $(VENV)/.test ## Build the guest kernel, minutes of work, unless it is in the cache
	$(BIN)/cerne kernel build || echo "The tests go on with the distribution's kernel."

lint: $(VENV)/.test ## Run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.test ## Measure, and print the tables that docs/performance.md quotes
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

fuzz: $(VENV)/.test ## Fuzz all that parses hostile input, or TARGET alone, for FUZZ_SECONDS each
	$(BIN)/pip install -qq --disable-pip-version-check --editable '.[fuzz]'
	targets="$(TARGET)"; for target in $${targets:-$$($(BIN)/python -m tests.fuzz.targets)}; do \
		$(BIN)/python -m tests.fuzz.run $$target $(FUZZ_SECONDS) || exit 1; done

clean: ## Remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.run: pyproject.toml scripts/install-system-packages
	scripts/install-system-packages run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run
	scripts/install-system-packages test
	$(BIN)/pip install -qq --disable-pip-version-check --editable '.[dev]'
	touch $@
