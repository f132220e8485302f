# make demo   train, score and attack 64 small networks on the digits images
# make test   the test suite
# make accelerator DATA=FOLDER   all there is to measure on one GPU or TPU, in MINUTES=9
# make faults each command killed 20 times, and every other fault
# make fuzz   bad inputs, COUNT=10000 from SEED=1
# make lint   ruff; make types: mypy
# make docs   the site of docs/, in site/
# make wheel  what is uploaded, in dist/, tried where nothing else is installed
#
# PYTHON=python3.12 picks the interpreter, CUDA=12 or CUDA=13 a GPU build of JAX,
# VENV=DIR another place for the virtual environment.

PYTHON ?= python3
VENV ?= .venv
CUDA ?=

BIN := $(VENV)/bin
comma := ,
EXTRAS := dev$(if $(CUDA),$(comma)cuda$(CUDA))
# One stamp per interpreter and JAX build: asking for another one installs anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print(sys.implementation.cache_tag)')
STAMP := $(VENV)/.installed-$(VERSION)$(if $(CUDA),-cuda$(CUDA))
RUN ?= runs/digits
DATA ?=
MINUTES ?= 9
COUNT ?= 10000
SEED ?= 1
OUT ?= runs/accelerator

.PHONY: demo test accelerator faults fuzz lint types docs wheel clean

demo: $(STAMP)
	$(BIN)/python train.py configs/digits.toml --run $(RUN)
	$(BIN)/python score.py --run $(RUN)
	$(BIN)/python attack.py --run $(RUN)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

accelerator: $(STAMP)
	@test -n "$(DATA)" || { echo "error: make accelerator DATA=FOLDER with CIFAR-10's Parquet files" >&2; exit 2; }
	$(BIN)/python benchmarks/one_accelerator.py --minutes $(MINUTES) --data "$(DATA)" --out "$(OUT)"

faults: $(STAMP)
	LIRA_JAX_KILLS=20 LIRA_JAX_SIGNALS=20 $(BIN)/python -m pytest tests/commands/test_faults.py \
		tests/commands/test_processes.py

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.run --count $(COUNT) --seed $(SEED)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/try_wheel.py dist/*.whl constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(VERSION)" || { echo "error: $(PYTHON) does not run; set PYTHON=" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; set PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) runs/digits dist site
