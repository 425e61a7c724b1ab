# `make demo` and `make test` each set up what they need: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes (tests/conftest.py says what stays together), one thread of torch each: as many as the machine that CI runs on has cores.
TOGETHER := --numprocesses=2 --no-loadscope-reorder
export YOLO_OFFLINE := true
export YOLO_AUTOINSTALL := false
# uv brings its own list of authorities; where the machine has one, it counts (company networks).
SYSTEM_CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt)
ifneq ($(SYSTEM_CERTIFICATES),)
export SSL_CERT_FILE ?= $(SYSTEM_CERTIFICATES)
endif

.PHONY: setup demo test fast lint types format conformance-full clean

setup: $(STAMP)

# opencv-python-headless stands in for opencv-python, which needs a graphics library that servers lack (overrides.txt).
$(STAMP): pyproject.toml constraints.txt overrides.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(shell sed -n 's/^uv==//p' constraints.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --overrides overrides.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/nas-attn demo

test: setup lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" --durations=15 $(TOGETHER)

fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TOGETHER)

conformance-full: setup
	$(BIN)/python tests/benchmarks/conformance_full.py --out results/conformance-full.csv

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache demo
