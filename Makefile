# Every target is a thin call of the command line; `make` alone lists them. Variables: make features DATA=photos
DATA    ?= digits
WEIGHTS ?= DEFAULT
CACHE   ?= latest
RUN     ?= latest
IMAGE   ?=
ARGS    ?=
PYTHON  ?= python3

VENV     := .venv
PIPELINE := $(VENV)/bin/python -m pipeline
READY    := $(VENV)/.ready
# A value as one word for the shell, whatever is in it: spaces, quotes, dollars.
quoted    = '$(subst ','\'',$(1))'

.DEFAULT_GOAL := help
.PHONY: help setup demo features head search baselines evaluate finetune predict export report trace list inspect bench test check clean

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '%s\n' $(call quoted,Variables: DATA=$(DATA) WEIGHTS=$(WEIGHTS) CACHE=$(CACHE) RUN=$(RUN) IMAGE=$(IMAGE) ARGS='more options')

setup: $(READY) ## make .venv and install into it (once)

# pip compiles modules one after the other, which took half of the time: here all cores do it, and what some packages
# bring that is not Python (templates) is left alone.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": give another with make PYTHON=python3.12")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment: install its venv package (on Debian and Ubuntu: python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV) (PyTorch is large: some minutes the first time)"
	$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[heif,onnx,optuna,timm,dev]'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

demo: $(READY) ## run the whole pipeline on handwritten digits, step by step
	$(PIPELINE) demo $(ARGS)

features: $(READY) ## stage one: DATA=folder|manifest.csv|digits WEIGHTS=...
	$(PIPELINE) extract $(call quoted,$(DATA)) --weights $(call quoted,$(WEIGHTS)) $(ARGS)

head: $(READY) ## stage two: train a head on CACHE=
	$(PIPELINE) train $(call quoted,$(CACHE)) $(ARGS)

search: $(READY) ## stage two: choose among many heads on CACHE=
	$(PIPELINE) search $(call quoted,$(CACHE)) $(ARGS)

baselines: $(READY) ## what simple methods make of CACHE=, on val (ARGS=--test: on test, too)
	$(PIPELINE) baseline $(call quoted,$(CACHE)) $(ARGS)

evaluate: $(READY) ## score RUN= on the test split, once
	$(PIPELINE) evaluate $(call quoted,$(RUN)) $(ARGS)

finetune: $(READY) ## stage three: fine-tune RUN= end to end
	$(PIPELINE) finetune $(call quoted,$(RUN)) $(ARGS)

predict: $(READY) ## classes of IMAGE= by RUN=
	@test -n $(call quoted,$(IMAGE)) || { echo "error: no image given: make predict IMAGE=photo.jpg [RUN=latest]" >&2; exit 2; }
	$(PIPELINE) predict $(call quoted,$(RUN)) $(call quoted,$(IMAGE)) $(ARGS)

export: $(READY) ## RUN= as a file for other programs (ARGS='--format onnx')
	$(PIPELINE) export $(call quoted,$(RUN)) $(ARGS)

report: $(READY) ## RUN= as one HTML file to send to people
	$(PIPELINE) report $(call quoted,$(RUN)) $(ARGS)

trace: $(READY) ## show the model pipeline: load, remove head, add head, train
	$(PIPELINE) trace $(ARGS)

list: $(READY) ## the runs side by side (ARGS=--caches: the caches)
	$(PIPELINE) list $(ARGS)

inspect: $(READY) ## what CACHE= holds and where it comes from
	$(PIPELINE) inspect $(call quoted,$(CACHE)) $(ARGS)

bench: $(READY) ## measure, each entry as a ratio of two ways
	$(PIPELINE) bench $(ARGS)

# A process of tests for each core, each with one thread: their arrays are so small that threads cost more than they give.
test: $(READY) ## run the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

check: $(READY) ## lint, format, types, import rule
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest tests/test_order.py

clean: ## remove what the tools made (not cache/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	find pipeline tests -name __pycache__ -prune -exec rm -rf {} +
