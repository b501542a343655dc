# Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Processes that run tests: two take up to 8 GiB.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal --durations=15

.PHONY: demo test test-slow lint wheel notebooks benchmarks lowest newest bazel ci clean

demo: $(VENV)/.installed
	$(BIN)/tfcompress demo

test: $(VENV)/.test
	$(PYTEST)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow

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

# Those that begin with an underscore are parts of others.
benchmarks: $(VENV)/.test
	for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The oldest versions that pass, and the newest there are (pre-releases of ours excluded).
lowest:
	$(MAKE) test PYTHON=python3.10 VENV=.venv-lowest CONSTRAINTS="-c tests/lowest.txt"

newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest CONSTRAINTS="--upgrade --upgrade-strategy eager"

# Needs Debian's bazel-bootstrap 4.2 (its Bazel fetches nothing: the script writes what it
# would fetch) and runs with the python of the virtual environment.
BAZEL_TARGETS ?= //:tests/test_schedules
BAZEL_FETCHED = rules_cc rules_java rules_proto rules_python bazel_skylib remote_coverage_tools

bazel: $(VENV)/.test
	stubs=$$(mktemp -d) && trap 'rm -rf "$$stubs"' EXIT && \
	tests/bazel/offline_repositories.sh "$$stubs" && \
	PATH="$(abspath $(BIN)):$$PATH" bazel test $(BAZEL_TARGETS) --test_output=errors --nosandbox_debug --symlink_prefix=/ \
	    --python_path=$(abspath $(BIN))/python --incompatible_use_python_toolchains=false \
	    $$(for name in $(BAZEL_FETCHED); do echo --override_repository=$$name=$$stubs/$$name; done)

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
