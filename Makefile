# Everything a fresh machine needs: python3, make and a package index. uv is fetched into .uv/ when it is not on the PATH.
.DEFAULT_GOAL := help
SHELL := /bin/bash
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --frozen --all-extras --all-groups
# Two test processes of one thread each keep two cores busy; torch's own threads would fight over them. A file's tests go
# to one process, which sets up what they share, and imports what they need, once.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help env demo test coverage test-slow test-oldest lint types format package audit licences nightly docs docs-open benchmark clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.uv/bin/uv:
	python3 tools/get_uv.py .uv

env: $(filter .uv/%,$(UV))  ## the environment, from uv.lock, into .venv
	$(UV) sync --frozen --all-extras --all-groups --quiet

demo: env  ## the main job: every method beside its controls on digits, with a report (about 2 minutes)
	$(RUN) latephase demo

test: env  ## the test suite
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist loadfile -m "not slow" --durations=25

# Of its own, because counting lines takes a third of the tests' time again.
coverage: env  ## the test suite, with the lines that it covers
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist loadfile -m "not slow" --cov --cov-report=term

test-slow: env  ## the tests that take longer than a few seconds each
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist loadfile -m slow

test-oldest:  ## the core's tests on the oldest PyTorch, NumPy and pytest that pyproject.toml allows (downloads 3 GB)
	tools/test_oldest.sh

nightly: test-slow  ## the slow tests, and the campaigns of robustness/ at full size (hours)
	$(RUN) python robustness/fuzz.py --examples 20000
	$(RUN) python robustness/kill.py --json results/robustness/kill.json
	$(RUN) python robustness/full_disk.py --json results/robustness/full-disk.json
	$(RUN) python robustness/corruption.py

lint: env  ## ruff: rules and formatting
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: env  ## mypy, strict on the core
	$(RUN) mypy

format: env  ## apply ruff's fixes and formatting
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

package: env  ## wheel and sdist: built twice, looked into, installed in fresh environments
	$(RUN) python tools/package.py

audit: env  ## known vulnerabilities of every package in uv.lock (asks PyPI; 3 when it does not answer)
	$(RUN) python tools/audit.py

licences: env  ## licences of every locked package against the list in tools/supply_chain.toml
	$(RUN) python tools/licences.py

docs: env  ## the documentation site, into build/docs; a warning is an error
	OMP_NUM_THREADS=1 $(RUN) sphinx-build -E -n -W --keep-going -q -d build/doctrees -c docs . build/docs

docs-open: docs  ## the same, and a browser on it
	python3 -m webbrowser build/docs/index.html

benchmark: env  ## late-phase against plain training, paired in one process
	$(RUN) python benchmarks/throughput.py

clean:  ## remove what was built here
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* dist build
