# The commands of development. `make` lists them; CI runs the same ones.

PYTHON ?= python
DIST ?= dist

.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint types check docs wheel oldest bench hostile-page clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Install the package in place, with all that development needs
	$(PYTHON) -m pip install -e '.[dev]'

test: ## Run the tests, without the slow ones
	pytest -n auto

test-slow: ## Run the slow tests
	pytest -m slow -n auto --dist loadgroup

lint: ## Check style, formatting and the rules of imports
	ruff check .
	ruff format --check .
	lint-imports

types: ## Check types
	mypy

check: lint types test ## Run lint, types and test: do this before a pull request

docs: ## Build the site into build/docs. A warning is an error
	$(PYTHON) -m sphinx -W --keep-going -b html docs build/docs

wheel: ## Build the wheel and the source distribution into DIST (default: dist)
	$(PYTHON) -m build --outdir $(DIST)

oldest: ## Run the tests with the oldest versions that pyproject.toml allows
	.ci/oldest

bench: ## Measure speed and memory, and write benchmarks/README.md (20 minutes on two cores)
	$(PYTHON) benchmarks/run.py

hostile-page: ## Write docs/hostile-input.md again
	HDMNET_WRITE_DOCS=1 pytest tests/test_hostile_input.py

clean: ## Delete what builds, tests and examples left
	rm -rf build dist *.egg-info .coverage .hypothesis .*_cache examples/output
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
