# Two commands do all the set-up: "make demo" and "make test". Both first make a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test lint clean

venv: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: venv
	$(BIN)/python tools/demo.py --output demo

test: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
