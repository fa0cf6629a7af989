# make demo    evaluate the shipped policies, sequential DDPM against ASD, in a few minutes
# make test    the tests that every change must pass (no GPU needed)
# make paper-table  the paper's table: every task, 100 seeds x 3 repeats (days; goes on where it was)
# make check   lint, types and tests: what CI runs
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Two OpenMP threads on shared cores spin: one thread a process, and processes in parallel.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

# The families of policies, the tasks of each for which there is one, and further settings, as in
# PAPER='seeds=10 repeats=1'
POLICIES ?= chi_unet chi_transformer reuss_beso
TASKS ?= lift can square transport tool_hang
PAPER ?=

.PHONY: demo paper-table test test-slow lint types check environment clean

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12), \
	  "the simulators need Python 3.10 to 3.12, found " + sys.version.split()[0] + \
	  ": name another with PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	# The pip that comes with Python 3.10 tries versions for half an hour.
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -c constraints.txt torch
	$(PY) -m pip install --quiet -c constraints.txt -e '.[sim,eval,train,dev]'
	touch $@

demo: $(READY)
	$(PY) -m eval.success --config-name demo

# A family that fails keeps no other from running; Ctrl-C ends them all.
paper-table: $(READY)
	@test -n "$(strip $(TASKS))" || { echo "TASKS: expected some names" >&2; exit 2; }
	@test -n "$(strip $(POLICIES))" || { echo "POLICIES: expected some names" >&2; exit 2; }
	@for task in $(TASKS); do found=; for policy in $(POLICIES); do \
	    test -d checkpoints/$${task}_$$policy && found=1; done; test -n "$$found" || \
	  { echo "TASKS: of '$$task' there is none of the policies $(POLICIES) in checkpoints/" >&2; \
	    exit 2; }; done
	@for policy in $(POLICIES); do found=; for task in $(TASKS); do \
	    test -d checkpoints/$${task}_$$policy && found=1; done; test -n "$$found" || \
	  { echo "POLICIES: of '$$policy' there is none for the tasks $(TASKS) in checkpoints/" >&2; \
	    exit 2; }; done
	failed=0; for policy in $(POLICIES); do \
	  tasks=$$(for task in $(TASKS); do \
	    test -d checkpoints/$${task}_$$policy && echo $$task; done | paste -sd, -); \
	  $(PY) -m eval.success --config-name paper policy=$$policy "task=[$$tasks]" $(PAPER) \
	    || { test $$? -eq 130 && exit 130; failed=1; }; done; exit $$failed

test: $(READY)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)
	$(PY) -m pytest -m slow

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY)
	$(PY) -m mypy

check: lint types test

clean:
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
