# One command each; they create .venv themselves and reuse it.
#   PYTHON       the interpreter to build .venv with, 3.11 or newer
#   TORCH_INDEX  another package index for torch, such as PyTorch's own for CPU builds
#   TORCH        no: an environment without torch, whose tests are those without the marker torch
PYTHON ?= python3
TORCH_INDEX ?=
TORCH ?= yes
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow lint format bench clean
.NOTPARALLEL:

# Extras, without torch and with it.
comma := ,
BARE := train$(comma)hub
WHOLE := convert$(comma)export$(comma)train$(comma)hub$(comma)eval$(comma)app

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
ifneq ($(TORCH),no)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
endif
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[$(if $(filter no,$(TORCH)),$(BARE),$(WHOLE))]' --group dev
	# Beside the environment and not in it: with libtpu installed, every start of JAX would look for a TPU.
	test "$$(uname -sm)" != "Linux x86_64" || $(BIN)/python -m pip install --quiet --upgrade --no-deps \
		--constraint constraints.txt --target .venv/libtpu libtpu
	@touch $@

demo: $(READY)
	$(BIN)/python -m experiments.demo

# Two workers have a core each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST)

# All slow tests, or one group: make test-slow GROUP=export. 10 GB of memory.
# Full-size models run longer than they compile: they are compiled as users compile them, the others cheaply.
FULLY := models export tpu
CHEAPLY := train use mutants
empty :=
marks = $(subst $(empty) slow, or slow,$(foreach group,$(filter $(or $(GROUP),$(1)),$(1)),slow(group="$(group)")))

test-slow: $(READY)
	@test -n '$(strip $(call marks,$(FULLY) $(CHEAPLY)))' || { echo 'GROUP is one of $(FULLY) $(CHEAPLY)'; exit 2; }
ifneq ($(call marks,$(FULLY)),)
	TESTS_OPTIMIZE=1 $(PYTEST) -m '$(call marks,$(FULLY))'
endif
ifneq ($(call marks,$(CHEAPLY)),)
	$(PYTEST) -m '$(call marks,$(CHEAPLY))'
endif

# The page of `repvit-sam export web` has tools of its own, from npm, in its folder.
PAGE := convert/export/page

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if command -v npm > /dev/null; then $(MAKE) $(PAGE)/node_modules/.package-lock.json && npm --prefix $(PAGE) run lint; \
		else echo 'npm is not installed: the page of $(PAGE) is not linted'; fi

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package-lock.json
	npm --prefix $(PAGE) ci --ignore-scripts --no-audit --no-fund

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv $(PAGE)/node_modules demo dist build .mypy_cache .ruff_cache .pytest_cache
