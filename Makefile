# edgedi: `make` prints what there is. Nothing needs to be installed beforehand but Python >= 3.10 and make.
PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python -m
# Two files of tests at a time, each in a process with one thread of its own.
TEST    = OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses=2 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-all check clean

help: ## print this list
	@echo 'usage: make TARGET [PYTHON=$(PYTHON)] [VENV=$(VENV)]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(VENV)/.edgedi-demo ## split three networks over two local workers and print the table
	$(VENV)/bin/edgedi-bench --demo

bench: $(VENV)/.edgedi-demo $(VENV)/.edgedi-openvino $(VENV)/.edgedi-onnxruntime ## measure the bars that this machine can decide, and say PASS, FAIL or UNDECIDED
	$(RUN) bench.run

test: $(VENV)/.edgedi-test ## run the tests, real worker processes included (under 20 minutes on 2 cores)
	$(TEST) --durations=10

test-all: $(VENV)/.edgedi-test ## run every test, the slow ones too, and every network: docs/exactness.md
	$(TEST) --durations=20 -m ''
	$(RUN) tests.exactness_report

check: $(VENV)/.edgedi-test ## check format, lint and types, run the fast tests
	VENV='$(VENV)' scripts/check

clean: ## remove caches and build outputs; delete .venv by hand to start afresh
	rm -rf build dist edgedi.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find edgedi tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras, so that a second run starts at once. An interrupted installation leaves none and goes on.
$(VENV)/.edgedi-%: setup.cfg pyproject.toml
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv '$(VENV)' || { \
	  echo 'No virtual environment could be made. On Debian: apt install python3-venv; or name another Python: make PYTHON=...' >&2; exit 1; }
	$(RUN) pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@
