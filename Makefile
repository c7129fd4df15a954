# .venv is created from requirements/lock.txt if it is missing, and again after the
# lock file changes. The project is installed again after pyproject.toml changes, which
# declares the jaxdqn command.
.DELETE_ON_ERROR:
.PHONY: help train test test-slow lint bench docs docs-serve lock clean

PYTHON ?= python3
UV ?= uv
ARGS ?=

BIN := .venv/bin
DOCS := build/docs
DOCS_PORT ?= 8000
STAMP := .venv/.made-from-lock
INSTALLED := .venv/.installed
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

help:
	@echo 'make train       train on CartPole; other runs: make train ARGS="PRESET --flag value"'
	@echo 'make test        the fast tests'
	@echo 'make test-slow   the tests that train or measure'
	@echo 'make lint        ruff and mypy'
	@echo 'make bench       throughput by part of the iteration'
	@echo 'make docs        build the documentation into $(DOCS)/index.html'
	@echo 'make docs-serve  build it, and serve it at http://127.0.0.1:$(DOCS_PORT)'
	@echo 'make lock        resolve requirements/lock.txt again (needs uv; ARGS=--upgrade for newest versions)'
	@echo 'make clean       remove .venv and caches'
	@echo
	@echo 'The first target creates .venv with PYTHON=$(PYTHON), which must be Python 3.11 to 3.13.'

train: $(INSTALLED)
	$(BIN)/jaxdqn run $(ARGS)

test: $(INSTALLED)
	NPROC=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput $(ARGS)

# Warnings, such as a link that leads nowhere, are errors. `make docs ARGS=-E` reads every page again.
docs: $(INSTALLED)
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet \
	  -d build/doctrees $(ARGS) docs $(DOCS)

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(DOCS) $(DOCS_PORT)

$(STAMP): requirements/lock.txt
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo 'error: PYTHON=$(PYTHON) must be Python 3.11, 3.12 or 3.13; try make PYTHON=python3.12 ...' >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	@touch $@

$(INSTALLED): $(STAMP) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

lock:
	@command -v $(UV) >/dev/null || { \
	  echo 'error: make lock needs uv; pip install uv, or make lock UV=path/to/uv' >&2; exit 1; }
	$(UV) pip compile --no-config --quiet --universal --python-version 3.11 --extra dev --extra docs \
	  --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
	  $(ARGS) -o requirements/lock.txt pyproject.toml

clean:
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
