# labctl: `make help` lists what there is.  Everything can be run twice.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# What makes bridges, namespaces and machines needs root, some unit tests too (owners of files): as another
# user they go through sudo.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env PATH="$$PATH:/usr/sbin:/sbin")
# A capability named in LABCTL_REQUIRE, or in tests/required-capabilities.txt when this is "file",
# fails the run when it is missing.  Everything else skips what it can't run and says why.
export LABCTL_REQUIRE ?= file
PYTEST := $(BIN)/python -m pytest
PYTEST_ARGS ?=
# How many tests run at a time; 0: one after the other, each with the whole host compared before and after it.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help setup setup-test demo test lint test-unit test-host test-e2e bench docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install Debian packages and .venv; leaves .venv/bin/labctl and .venv/bin/labrun
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh --test

demo: setup ## bring the spectrum lab up, use it, compare the tiers, take it down
	@$(ROOT) scripts/demo.sh

lint: setup-test ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict labctl
	$(BIN)/lint-imports

test: lint test-unit test-host ## everything quick: lint, unit tests, host tests, short end-to-end tests

test-unit: setup-test
	$(ROOT) $(PYTEST) tests/unit -n $(WORKERS) $(PYTEST_ARGS)

test-host: setup-test ## tests on the real kernel, libvirt and registry, and the short end-to-end tests
	$(ROOT) $(PYTEST) tests/host tests/e2e -m "not long" $(SPREAD) $(PYTEST_ARGS)

test-e2e: setup-test ## the long tests: whole labs, kill tests, the rest of the OCI conformance suite
	$(ROOT) $(PYTEST) tests/host tests/e2e -m long $(SPREAD) $(PYTEST_ARGS)

bench: setup-test ## the benchmarks, medians and ratios against peers
	@shopt -s nullglob; for file in benchmarks/bench_*.py; do echo "== $$file"; $(ROOT) $(BIN)/python $$file; done

docs: setup ## write docs/cli.md and docs/profile.md anew from the code
	$(BIN)/python scripts/docs.py

wheel: setup ## build dist/labctl-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## remove what was built here; labs, state and cache stay (labctl down --all, labctl gc)
	rm -rf dist build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
