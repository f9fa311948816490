# Everything runs in .venv, offline once the packages are there. Paths may hold spaces and Cyrillic: nothing here
# is a target with a path in its name, and every use of a path is quoted.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGE := $(VENV)/.package
SOURCES := $(wildcard vaultllm/*.py vaultllm/*/*.py vaultllm/obsidian/* pipelines/*)

.PHONY: help install demo test check format lint-plugin bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

install: $(PACKAGE) ## make .venv with the tested versions

# torch first and pinned: an open requirement would take the newest build with gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	@echo "installing into $(VENV) (once, about 2 GB)…"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[dev]"
	@touch "$(STAMP)"

# A copy, not an editable install: that one puts this folder's path into a .pth file, which Python 3.11 cannot read
# where the locale is C (cron's is) and the path holds Cyrillic.
$(PACKAGE): $(STAMP) $(SOURCES)
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@touch "$(PACKAGE)"

demo: install ## see it all work on vault_example/ (about 5 minutes)
	@"$(BIN)/python" -m vaultllm.cli demo

test: install ## run the tests
	@"$(BIN)/python" -m pytest -n auto --maxprocesses 4 --dist worksteal

check: install ## lint and types
	@"$(BIN)/python" -m ruff check .
	@"$(BIN)/python" -m ruff format --check .
	@"$(BIN)/python" -m mypy

lint-plugin: ## lint the Obsidian plugin as its reviewers do (node and npm needed)
	@npm install --prefix tests/obsidian --silent --no-audit --no-fund --no-package-lock
	@cd vaultllm/obsidian && ../../tests/obsidian/node_modules/.bin/eslint -c ../../tests/obsidian/eslint.config.mjs main.js manifest.json

bench: install ## the figures of docs/log.md
	@"$(BIN)/python" benchmarks/ingest.py
	@"$(BIN)/python" benchmarks/micro.py
	@"$(BIN)/python" benchmarks/lora.py
	@"$(BIN)/python" benchmarks/ask.py

clean: ## remove .venv and caches (never a vault or its state)
	rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
