# One command for each thing. `make demo` and `make test` need nothing but Python 3.11 (or newer) and make.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
GOLD   := src/errata/world/gold
HOW    ?= --from world --follow 700
SMALLER := --width 320 --heads 4 --persons 200 --rows 8
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-slow lint format types bench table architectures models gold mutants docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## edit ten facts of the bundled model, measure it, undo it: a minute or two
	@$(BIN)/errata demo $(ARGS)

test: $(VENV)/.installed-dev  ## the tests
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: none is marked slow

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

format: $(VENV)/.installed-dev  ## ruff: mends what it can
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

types: $(VENV)/.installed-dev  ## pyright
	@$(BIN)/pyright

bench: $(VENV)/.installed-dev  ## speed and memory, as ratios against the plain reference
	@found=$$(ls benchmarks/*.py 2>/dev/null) || { echo "there are no benchmarks yet"; exit 0; }; \
	for file in $$found; do echo "== $$file"; $(BIN)/python $$file $(ARGS) || exit 1; done

mutants: $(VENV)/.installed-dev  ## changes the code in small ways and says which no test notices: hours, resumes; ARGS="'errata.patch*'" for a part
	@$(PIP) -e ".[mutants]"
	@OMP_NUM_THREADS=1 $(BIN)/mutmut run $(ARGS); $(BIN)/mutmut results

table: $(VENV)/.installed  ## docs/methods.md: every method on the bundled model; measures what docs/table.tar.xz does not hold: hours for all, and the same command resumes
	@test -e docs/table.jsonl || test ! -e docs/table.tar.xz || $(BIN)/python -m tarfile -e docs/table.tar.xz docs
	@$(BIN)/errata bench docs/table.toml -o docs/table.jsonl $(ARGS)
	@$(BIN)/errata report docs/table.jsonl -o docs/methods.md --intro docs/methods.intro.md --force
	@cd docs && $(abspath $(BIN))/python -m tarfile -c table.tar.xz table.jsonl

architectures: $(VENV)/.installed  ## docs/architectures.md: every method on three models, two of them trained first; hours, and the same command resumes
	@$(BIN)/errata world train .worlds/llama --architecture llama --layers 10 $(SMALLER) --world-seed 1 --seed 1 --vocab 2400 --learn 650 --move 350 --follow 400
	@$(BIN)/errata world train .worlds/gpt2 --layers 6 $(SMALLER) --world-seed 2 --seed 2 --vocab 2600 --learn 500 --move 350 --follow 150
	@$(BIN)/errata bench docs/architectures.toml -o docs/architectures.jsonl $(ARGS)
	@$(BIN)/errata report docs/architectures.jsonl -o docs/architectures.md --intro docs/architectures.intro.md --force

models: $(VENV)/.installed-dev  ## docs/models.md: a fact edited in a tiny model of every family of transformers; minutes
	@PYTHONPATH=src:tests $(BIN)/python tests/sweep.py $(ARGS)

gold: $(VENV)/.installed  ## what edits are measured against: the bundled model taught twice the world in which 100 edits hold: an hour or two, and the same command resumes; HOW= for trainings from random weights: hours more
	@$(BIN)/errata world edits $(GOLD)/edits.jsonl --force
	@for seed in 0 1; do $(BIN)/errata world train .worlds/gold-$$seed --edits $(GOLD)/edits.jsonl --seed $$seed $(HOW) || exit 1; done
	@$(BIN)/errata world gold .worlds/gold-0 .worlds/gold-1 -o $(GOLD)/gold.safetensors --force
	@cp .worlds/gold-0/recipe.json $(GOLD)/recipe.json

docs: $(VENV)/.installed-dev  ## the documentation, as pages in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict $(ARGS)
	@echo "wrote site/: open site/index.html"

clean:  ## removes caches and builds, and keeps the environment
	@rm -rf dist build site mutants .cache .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Errata needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1)."; \
	  echo "Say which one to take: make PYTHON=python3.11"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Errata into $(VENV) (once; torch is large)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Errata and its tools into $(VENV) (once; torch is large)"
	@$(PIP) -e ".[dev]"
	@touch $(VENV)/.installed $@
