# Everything starts from Python 3.11 or newer alone: each target makes the environment that it needs, once.
# Another interpreter or place: make PYTHON=python3.12 VENV=/somewhere/venv test

PYTHON ?= python3
VENV ?= .venv
FLOOR_VENV ?= .venv-floor
BUDGET ?= 2h
STUDY_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
FLOOR_BIN := $(FLOOR_VENV)/bin
INSTALL := -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-distributed test-gpu test-floor torture format benchmark gpu study docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo-installed  ## pre-train on images that come with scikit-image, evaluate, draw: minutes on 2 CPU cores
	@$(BIN)/cjepa demo

test: $(VENV)/.test-installed  ## ruff, mypy, and all tests that need neither a GPU nor minutes each: what CI runs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest $(PYTEST_FLAGS) -m 'not slow and not gpu and not torture and not distributed'

test-slow: $(VENV)/.test-installed  ## the tests that take minutes each
	@$(BIN)/pytest $(PYTEST_FLAGS) -m 'slow and not gpu'

test-distributed: $(VENV)/.test-installed  ## 1 to 4 ranks, DDP and FSDP2, against one process; and a job that loses a rank
	@$(BIN)/pytest -m distributed
	@$(BIN)/python -m benchmarks.two_hosts --steps 20

test-gpu: $(VENV)/.test-installed  ## the tests that need a CUDA device
	@$(BIN)/pytest -m gpu

test-floor: $(FLOOR_VENV)/.installed  ## the tests with the lowest versions that pyproject.toml admits
	@$(FLOOR_BIN)/pytest $(PYTEST_FLAGS) -m 'not slow and not gpu and not torture and not distributed'

torture: $(VENV)/.test-installed  ## kill a run 50 times, damage 20 checkpoints, compare its end with an undisturbed one
	@$(BIN)/pytest -m torture tests/torture

format: $(VENV)/.test-installed  ## let ruff write its fixes and its formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

benchmark: $(VENV)/.test-installed  ## time the training step and embedding, measure parity; needs a machine that does nothing else
	@$(BIN)/python -m benchmarks.step
	@$(BIN)/python -m benchmarks.embed
	@$(BIN)/python -m benchmarks.parity

study: $(VENV)/.test-installed  ## continue the small-scale study (BUDGET=2h, STUDY_FLAGS="--data cifar10=DIR"), then write docs/results.md
	@$(BIN)/python -m benchmarks.study --budget $(BUDGET) $(STUDY_FLAGS) || [ $$? -eq 75 ]
	@$(BIN)/python -m benchmarks.study --report

gpu: $(VENV)/.test-installed  ## all that waits for a GPU, in calls of under 10 minutes; GPU_FLAGS="--reference DIR" adds a peer
	@until $(BIN)/python -m benchmarks.gpu --budget 540 $(GPU_FLAGS); do test $$? -eq 75 || exit 1; done

docs: $(VENV)/.test-installed  ## the reference of the Python API as pages, in build/reference
	@$(BIN)/python docs/reference.py build/reference

clean:  ## remove environments, caches and build products; runs are kept
	rm -rf $(VENV) $(FLOOR_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# A stamp says which extra an environment holds, so that a second call installs nothing.
$(VENV)/.demo-installed: pyproject.toml requirements/constraints.txt
	$(call environment,$(VENV))
	@$(BIN)/python $(INSTALL) -c requirements/constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test-installed: pyproject.toml requirements/constraints.txt
	$(call environment,$(VENV))
	@$(BIN)/python $(INSTALL) -c requirements/constraints.txt -e '.[test]'
	@touch $(VENV)/.demo-installed $@

$(FLOOR_VENV)/.installed: pyproject.toml requirements/floor.txt
	$(call environment,$(FLOOR_VENV))
	@$(FLOOR_BIN)/python $(INSTALL) -c requirements/floor.txt -e '.[test,wandb]'
	@touch $@

define environment
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not installed; cjepa needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), but cjepa needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; \
	  exit 2; }
	@echo "installing into $(1); torch is large, so this takes minutes"
	@$(PYTHON) -m venv $(1) || { \
	  echo "$(PYTHON) could not make $(1); on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
endef
