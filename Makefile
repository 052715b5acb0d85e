# make demo and make test set up all they need. Settings: PYTHON, VENV, PYTEST_ARGS, JOBS; for the set-up see
# tools/_matrix/torch_build.py.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SITE := $(VENV)/.site
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
MATRIX := $(PY) tools/matrix.py --jobs $(JOBS)

ifeq ($(firstword $(MAKECMDGOALS)),next-release)
$(filter-out next-release,$(MAKECMDGOALS)): # the release is no goal of its own
	@:
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint docs matrix matrix-ci matrix-stock next-release newest support-table gpu simulated bench faults fuzz wheel clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY) ## make the environment in .venv, from constraints.txt

$(READY): constraints.txt pyproject.toml setup.py $(wildcard zamba_compat/cpu/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make needs Python 3.11 or newer: make PYTHON=...")'
	@echo "setting up $(VENV), once (minutes) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools wheel packaging
	@$(PY) tools/_matrix/torch_build.py constraints.txt
	@$(PIP) --no-build-isolation --editable '.[quant,eval,test,dev]'
	@touch $@

demo: $(READY) ## a merged checkpoint that stock transformers cannot load: load it, generate, measure
	$(PY) tools/demo.py

lint: $(READY) ## ruff, mypy, and who imports whom
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

test: lint ## lint, then all tests with the release in constraints.txt, JOBS files at a time
	$(PY) -m pytest --numprocesses=$(JOBS) --dist=loadfile --record=build/reports/tests.jsonl $(PYTEST_ARGS)

docs: $(SITE) ## the documentation as a site, strict, into build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

$(SITE): $(READY)
	@$(PIP) --no-build-isolation --editable '.[docs]'
	@touch $@

matrix: $(READY) ## conformance under every release, with and without the import; writes the support table
	$(MATRIX) --keep-going --json docs/support.json
	$(MATRIX) --stock --keep-going --json docs/support.json
	$(MAKE) support-table

matrix-ci: $(READY) ## conformance under the releases that CI runs
	$(MATRIX) --ci --keep-going $(MATRIX_ARGS)

matrix-stock: $(READY) ## what every release gets wrong without the import: what an adapter mends must fail
	$(MATRIX) --stock --keep-going --json docs/support.json

next-release: $(READY) ## take a release in: make next-release VERSION=X.Y.Z (or make next-release X.Y.Z)
	$(PY) tools/next_release.py $(or $(VERSION),$(filter-out next-release,$(MAKECMDGOALS)))

newest: $(READY) ## the conformance suite with the newest of everything that the package index serves
	$(PY) tools/newest.py

support-table: $(READY) ## make docs/support.md's and docs/adapters.md's tables from results and bounds
	$(PY) tools/matrix.py --no-run --write-docs

simulated: $(READY) ## the path with fused kernels on stand-ins, ten releases beside stock; writes docs/gpu.md
	$(PY) tools/check_simulated.py

gpu: $(READY) ## on a GPU: tests/cuda, and times beside stock and a Llama; with mamba-ssm and causal-conv1d if they install
	$(PY) -c 'import torch; torch.cuda.is_available() or exit("no GPU, or a build of PyTorch without CUDA: $(PY) -m pip install torch")'
	-timeout 300 $(PY) -m pip install --no-build-isolation mamba-ssm causal-conv1d
	$(PY) -m pytest tests/cuda -q -rs
	$(PY) tools/bench_inference.py --device cuda --lengths 1024 4096 16384

bench: $(READY) ## every tools/bench*.py
	@set -e; for script in tools/bench*.py; do echo "== $$script"; $(PY) $$script; done

faults: $(READY) ## hundreds of crashes per command and two minutes of fuzzing; writes docs/faults.*
	$(PY) tools/faults.py

fuzz: $(READY) ## fuzz the readers for ten minutes; FUZZ_ARGS=--atheris where atheris is installed
	$(PY) tools/fuzz.py --seconds 600 $(FUZZ_ARGS)

wheel: $(READY) ## sdist, a wheel of this platform (manylinux) and one for any, without the engine, into dist/
	rm -rf dist build/lib build/bdist.*
	$(PY) -m build --no-isolation
	rm -rf build/lib build/bdist.*
	ZAMBA_COMPAT_PURE=1 $(PY) -m build --no-isolation --wheel
	@for wheel in dist/*-linux_*.whl; do test ! -e "$$wheel" || { \
	  PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --wheel-dir dist "$$wheel" && rm "$$wheel"; } || exit 1; done
	@ls dist

clean: ## remove everything that make has made
	rm -rf $(VENV) .overlays build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
