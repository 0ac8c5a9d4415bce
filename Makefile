# `make demo` and `make test` do all the set-up themselves; PYTHON chooses the interpreter of the environment.
PYTHON ?= python3
# Two processes of one thread each: `make test JOBS=4`, or JOBS=0 for one process.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS ?= $(shell [ $(CORES) -gt 4 ] && echo 4 || echo $(CORES))
PYTEST_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.PHONY: install test demo lint docs dist clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,docs,medmnist]'
	touch $@

demo: $(STAMP)
	$(BIN)/dinv demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/codespell

# zensical knows no warning of griffe's (an argument that a docstring alone has, say): any other line is an error here.
docs: $(STAMP)
	$(BIN)/zensical build --clean --strict > site.log 2>&1 || { cat site.log; exit 1; }
	@! grep -vE '^(Build started|Build finished|No issues found|$$)' site.log

# As `pip` and a package index would take it: the wheel is built from the source archive, apart from this environment.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/built_wheel.py dist

clean:
	rm -rf .venv build dist site site.log .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
