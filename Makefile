# Everything needs python3 (3.11 or newer) and make; the virtual environment is made when missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test lint pretrain clean

demo: $(READY)
	$(BIN)/rewardtune demo

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 tests/unit
	$(BIN)/python -m pytest tests/integration tests/faults

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Makes the shipped checkpoints anew, from their seeds: all, or NAMES="quickstart_captioning ...".
pretrain: $(READY)
	$(BIN)/python -m checkpoints.make $(NAMES)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[model,uvim,wordpiece,quickstart,redis,remote,dev]'
	touch $@

clean:
	rm -rf $(VENV)
