# GNU make. A fresh clone needs python3 (3.11 or newer), make and network access; the rest goes into .venv.

PYTHON ?= python3
HOST ?= $(or $(CONVLM_HOST),127.0.0.1)
PORT ?= $(or $(CONVLM_PORT),8000)
BUNDLE ?=
ARGS ?=
TEXT ?=
UPGRADE ?=
CASES ?= 200

# ONNX Runtime reports its use over the network unless told not to.
export ORT_DISABLE_TELEMETRY ?= 1

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# Stamps. The first holds the directory the environment was made in: a moved or copied one, or one
# whose interpreter is gone, is made anew, since its scripts would run something else.
MADE := $(VENV)/.made-in
SERVE := $(VENV)/.serve-ready
DEV := $(VENV)/.dev-ready
EVAL_VENV := .venv-eval
EVAL_PIP := $(EVAL_VENV)/bin/python -m pip --disable-pip-version-check
EVAL := $(EVAL_VENV)/.ready
ifneq ($(shell test -x $(PY) && cat $(MADE) 2>/dev/null),$(CURDIR))
.PHONY: $(MADE)
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help serve test test-old coverage measures wheel-test fuzz eval bench bench-scoring bench-fairness bench-products bench-bulk bench-generation \
	bench-load bench-long bench-overload bench-soak bench-cost bench-steps bench-peers bench-reload bench-hostile bench-faults lock-peers dev lint format lock clean

help: ## List the targets
	@echo 'Targets:'
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 20
	@echo 'Variables: PYTHON=$(PYTHON) HOST=$(HOST) PORT=$(PORT) BUNDLE=$(BUNDLE) ARGS=$(ARGS)'

serve: $(SERVE) ## Run the server in the foreground (HOST, PORT, BUNDLE)
	@exec $(VENV)/bin/convlm serve --host '$(HOST)' --port '$(PORT)' $(if $(BUNDLE),--bundle '$(BUNDLE)')

test: $(DEV) ## Run the tests (ARGS: more arguments for pytest)
	$(PY) -m pytest $(ARGS)

# In one process: programs that an emulated one starts are not emulated. The features with a minus are
# those that the emulator lacks and would warn of. One thread, since emulated ones wait for each other.
EMULATOR := qemu-x86_64
OLD_PROCESSOR := -cpu Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm
OLD_TESTS := tests/contract/test_golden.py tests/model/core/test_byte_products.py tests/engine/runtime/test_precision.py \
	tests/model/export/test_quantize.py::test_scores_in_8_bits_are_near_those_in_float32 \
	'tests/model/export/test_bundle_writer.py::test_the_graph_equals_pytorch[True-True-glu]' \
	tests/model/export/test_bundle_writer.py::test_a_model_of_single_token_kernels_exports
test-old: $(DEV) ## Run the golden, precision and export tests as a processor without VNNI (emulated; ARGS)
	@if command -v $(EMULATOR) >/dev/null; then \
		OMP_NUM_THREADS=1 $(EMULATOR) $(OLD_PROCESSOR) $(PY) -m pytest -p no:cacheprovider -p no:schemathesis -o timeout=0 $(OLD_TESTS) $(ARGS); \
	else \
		echo 'convlm: $(EMULATOR) is missing (Debian: qemu-user): no tests were run as an older processor'; \
	fi

coverage: $(DEV) ## Run the tests, and print which lines they run (twice as slow; ARGS)
	$(PY) -m pytest --cov=app --cov=model --cov-report=term-missing:skip-covered $(ARGS)

measures: $(DEV) ## Print the sizes of the code, its imports and calls, as a table (ARGS: --root DIR)
	$(PY) -m tests.docs.measures $(ARGS)

wheel-test: $(DEV) ## Serve from the wheel in an empty environment without PyTorch (PYTHON)
	.ci/wheel '$(PYTHON)'

fuzz: $(DEV) ## Make requests of the OpenAPI schema and check the answers (CASES: of each endpoint; ARGS)
	$(PY) -m pytest tests/api/http/test_fuzz.py --timeout 0 --cases '$(CASES)' $(ARGS)

eval: $(EVAL) ## Run lm-evaluation-harness against the server, beside PyTorch (large; ARGS)
	$(EVAL_VENV)/bin/python -m pytest tests/evaluation $(ARGS)

bench: $(DEV) text ## All ratios of one run, as Markdown, JSON and charts (TEXT: a file of lines; ARGS)
	$(PY) -m tests.bench.suite '$(TEXT)' $(ARGS)

bench-scoring: $(DEV) text ## Scoring over HTTP beside the raw engine loop (TEXT, ARGS)
	$(PY) -m tests.bench.scoring '$(TEXT)' $(ARGS)

bench-fairness: $(DEV) text ## Short requests beside a long text (TEXT, ARGS)
	$(PY) -m tests.bench.fairness '$(TEXT)' $(ARGS)

bench-load: $(DEV) text ## Throughput and latency against offered load (TEXT, ARGS)
	$(PY) -m tests.bench.load '$(TEXT)' $(ARGS)

bench-overload: $(DEV) text ## Goodput, refusals and recovery at up to ten times the capacity (TEXT, ARGS)
	$(PY) -m tests.bench.overload '$(TEXT)' $(ARGS)

