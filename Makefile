# Commands, each of which does its own set-up in .venv on a bare machine:
#   make demo   train CompositeLSTM on Moving MNIST, print its errors, draw its predictions
#   make test   lint and tests
#   make docs   build the documentation as a site in build/docs; a warning is an error
#   make report runs the paper's experiments at a small scale, hours, and writes docs/experiments.md
# A second run of either sets nothing up again; a demo that was interrupted goes on where it stopped,
# and one that was finished is only evaluated (`rm -r runs/demo` to train afresh).
# PYTHON=python3.12 chooses another interpreter.
#
# Three more test the kernels in C++ alone; they need cmake and g++, but neither Python nor .venv:
#   make native     build the tests of tests/native and run them
#   make sanitize   the same with AddressSanitizer and UBSan, then with ThreadSanitizer
#   make aarch64    the same for 64-bit ARM, cross-compiled and run by qemu
#
# One times the ways to divide a call of the CPU kernels among threads, and needs no Python either:
#   make plans      build benchmarks/plans.cpp and run it; SHAPES="T,B,I,H ..." are others than its own
#
# Another computes the time of a call on up to 128 threads, and tests itself on one and two:
#   make thread-model  build benchmarks/thread_model.cpp and run it, 4 minutes; SHAPES as above
#
# Two write the numbers of README.md and docs/ from measurements:
#   make bench-results  measure everything that they need, 14 minutes on 2 quiet cores, and do the next
#   make bench-figures  write tables and pictures anew from the newest file in benchmarks/results
#
# Another builds the module of Python with AddressSanitizer and UBSan, and runs the tests of direct calls
# and of streams. (`python -m pytest`, or the conftest.py of this folder, would import the module of
# this folder instead.)
#   make sanitize-calls
#
# One more runs torch's own tests with our classes in the place of torch's:
#   make conformance TORCH_TESTS=path/to/pytorch/test

MAKEFLAGS += --no-print-directory
PYTHON ?= python3
CMAKE ?= cmake
BIN := .venv/bin
LAST := runs/demo/checkpoints/last.ckpt
KERNELS := $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
MEMORY := -DSANITIZE=address,undefined
ARM_TOOLS := aarch64-linux-gnu-g++ qemu-aarch64

# Builds the C++ tests in the folder $(1), with the options $(2), and runs them.
define run_native
	$(CMAKE) -S tests/native -B build/$(1) $(2)
	$(CMAKE) --build build/$(1) --parallel $(shell nproc) --target check
endef

.PHONY: demo report test test-main test-triton docs lint stubs format slow wheel native sanitize sanitize-calls aarch64 plans thread-model conformance bench-results bench-figures clean

demo: .venv/.trains
	$(BIN)/fastlstm fit --config demo $(if $(wildcard $(LAST)),--ckpt_path last)
	$(BIN)/python -m benchmarks.composite --config demo

report: .venv/.built
	$(BIN)/fastlstm experiment all --report docs/experiments.md

# The Triton kernels run under its interpreter, which must be chosen before triton is imported. It
# runs on one core, beside all other tests; its output comes after theirs. It takes milliseconds a
# step: tests of long sequences would be most of the time.
#
# Some tests start processes that import Lightning, which takes 20 s where Python must compile it
# each time, and 8 s where it may keep what it compiled.
test slow: export PYTHONDONTWRITEBYTECODE =
test: lint
	@mkdir -p build
	$(MAKE) --jobs=2 --keep-going test-main test-triton; \
	  status=$$?; cat build/test-triton.log; exit $$status

test-main:
	$(BIN)/python -m pytest --nbmake tests README.md docs examples

test-triton:
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  -k "triton and not long_sequence and not several_blocks and not last_block" > build/test-triton.log 2>&1

docs: .venv/.built
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

slow: .venv/.built
	$(BIN)/python -m pytest -m slow

# Writes fastlstm/_C.pyi from the compiled module, which must have its CUDA kernels.
stubs: .venv/.built
	$(BIN)/python tests/stubs.py

lint: .venv/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: .venv/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The wheel's tag says how old a Linux it runs on: of this machine's age, or with cibuildwheel
# manylinux_2_28. OpenMP's runtime is torch's.
wheel: .venv/.built
	rm -rf dist
	FASTLSTM_REQUIRE_KERNELS=1 $(BIN)/python -m build --outdir dist/built
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --exclude libgomp.so.1 -w dist dist/built/*.whl
	mv dist/built/*.tar.gz dist && rm -r dist/built

native:
	$(call run_native,native)

sanitize:
	$(call run_native,asan,$(MEMORY))
	$(call run_native,tsan,-DSANITIZE=thread)

sanitize-calls: .venv/.built
	CXXFLAGS="-fsanitize=address,undefined -fno-sanitize=vptr" FASTLSTM_CUDA_ARCHITECTURES=OFF \
	  $(BIN)/python setup.py --quiet build --build-base build/calls
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$$(echo build/calls/lib*) \
	  $(BIN)/pytest --confcutdir tests -p no:cacheprovider tests/test_direct*.py tests/test_stream*.py

aarch64:
	@for tool in $(ARM_TOOLS); do command -v $$tool > /dev/null || { \
	  echo "$$tool is missing: apt install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }; done
	$(call run_native,aarch64,-DCMAKE_TOOLCHAIN_FILE=aarch64.cmake)

plans thread-model:
	$(CMAKE) -S benchmarks -B build/plans
	$(CMAKE) --build build/plans --parallel $(shell nproc)
	build/plans/$(subst -,_,$@) $(SHAPES)

bench-results: .venv/.built
	$(BIN)/python -m benchmarks.figures --measure

bench-figures: .venv/.built
	$(BIN)/python -m benchmarks.figures

conformance: .venv/.built
	@test -n "$(TORCH_TESTS)" || { \
	  echo "TORCH_TESTS is missing: the folder test of torch's source" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check expecttest
	$(BIN)/python tests/conformance $(TORCH_TESTS)

# Installs the library with the packages of an extra, `train` or `dev`, into .venv. Python compiles a
# module when it is first imported: to compile those of all packages takes 18 s of processor time.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	FASTLSTM_REQUIRE_KERNELS=1 FASTLSTM_ISAS=$(2) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-compile -c constraints.txt -e '.[$(1)]'
	touch $@
endef

.venv/.trains: pyproject.toml constraints.txt setup.py CMakeLists.txt $(KERNELS)
	$(call install,train,native)

.venv/.built: pyproject.toml constraints.txt setup.py CMakeLists.txt $(KERNELS)
	$(call install,dev)
	touch .venv/.trains

clean:
	rm -rf .venv build dist *.egg-info fastlstm/*.so
