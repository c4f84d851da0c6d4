# The two commands: make run, make test. Everything they need is set up on the way; PYTHON names the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-unit test-long check bench fuzz setup servers lock format clean
run: setup
	@$(BIN)/iotflow demo

test: servers
	$(BIN)/pytest -m "not long"

test-unit: setup
	$(BIN)/pytest tests/unit

test-long: servers
	$(BIN)/pytest -m long

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/python -m tests.locked

bench: servers
	$(BIN)/python -m tests.bench

# Five million damaged payloads through every dialect; FUZZ="--inputs 100000" for fewer.
fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ)

format: setup
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Fetches and builds what the tests start: minutes the first time, and more than one test may take.
servers: setup
	@$(BIN)/iotflow stack prepare || test -z "$$IOTFLOW_REQUIRE_SERVERS"

lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-annotate --no-header --extra codecs --extra pictures --extra local --extra dev \
	    -o requirements.lock pyproject.toml

setup: $(STAMP)
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iotflow needs Python 3.11 or newer; set PYTHON=")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing locked packages into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) .iotflow
