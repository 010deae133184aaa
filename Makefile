# Everything is done from here. `make help` lists the targets.
#   make book               run every chapter afresh and build the book
#   make book FROM=stored   build the book from the outputs stored in the chapters
#   make test PYTEST_ARGS="-k frames"   arguments for pytest
# What is stored and tested is made with the pocket models, whatever EDUTOOLS_MODEL is.
# VENV: folder of the environment; PYTHON: the interpreter to make it with.

VENV ?= .venv
FROM ?= fresh
PYTEST_ARGS ?=
# A file of tests, or a chapter, on each core; one thread each. PYTEST_ARGS=-n0: one by one.
# Processes that wait for each other starve beside others: `ranks` comes before the rest.
ALONE = $(if $(PYTEST_ARGS),,--ignore tests/test_ranks.py)
SIDE_BY_SIDE = --numprocesses auto --maxprocesses 4 --dist loadfile
PYTHON ?=
PY := $(VENV)/bin/python

export VENV
ifneq ($(PYTHON),)
export PYTHON
endif
# Waiting threads sleep: on a busy machine this is several times faster.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup book outputs test ranks check slides pdf clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## make the environment in .venv (the other targets do it themselves)
	@sh scripts/setup.sh book,test

book: setup ## run every chapter and build the book; FROM=stored builds without running
	@$(PY) -m scripts.build_book --from $(FROM)

outputs: setup ## run every chapter and store its outputs in the notebook
	@env -u EDUTOOLS_MODEL $(PY) -m scripts.run_notebooks --store

test: setup $(if $(PYTEST_ARGS),,ranks) ## all tests: units, doctests, notebooks, the built site in a browser
	@env -u EDUTOOLS_MODEL OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
		$(PY) -m pytest $(SIDE_BY_SIDE) $(ALONE) $(PYTEST_ARGS)

ranks: setup ## the tests of several processes, which need the machine for themselves
	@env -u EDUTOOLS_MODEL $(PY) -m pytest tests/test_ranks.py

check: setup ## style, types and floors
	@sh scripts/setup.sh dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyright
	@$(PY) -c 'from importlinter.cli import *; lint_imports_command()'

slides: setup ## make the slides of the built book again
	@[ -f _build/html/book/intro.html ] || $(PY) -m scripts.build_book --from $(FROM)
	@$(PY) -m scripts.make_slides

pdf: setup ## print the book and its exercise sheets (needs Chromium)
	@[ -f _build/html/book/intro.html ] || $(PY) -m scripts.build_book --from $(FROM)
	@$(PY) -m scripts.make_pdf

clean: ## remove what was built; the environment stays
	@rm -rf _build dist .coverage .hypothesis
	@rm -rf .pytest_cache .ruff_cache .import_linter_cache
