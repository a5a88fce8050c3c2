# Two commands, each of which does its own set-up in .venv on a bare machine:
#   make demo   train CompositeLSTM on Moving MNIST, print its errors, draw its predictions
#   make test   lint and tests
# A second run of either sets nothing up again; a demo that was interrupted goes on where it stopped,
# and one that was finished is only evaluated (`rm -r runs/demo` to train afresh).
# PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
LAST := runs/demo/checkpoints/last.ckpt
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint format slow wheel clean

demo: .venv/.built
	$(BIN)/fastlstm fit --config configs/demo.yaml $(if $(wildcard $(LAST)),--ckpt_path last)
	$(BIN)/python -m benchmarks.composite --config configs/demo.yaml

test: lint
	$(BIN)/python -m pytest

slow: .venv/.built
	$(BIN)/python -m pytest -m slow

lint: .venv/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: .venv/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

wheel: .venv/.built
	$(BIN)/python -m build

.venv/.built: pyproject.toml constraints.txt setup.py CMakeLists.txt $(CXX_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info fastlstm/*.so
