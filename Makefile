# Every target starts from nothing but Python 3.11+ and the package index; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LATEST := .venv-latest
PIP_INSTALL := -m pip install --quiet --no-compile --disable-pip-version-check
PYTEST := -m pytest --numprocesses auto --maxprocesses 4
unexport PYTHONDONTWRITEBYTECODE  # what gets imported is compiled once, not in every process

.PHONY: help demo test check pytest test-latest lock docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/installed ## learn a few tasks and print what was forgotten
	$(BIN)/continual demo

test: $(VENV)/installed ## check and run the tests, with the locked releases
	$(MAKE) --jobs=2 check pytest  # tests wait for servers and processes a fifth of the time

pytest: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST)

check: $(VENV)/installed ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-latest: ## run the tests with the newest releases that pyproject.toml allows
	$(PYTHON) -m venv --clear $(LATEST)
	$(LATEST)/bin/python $(PIP_INSTALL) --upgrade pip  # without pins an old resolver takes very long
	$(LATEST)/bin/python $(PIP_INSTALL) -e '.[minilm,dev]'
	HF_HUB_OFFLINE=1 $(LATEST)/bin/python $(PYTEST)

lock: .venv-lock/bin/uv ## pin the newest allowed releases in constraints.txt (uv reads UV_DEFAULT_INDEX, not pip's settings)
	.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
		--all-extras --annotation-style line --custom-compile-command 'make lock' \
		--output-file constraints.txt pyproject.toml

docs: $(VENV)/installed-docs ## build the site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove everything that these targets make
	rm -rf .venv .venv-* $(VENV) build dist site *.egg-info

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[minilm,dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP_INSTALL) uv
