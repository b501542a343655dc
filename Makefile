# Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-slow lint wheel notebooks benchmarks lowest newest ci clean

demo: $(VENV)/.installed
	$(BIN)/tfcompress demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Builds the wheel and uses it from outside the repository.
wheel: $(VENV)/.test
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python tests/check_wheel.py dist/*.whl

notebooks: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_notebooks.py

benchmarks: $(VENV)/.test
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The oldest versions that pass, and the newest there are (pre-releases of ours excluded).
lowest:
	$(MAKE) test PYTHON=python3.10 VENV=.venv-lowest CONSTRAINTS="-c tests/lowest.txt"

newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest CONSTRAINTS="--upgrade --upgrade-strategy eager"

ci: lint wheel test test-slow

clean:
	rm -rf .venv* build dist demo *.egg-info bazel-*

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable . $(CONSTRAINTS)
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]" $(CONSTRAINTS)
	touch $@
