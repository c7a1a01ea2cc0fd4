# Two commands: `make simulate` and `make test`. Each creates the environment on first use; a second run does not reinstall.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
ARGS ?=
# `make simulate compare=all rounds=20`: dsm-simulate's commonest keys pass through as make variables; ARGS takes any.
KEYS = $(foreach key,compare sites rounds model seed name sites_dir eval_dir,$(if $($(key)),$(key)=$($(key))))

.PHONY: simulate test test-slow evidence lint types floors check proto clean

simulate: $(STAMP)
	$(BIN)/dsm-simulate $(KEYS) $(ARGS)

test: $(STAMP)
	$(BIN)/pytest

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

# Of the deployed evidence what fits into CI beside the fast tests: who is refused, the proxy, three sites from `init` to
# checkpoint. Tests whose name says `killed` train once more each, for minutes, and stay with test-slow.
evidence: $(STAMP)
	$(BIN)/pytest -m slow -k "not killed" tests/deployment/test_refusals.py tests/deployment/test_proxy.py \
	  tests/deployment/test_consortium.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

floors: $(STAMP)
	$(BIN)/lint-imports

check: lint types floors test

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. strategies/proto/consortium.proto

$(STAMP): pyproject.toml setup.py $(wildcard dsm_core/model/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
