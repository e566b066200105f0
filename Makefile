# make demo    the whole job on real data, offline, in a minute or two
# make test    lint, types and tests
# make bench   benchmarks, one RESULT line per goal
# make torture kills, faults, mutated files, hostile folders and planted bugs, one RESULT line per goal; twenty minutes
#
# Everything is installed into .venv, once. TORCH chooses another build of torch, for example
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cu130"

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench torture clean

demo: $(VENV)/demo.stamp
	$(BIN)/fusemix demo

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	missed=0; for file in benchmarks/bench_*.py; do $(BIN)/python $$file || missed=1; done; exit $$missed

torture: $(VENV)/dev.stamp
	missed=0; for file in benchmarks/torture_*.py; do $(BIN)/python $$file || missed=1; done; exit $$missed

$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fusemix needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) fusemix-demo .pytest_cache .mypy_cache .ruff_cache
