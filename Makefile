# Everything a contributor or CI runs. Needs python3.11 with pip; everything else goes into $(VENV).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
BENCH_VENV ?= .venv-bench
PACKAGES := reference_model calibration swinv2_deploy

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check format bench golden clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

# Stamps, made anew when the requirements change: what a user has, what the demo and what a contributor have on top.
$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.demo: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[qat,report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.dev  ## Make .venv with the packages, editable, and every development tool

demo: $(VENV)/.demo  ## Export, quantize, prune and verify the bundled model, from nothing
	$(BIN)/swinv2-deploy export --out build/demo/nano --force
	$(BIN)/swinv2-deploy quantize --model build/demo/nano --out build/demo/nano-int8 --force
	$(BIN)/swinv2-deploy prune --model build/demo/nano --params 0.2 --no-recover --out build/demo/nano-pruned --force
	$(BIN)/swinv2-deploy quantize --method qat --model build/demo/nano-pruned --out build/demo/nano-pruned-int8 --uint8 never --force
	$(BIN)/swinv2-deploy verify --model build/demo/nano-int8 --with build/demo/nano-pruned-int8

# One thread for each worker: more of them would wait for each other's cores.
test: $(VENV)/.dev  ## Run the tests; no GPU and no network needed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

check: $(VENV)/.dev  ## Formatting, lint, types and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev  ## Format the code and sort the imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# timm, transformers, OpenVINO and NNCF beside this checkout, apart from everything else: 6 GB with PyTorch's default build.
$(BENCH_VENV)/.peers: benchmarks/peers/requirements.txt benchmarks/peers/constraints.txt
	test -x $(BENCH_VENV)/bin/python || "$(PYTHON)" -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet -r benchmarks/peers/requirements.txt -c benchmarks/peers/constraints.txt
	@touch $@

bench: $(VENV)/.dev $(BENCH_VENV)/.peers  ## Compare speed with other toolchains (PEERS='--quick ...'), then run every other benchmark
	$(BENCH_VENV)/bin/python -m benchmarks.peers $(PEERS)
	set -e; for script in $(wildcard benchmarks/bench_*.py); do $(BIN)/python $$script; done

golden: $(VENV)/.dev  ## Rewrite the golden files (tests/golden/make_*.py); review the diff
	set -e; for script in $(wildcard tests/golden/make_*.py); do $(BIN)/python $$script; done

clean:  ## Remove .venv, .venv-bench, build/, dist/ and all caches
	rm -rf $(VENV) $(BENCH_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(PACKAGES) benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
