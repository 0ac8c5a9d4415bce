# `make demo` and `make test` do all the set-up themselves; PYTHON chooses the interpreter of the environment, TORCH_INDEX
# where PyTorch comes from: without a GPU https://download.pytorch.org/whl/cpu, which leaves out 5 GB of CUDA's libraries.
PYTHON ?= python3
TORCH_INDEX ?=
# Two processes of one thread each: `make test JOBS=4`, or JOBS=0 for one process.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS ?= $(shell [ $(CORES) -gt 4 ] && echo 4 || echo $(CORES))
PYTEST_ARGS ?=
TRAIN ?= cifar10-train.parquet
TEST ?= cifar10-test.parquet
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.PHONY: install test test-slow demo lint docs dist reproduce clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up .venv: minutes, and $(if $(TORCH_INDEX),what PyTorch has at $(TORCH_INDEX),6.7 GB of disk where PyTorch brings CUDA; without a GPU see TORCH_INDEX in the Makefile)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[demo,dev,docs,medmnist]'
	touch $@

demo: $(STAMP)
	$(BIN)/dinv demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/codespell

# zensical knows no warning of griffe's (an argument that a docstring alone has, say): any other line is an error here.
docs: $(STAMP)
	$(BIN)/zensical build --clean --strict > site.log 2>&1 || { cat site.log; exit 1; }
	@! grep -vE '^(Build started|Build finished|No issues found|$$)' site.log

# The published tables in small: `make reproduce TRAIN=cifar10-train.parquet TEST=cifar10-test.parquet`, planned for an hour.
reproduce: $(STAMP)
	$(BIN)/python benchmarks/reproduce.py $(TRAIN) $(TEST)

# As `pip` and a package index would take it: the wheel is built from the source archive, apart from this environment.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/built_wheel.py dist

clean:
	rm -rf .venv build dist site site.log .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