bench-soak: $(DEV) text ## Half an hour with reloads, faults and clients that leave (TEXT, ARGS)
	$(PY) -m tests.bench.soak '$(TEXT)' $(ARGS)

bench-cost: $(DEV) text ## Processor time of a short request, beside another checkout (TEXT, ARGS: --other DIR)
	$(PY) -m tests.bench.cost '$(TEXT)' $(ARGS)

bench-products: $(DEV) text ## The raw engine loop beside its matrix products (TEXT, ARGS)
	$(PY) -m tests.bench.products '$(TEXT)' $(ARGS)

bench-bulk: $(DEV) text ## NDJSON through the bulk endpoint beside the raw loop (TEXT, ARGS)
	$(PY) -m tests.bench.bulk '$(TEXT)' $(ARGS)

.PHONY: text
text:
	@test -f '$(TEXT)' || { echo 'TEXT=file: a text file, whose lines are asked for' >&2; exit 1; }

dev: $(DEV) ## Install the development and training packages

bench-generation: $(DEV) ## Streams over HTTP beside the raw decode loop (ARGS)
	$(PY) -m tests.bench.generation $(ARGS)

bench-steps: $(DEV) ## A step of up to 1,000 streams, without HTTP (ARGS)
	$(PY) -m tests.bench.steps $(ARGS)

bench-long: $(DEV) text ## A long prompt with prompt_logprobs while others are served (TEXT, ARGS)
	$(PY) -m tests.bench.long_prompt '$(TEXT)' $(ARGS)

bench-reload: $(DEV) text ## Requests while the bundle is exchanged, and memory (TEXT, ARGS)
	$(PY) -m tests.bench.reload '$(TEXT)' $(ARGS)

bench-faults: $(DEV) ## Faults of the engine while others score, stream and send lines (ARGS)
	$(PY) -m tests.bench.faults $(ARGS)

bench-peers: $(DEV) text ## convlm beside generic servers with the same model (TEXT, ARGS)
	$(PY) -m tests.bench.peers.run '$(TEXT)' $(ARGS)

bench-hostile: $(DEV) ## Hostile clients, with normal ones beside them (ARGS: --short, --families NAMES, --json FILE)
	$(PY) -m tests.bench.hostile.run $(ARGS)

lint: $(DEV) ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy app model tests/bench/*.py tests/bench/hostile

format: $(DEV) ## Format the code and apply safe fixes
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

# The development lock comes first; the others are parts of it, with the same pins.
COMPILE = $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --excludes requirements/excludes.in --custom-compile-command 'make lock'
lock: $(DEV) ## Write the locks in requirements/ anew (UPGRADE=1: newest versions)
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml --extra train --extra dev \
		requirements/train.in requirements/build.in -o requirements/dev.txt
	$(COMPILE) -c requirements/dev.txt pyproject.toml --extra train \
		requirements/train.in requirements/build.in -o requirements/train.txt
	$(COMPILE) -c requirements/dev.txt pyproject.toml -o requirements/serve.txt
	$(COMPILE) -c requirements/dev.txt requirements/build.in -o requirements/build.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml --extra train --extra dev --extra eval \
		requirements/train.in requirements/build.in -o requirements/eval.txt

PEERS = client litserve mosec ray bentoml
lock-peers: $(DEV) ## Write the locks in tests/bench/peers/requirements/ anew (UPGRADE=1)
	@for name in $(PEERS); do \
		$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
			--generate-hashes --custom-compile-command 'make lock-peers' $(if $(UPGRADE),--upgrade) \
			tests/bench/peers/requirements/$$name.in -o tests/bench/peers/requirements/$$name.txt || exit 1; \
	done

clean: ## Remove the environment, caches and build output
	rm -rf $(VENV) $(EVAL_VENV) .venv-peers build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find app model tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@command -v '$(PYTHON)' >/dev/null || { \
		echo 'convlm: no "$(PYTHON)" found; install Python 3.11 or newer, or name it with PYTHON=...' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "convlm: Python 3.11 or newer is needed, but $(PYTHON) is $$('$(PYTHON)' -V 2>&1); name another with PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'convlm: $(PYTHON) lacks the venv module; install it (Debian, Ubuntu: python3-venv)' >&2; exit 1; }
	'$(PYTHON)' -m venv --clear $(VENV)
	@pwd -P > $@

# Dependencies by hash, then the project itself, built with the pinned setuptools.
$(SERVE): $(MADE) requirements/build.txt requirements/serve.txt pyproject.toml
	$(PIP) install --require-hashes -r requirements/build.txt -r requirements/serve.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Contains all that serving needs, with the same pins, hence both stamps.
$(DEV): $(MADE) requirements/build.txt requirements/serve.txt requirements/dev.txt requirements/torch.txt pyproject.toml
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install -r requirements/torch.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(SERVE) $@

# An environment beside the other: the evaluation tools need other versions of some packages.
# The lock is complete; pip's resolver does not accept hashes for a package wanted with an extra.
$(EVAL): requirements/eval.txt requirements/torch.txt pyproject.toml
	'$(PYTHON)' -m venv --clear $(EVAL_VENV)
	$(EVAL_PIP) install --no-deps --require-hashes -r requirements/eval.txt
	$(EVAL_PIP) install -r requirements/torch.txt
	$(EVAL_PIP) install --no-deps --no-build-isolation -e .
	@touch $@
