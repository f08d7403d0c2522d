# make setup, make demo, make test. Overrides: PYTHON=python3.12 VENV=/elsewhere/venv

PYTHON ?= python3
VENV ?= .venv

# Set to nothing: byte code is cached even where the environment says otherwise, since
# compiling torch, transformers and vLLM anew costs every command many seconds.
export PYTHONDONTWRITEBYTECODE :=

BIN := $(VENV)/bin
STAMP := $(VENV)/.seqproc-setup
PINS := requirements/cpu.txt
BENCHES := $(notdir $(basename $(filter-out bench/_%,$(wildcard bench/*.py))))

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## create the environment; does nothing when it is up to date

# pip is renewed first: older ones take three times as long over the same files.
$(STAMP): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "seqproc needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile torch --constraint $(PINS)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement $(PINS)
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## sample, score and compare with the embedded model
	$(BIN)/seqproc demo

test: setup ## run all tests with coverage; choose some with ARGS="-k policy"
	$(BIN)/python -m pytest --cov --cov-fail-under=90 --cov-report=term:skip-covered $(ARGS)

check: setup ## lint, format, types and links; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python docs/check_links.py

bench: setup ## list the benchmarks; run one with RUN=name, with ARGS="..."
ifdef RUN
	$(BIN)/python bench/$(RUN).py $(ARGS)
else
	@for name in $(BENCHES); do echo "make bench RUN=$$name"; done
endif

clean: ## remove what builds, tests and checks leave behind; keeps the environment
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -name __pycache__ -prune -exec rm -rf {} +
