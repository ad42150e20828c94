PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check gpu clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-base  ## Distil and evaluate a small model on this machine's CPU
	$(BIN)/t3d run demo

test: $(VENV)/.stamp-dev  ## Run the tests
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.stamp-dev  ## Lint, format, types, import floors, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell

gpu:  ## Run the GPU benchmark with the Python at hand; installs nothing
	$(PYTHON) -m benchmarks.gpu

clean:  ## Remove the environment and all caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One rule for every environment: the stamp is older than pyproject.toml after a change.
EXTRAS_base :=
EXTRAS_dev := [dev]
$(VENV)/.stamp-%: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.$(EXTRAS_$*)'
	touch $@
