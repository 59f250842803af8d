# Each target works as the first command on a machine with Python 3.10 or newer, pip and make.

PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow lint format clean

demo: .venv/ready
	$(BIN)/residual-peft demo

test: lint
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: .venv/ready
	$(BIN)/python -m pytest -q

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# constraints.txt names a release of torch that has a build without CUDA
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv dist build demo-output .pytest_cache .mypy_cache .ruff_cache
