# Every target sets up what it needs: a fresh clone, Python 3.11+ and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo test test-all lint types unit oldest docs format figures lock clean

help:             ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(READY)   ## create .venv with everything the project needs

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)    ## build, verify, serve without torch, embed a real image
	$(BIN)/python -m benchmarks.demo

test: lint types unit  ## everything CI runs

test-all: lint types $(READY)  ## test, and what takes minutes: clusters, slides, kills
	$(BIN)/python -m pytest

lint: $(READY)    ## ruff: style and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)   ## mypy, strict
	$(BIN)/mypy

unit: $(READY)    ## pytest, but for what takes minutes
	$(BIN)/python -m pytest -m "not heavy"

# What the oldest versions can break: export, passes, precisions, backends.
OLDEST := pipeline passes rewritten_graphs marked_attention half int8 openvino binding timm_family transformers_backbones radiology

oldest: $(READY)  ## the tests of building and serving, with the oldest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-oldest
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest --resolution lowest-direct --editable '.[export,gpu,openvino,transformers,radiology,embed,wsi]'
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest matplotlib psutil pytest pytest-timeout scikit-image tifffile uv
	$(VENV)-oldest/bin/python -m pytest -W default -m "not heavy" $(OLDEST:%=tests/test_%.py)

docs: $(READY)    ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(READY)  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(READY) ## measure the README's figures and write benchmarks/reports/
	$(BIN)/python -m benchmarks.figures

lock: $(READY)    ## pin .ci/constraints.txt to what .venv holds
	$(BIN)/uv pip freeze --quiet --python $(BIN)/python --exclude-editable > $(VENV)/frozen
	{ echo '# Written by `make lock`. To upgrade: empty this file, remove .venv, run `make lock`.'; \
	  grep -v '^pip==' $(VENV)/frozen; } > .ci/constraints.txt
	@touch $(READY)

clean:            ## remove the environment and what was built
	rm -rf $(VENV) $(VENV)-eva $(VENV)-eva.lock $(VENV)-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo
	find artifacts -mindepth 1 ! -name README.md -delete
