PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The exact version of every package; empty for the newest ones that pyproject.toml allows.
LOCK ?= constraints.txt
UV := build/uv/bin/uv

.DEFAULT_GOAL := help
.PHONY: help install demo test test-browser check docs test-newest test-lowest lock gpu clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.stamp-base  ## Create .venv with t3d and the exact versions in constraints.txt

demo: install  ## Distil and evaluate a small model on this machine's CPU
	$(BIN)/t3d run demo

test: $(VENV)/.stamp-dev  ## Run the tests
	$(BIN)/python -m pytest -n 2

test-browser: $(VENV)/.stamp-dev  ## Run the tests of the HTML pages, with Chromium installed by apt where it may be
	command -v chromium || command -v google-chrome \
		|| { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } \
		|| echo 'There is no Chromium, and apt may not install it: the tests are skipped.'
	$(BIN)/python -m pytest tests/browser -rs

check: $(VENV)/.stamp-dev  ## Lint, format, types, import floors, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(VENV)/.stamp-docs  ## Build the documentation site into build/site
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env -c docs -d build/doctrees . build/site

test-newest:  ## Run the tests with the newest releases that pyproject.toml allows
	rm -rf build/newest
	$(MAKE) test VENV=build/newest LOCK=

test-lowest: $(UV)  ## Run the tests with the lowest ones
	$(UV) pip compile --quiet --resolution lowest-direct --python $(PYTHON) --extra dev \
		--output-file build/lowest.txt pyproject.toml
	$(MAKE) test VENV=build/lowest LOCK=build/lowest.txt

lock: $(UV)  ## Renew the exact versions in constraints.txt
	$(UV) pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 \
		--extra dev --extra docs --no-annotate --custom-compile-command 'make lock' \
		--output-file $(LOCK) pyproject.toml constraints.in

gpu:  ## Run the GPU benchmark with the Python at hand; installs nothing
	$(PYTHON) -m benchmarks.gpu

clean:  ## Remove the environment and all caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One rule for every environment: its stamp is older than pyproject.toml or the lock after a change.
EXTRAS_base :=
EXTRAS_dev := [dev]
EXTRAS_docs := [docs]
$(VENV)/.stamp-%: pyproject.toml $(LOCK)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK) \
		$(BIN)/python -m pip install --quiet --editable '.$(EXTRAS_$*)'
	touch $@

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet uv
