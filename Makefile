# Everything a user or contributor runs. The virtual environment is made once, and again when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
DEMO_FLAGS ?=
SCRATCH ?= benchmarks/scratch

.PHONY: help demo test test-all lint bench clean

help:
	@echo "make demo      the whole job on synthetic figures, in about four minutes"
	@echo "make test      the tests"
	@echo "make test-all  the long tests too: many kills, a SLURM cluster, two machines (Debian's packages: see .ci/run)"
	@echo "make lint      style, format, types and shell scripts"
	@echo "make bench     the loader against its peers: make bench CSV=train.csv IMAGES=images/"
	@echo "make clean     remove the virtual environment and what the demo wrote"

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V): set PYTHON=python3.12, say" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/python -m pipeline.demo $(DEMO_FLAGS)

test: $(VENV)/.installed
	$(VENV)/bin/pytest

test-all: $(VENV)/.installed
	$(VENV)/bin/pytest -m ""

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck .ci/run launch/*

bench: $(VENV)/.installed
	@test -n "$(CSV)" -a -n "$(IMAGES)" || { echo "usage: make bench CSV=train.csv IMAGES=images/" >&2; exit 2; }
	$(VENV)/bin/python benchmarks/loader.py --csv "$(CSV)" --images "$(IMAGES)" --scratch "$(SCRATCH)"

clean:
	rm -rf $(VENV) demo demo-short .pytest_cache .mypy_cache .ruff_cache .hypothesis
