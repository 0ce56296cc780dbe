# One command each; they create .venv themselves and reuse it.
#   PYTHON       the interpreter to build .venv with, 3.11 or newer
#   TORCH_INDEX  another package index for torch, such as PyTorch's own for CPU builds
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow lint format bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[convert,export,train]' --group dev
	# Beside the environment and not in it: with libtpu installed, every start of JAX would look for a TPU.
	test "$$(uname -sm)" != "Linux x86_64" || $(BIN)/python -m pip install --quiet --upgrade --no-deps \
		--constraint constraints.txt --target .venv/libtpu libtpu
	@touch $@

demo: $(READY)
	$(BIN)/python -m convert.demo

# Two workers have a core each. Most programs of the first run once: XLA compiles them four times as fast without
# optimization and without its newer code generator of fused loops.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false $$XLA_FLAGS" $(PYTEST)

# Full sizes, compiled as users compile them, and ahead-of-time compilation for TPUs: 10 GB of memory.
test-slow: $(READY)
	$(PYTEST) -m 'slow or tpu_aot'

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv demo dist build .mypy_cache .ruff_cache .pytest_cache
