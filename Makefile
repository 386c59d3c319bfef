# make install | quickstart | test | test-slow | lint | bench (of speed, under an hour) | bench-quality (many hours)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test test-slow lint bench bench-quality

install: $(VENV)/installed

# torch's CPU build is asked for where the package index has it; elsewhere the usual build serves.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed; run: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,text,test]'
	touch $@

quickstart: install
	$(BIN)/python run.py all digits

test: install
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8

test-slow: install
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

QUALITY := digits emoji small_recipes posttraining alignment
SPEED := autoencoder frechet latent_reads many_images neighbours sampling token_sampling training_step

bench: install
	for name in $(SPEED); do $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-quality: install
	for name in $(QUALITY); do $(BIN)/python benchmarks/$$name.py || exit 1; done
