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

# Makes the shipped checkpoint anew, from its seed.
pretrain: $(READY)
	$(BIN)/rewardtune pretrain configs/quickstart/detection_pretrain.yaml

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[model,uvim,wordpiece,quickstart,redis,remote,dev]'
	touch $@

clean:
	rm -rf $(VENV)
