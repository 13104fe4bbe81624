# The commands of NSM. Each sets up what it needs in .venv on first use, from constraints.txt.
#
#   make train ARGS="domain=kg seed=1"     configuration overrides for nsm.train
#   make train HARDWARE=gpu                another group of conf/hardware; cpu by default
#   make test ARGS="-m 'not slow'"         options for pytest
#   make PYTHON=python3.12 test            another interpreter (after make clean, if .venv exists)
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu train
#       On Linux the default index serves torch with gigabytes of CUDA libraries; this index adds the CPU build, which
#       pip prefers because its version, 2.13.0+cpu, sorts above 2.13.0. Needed once, when .venv is made.

PYTHON ?= python3
TORCH_INDEX ?=
HARDWARE ?= cpu
WORKERS ?= 2
ARGS =

BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable

.PHONY: help train test test-faults bench report lint constraints clean

help:
	@echo "make train   train on the default domain, from nothing to test metrics"
	@echo "make test    run the tests"
	@echo "make test-faults   kill runs at random moments and feed them bad input, in bulk"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measure speed"
	@echo "make report  table and page of every run in outputs/"
	@echo "make constraints   resolve constraints.txt anew after a change of pyproject.toml"
	@echo "make clean   remove .venv and the tools' caches; outputs/ and data/ stay"

train: .venv/installed
	$(BIN)/python -m nsm.train hardware=$(HARDWARE) $(ARGS)

bench: .venv/installed
	$(BIN)/python -m benchmarks $(ARGS)

report: .venv/installed
	$(BIN)/python -m nsm.report outputs $(ARGS)

# One thread a worker: the workers already fill the cores.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=10 $(ARGS)

test-faults: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The stamps are older than pyproject.toml or constraints.txt exactly when there is something to install.
.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	@touch .venv/installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "NSM needs Python 3.10 or newer, and PYTHON=$(PYTHON) is '$$($(PYTHON) --version 2>&1)'." >&2; \
		echo "Install one and name it: make PYTHON=python3.12 train" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version 2>&1); this downloads, and takes minutes."
	@if [ "$$(uname)" = Linux ] && [ -z "$(TORCH_INDEX)" ] && ! command -v nvidia-smi >/dev/null; then \
		echo "No NVIDIA GPU seen: TORCH_INDEX=https://download.pytorch.org/whl/cpu spares the CUDA libraries."; fi
	@$(PYTHON) -m venv .venv || { echo "Could not make .venv (on Debian and Ubuntu: apt install python3-venv)." >&2; \
		rm -rf .venv; exit 1; }

# Keeps the versions that still fit; delete constraints.txt first to take the newest of everything. uv resolves for all
# Pythons and platforms at once, from metadata alone.
constraints:
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet --disable-pip-version-check uv && \
	"$$tools/bin/uv" pip compile pyproject.toml --extra dev --universal --python-version 3.10 --no-python-downloads \
		--no-annotate --custom-compile-command "make constraints" --quiet --output-file constraints.txt

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist
