# Everything below makes and reuses one virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-from-pyproject
DEMO_DIR ?= demo-output
# For table1: a folder with images/, labels/ and splits.json, and options of training/reproduce.py.
DATA ?=
TABLE1 ?=
# Options of benchmarks/run.py.
BENCH ?=

.PHONY: help setup demo test coverage mutants table1 lint bench docs clean

help:
	@echo "make demo   set up, then find and count nuclei on a synthetic slide (into $(DEMO_DIR)/)"
	@echo "make test   set up, then run the tests"
	@echo "make coverage  set up, then run the tests and list the lines that none runs"
	@echo "make mutants   set up, then break what guards users' data: a test must notice each"
	@echo "make table1 DATA=FOLDER  set up, then train and measure the paper's models and ablations"
	@echo "            (TABLE1='--width 64 --seeds 3': more options, see docs/training.md)"
	@echo "make lint   set up, then ruff, mypy, codespell, the layers of packages, Dockerfile, scripts"
	@echo "make bench  set up, then measure speed and memory (into benchmarks/results/;"
	@echo "            BENCH='--model default-40x --repeat 5': more options, see benchmarks/run.py)"
	@echo "make docs   set up, then build the documentation as a site (into site/)"
	@echo "make clean  remove the virtual environment and the demo's output"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@echo "== setting up $(VENV) (once; torch is a large download)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	@touch $(STAMP)

demo: setup
	@echo "== qpnuclei demo $(DEMO_DIR)"
	$(BIN)/qpnuclei demo $(DEMO_DIR)

# A process per core: threads of torch beside them would only wait for each other.
test: setup
	@echo "== running the tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

coverage: setup
	@echo "== running the tests, with the lines that none of them runs"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --cov --cov-report=term-missing:skip-covered

mutants: setup
	@echo "== breaking what guards users' data, place by place"
	$(BIN)/python -m tests.mutation.run

table1: setup
	@test -n "$(DATA)" || { echo "make table1 DATA=FOLDER (images/, labels/, splits.json)"; exit 2; }
	@echo "== training/reproduce.sh $(DATA) $(TABLE1)"
	PYTHON=$(BIN)/python training/reproduce.sh $(DATA) $(TABLE1)

lint: setup
	@echo "== ruff, mypy, import-linter, codespell, hadolint, shellcheck"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint packaging/Dockerfile
	$(BIN)/shellcheck packaging/slurm/*

bench: setup
	@echo "== benchmarks: qpnuclei run, then detections in QuPath projects (some minutes)"
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python -m benchmarks.qupath_io --sizes 10000 100000

docs: setup
	@$(BIN)/python -c "import material, mkdocstrings, nbconvert" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@echo "== mkdocs, into site/"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(DEMO_DIR) site
