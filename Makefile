# `make demo` and `make test` need Python >= 3.10, a C++17 compiler and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0# any requirement or wheel that pip accepts; the package itself needs torch>=2.10

BIN := $(VENV)/bin
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test bench wheel lint fuzz clean print-torch

demo: $(VENV)/installed
	$(BIN)/crest demo

# a file's tests share what they compile, so they stay in one process
JOBS ?= 2
test: $(VENV)/testable
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile

bench: $(VENV)/testable
	$(BIN)/pytest bench/

# as a user builds it: in pip's environment of its own, against the torch that is here (CMakeLists.txt)
wheel: $(VENV)/ready
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

lint: $(VENV)/testable
	$(BIN)/pip install --quiet --group lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

# coverage-guided, under sanitizers; needs clang. Inputs that were new are kept in build/fuzz/inputs.
SECONDS ?= 60
fuzz: build/fuzz/codec $(VENV)/testable
	mkdir -p build/fuzz/inputs build/fuzz/found
	$(BIN)/python tests/codec/seeds.py build/fuzz/seeds
	build/fuzz/codec -max_total_time=$(SECONDS) -max_len=4096 -rss_limit_mb=2048 -malloc_limit_mb=64 -timeout=5 -print_final_stats=1 \
	  -artifact_prefix=build/fuzz/found/ build/fuzz/inputs build/fuzz/seeds

build/fuzz/codec: tests/codec/fuzz.cpp $(wildcard csrc/codec/*)
	mkdir -p build/fuzz
	clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DCREST_LIBFUZZER -Icsrc \
	  tests/codec/fuzz.cpp csrc/codec/*.cpp -o $@

# for scripts: the torch this checkout is built with
print-torch:
	@echo "$(TORCH)"

clean:
	rm -rf $(VENV) build dist

# torch and the build tools; without build isolation, which would fetch a second torch
$(VENV)/ready: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)" --group build
	@touch $@

# the extension, rebuilt when a source changed; Python files are used in place
$(VENV)/installed: $(VENV)/ready $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[cli]"
	@touch $@

$(VENV)/testable: $(VENV)/installed
	$(BIN)/pip install --quiet --group test
	@touch $@
