# Two commands do all the set-up: "make demo" and "make test". Both first make a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests, one thread in each: sums depend on the number of threads.
WORKERS ?= 2
PYTEST := -m pytest --numprocesses $(WORKERS) --dist worksteal
# What runs with the lowest versions that pyproject.toml allows.
LOWEST_TESTS := $(addprefix tests/,builders compression decompositions deployment evaluation reporting structure \
	test_checkpoint.py visualization)

test test-all test-cuda test-lowest: export OMP_NUM_THREADS ?= 1

.PHONY: venv demo test test-all test-cuda test-lowest docs lint clean

venv: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: venv
	rm -rf demo
	$(BIN)/norton-det demo --output demo

test: venv
	$(BIN)/python $(PYTEST) -m "not slow"

# Everything: first the tests of "make test", then the others.
test-all: test
	$(BIN)/python $(PYTEST) -m slow

# What needs a GPU, and is skipped where there is none: in one process, which has the GPU to itself.
test-cuda: venv
	$(BIN)/python -m pytest -m cuda

# Warnings of old versions are theirs.
test-lowest: .venv-lowest/ready
	.venv-lowest/bin/python $(PYTEST) -m "not slow" -W default $(LOWEST_TESTS)

.venv-lowest/ready: pyproject.toml scripts/lowest_versions.py
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python scripts/lowest_versions.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable ".[dev]"
	touch $@

# The documentation site, in build/site, without network; a link that leads nowhere is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-lowest demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
