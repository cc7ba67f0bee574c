# Every target runs in .venv, which is created on first use and updated when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers
FIGURE ?= all
BUDGET ?= cpu
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup train train-mnist reproduce-paper test test-fast lint format bench bench-peers docs wheel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## Create .venv with the tested versions of all packages

train: $(READY) ## Meta-train the LSTM on quadratics, compare it with tuned baselines, plot (ARGS="key=value …")
	$(BIN)/python -m l2l_runner.train optimizee=quadratic device=cpu $(ARGS)

train-mnist: $(READY) ## The same on the MNIST MLP, first on images averaged to 14×14 (25 minutes on 2 cores)
	run=outputs/mnist-$$(date +%Y-%m-%d-%H-%M-%S); \
	$(BIN)/python -m l2l_runner.train optimizee=mnist optimizee.pool=2 meta.steps=600 meta.lr=0.005 \
		meta.schedule=constant meta.coordinates=null evaluate=false hydra.run.dir=$$run-14x14 $(ARGS) && \
	$(BIN)/python -m l2l_runner.train experiment=paper_mnist init=$$run-14x14 hydra.run.dir=$$run $(ARGS)

reproduce-paper: $(READY) ## Reproduce the paper's figures (FIGURE=4 BUDGET=quick|cpu|paper JOBS=2)
	$(BIN)/python -m l2l_runner.reproduce figure=$(FIGURE) budget=$(BUDGET) jobs=$(JOBS) device.threads=1 $(ARGS)

test: lint ## Run lint, type checks and all tests (ARGS="-k PATTERN" for some of them)
	$(BIN)/python -m pytest -n auto $(ARGS)

test-fast: lint ## Run lint, type checks and unit tests, without the whole runs
	$(BIN)/python -m pytest -n auto -m "not slow" tests/unit $(ARGS)

lint: $(READY) ## Run lint, type checks, and the check of the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY) ## Format the code and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Compare the cost of a meta-training window with eager PyTorch (10 minutes on 2 cores; ARGS=--quick: 2)
	$(BIN)/python -m benchmarks.bench $(ARGS)

$(PEERS)/.ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check 'jax[cpu]'
	@touch $@

bench-peers: $(READY) $(PEERS)/.ready ## The same with JAX, in a separate environment (.venv-peers)
	$(BIN)/python -m benchmarks.bench --jax-python $(PEERS)/bin/python $(ARGS)

docs: $(READY) ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

wheel: $(READY) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove the environment and caches (outputs/ stays)
	rm -rf .venv $(PEERS) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
