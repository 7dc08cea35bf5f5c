# From nothing but Python (3.10 to 3.13) and make:
#   make demo    segment a real scan with the bundled model into demo-output/
#   make test    the whole test suite
#   make lint    format, lint and types
#   make bench   timings, as ratios of two things measured in one run
#   make bench-accuracy    our model beside nnU-Net, on the same cases in the same time (an hour of training)
#   make venv    only the environment; make clean removes it
# PYTHON=python3.12 chooses the interpreter, VENV=folder where the environment goes.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt
BENCHES := $(sort $(wildcard Testing/bench/bench_*.py))

.PHONY: demo test lint bench bench-accuracy venv clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-core
	$(PY) -m MaskSAMCore.demo -o demo-output

test: $(VENV)/.stamp-test
	$(PY) -m pytest -q -n 2

lint: $(VENV)/.stamp-test
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.stamp-core
	@test -n "$(BENCHES)" || { echo "There is no Testing/bench/bench_*.py."; exit 1; }
	@for file in $(BENCHES); do echo "== $$file"; $(PY) $$file || exit 1; done

bench-accuracy: $(VENV)/.stamp-bench
	$(PY) Testing/bench/study_accuracy.py bench-output/accuracy

venv: $(VENV)/.stamp-core

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	{ echo "$(PYTHON) is no Python 3.10 to 3.13. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the files that decided what was installed; a change of theirs installs anew.
$(VENV)/.stamp-core: $(SOURCES) | $(PY)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.stamp-test: $(SOURCES) | $(PY)
	$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@ $(VENV)/.stamp-core

$(VENV)/.stamp-bench: $(SOURCES) | $(PY)
	$(PIP) install -c constraints.txt -e ".[bench]"
	@touch $@ $(VENV)/.stamp-core

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
