# Everything a fresh machine needs: python3, make and a package index. uv is fetched into .uv/ when it is not on the PATH.
.DEFAULT_GOAL := help
SHELL := /bin/bash
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --frozen --all-extras --all-groups
# Two test processes of one thread each keep two cores busy; torch's own threads would fight over them. A file's tests go
# to one process, which sets up what they share, and imports what they need, once.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help env demo test test-slow lint types format benchmark clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.uv/bin/uv:
	python3 tools/get_uv.py .uv

env: $(filter .uv/%,$(UV))  ## the environment, from uv.lock, into .venv
	$(UV) sync --frozen --all-extras --all-groups --quiet

demo: env  ## the main job: every method beside its controls on digits, with a report (about 2 minutes)
	$(RUN) latephase demo

test: env  ## the test suite, with coverage
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist loadfile -m "not slow" --durations=25 --cov --cov-report=term

test-slow: env  ## the tests that take longer than a few seconds each
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist loadfile -m slow

lint: env  ## ruff: rules and formatting
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: env  ## mypy, strict on the core
	$(RUN) mypy

format: env  ## apply ruff's fixes and formatting
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

benchmark: env  ## late-phase against plain training, paired in one process
	$(RUN) python benchmarks/throughput.py

clean:  ## remove what was built here
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* dist build
