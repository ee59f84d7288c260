# The commands of riskstream. `make demo` and `make test` do all set-up on a fresh machine.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MVN := mvn -q -B -ntp
BRIDGE_JAR := connectors/bridge/target/riskstream-bridge.jar
JARS := connectors/local/jars/target/.complete

# The environment and the jars are fetched at the same time.
MAKEFLAGS += --jobs=2

VENDOR := dashboards/static/vendor/versions.json

.PHONY: help setup demo demo-risk test check scan lock faults bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.complete $(BRIDGE_JAR) $(JARS) $(VENDOR) ## Virtual environment, Java bridge, jars, compiled kernels
	$(BIN)/python -m jobs.warm

$(VENV)/.complete: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	touch $@

$(BRIDGE_JAR): connectors/bridge/pom.xml $(shell find connectors/bridge/src/main -name '*.java' 2>/dev/null)
	$(MVN) -f connectors/bridge/pom.xml package -DskipTests
	touch $@

# After the bridge: two Mavens at once would fill the same local repository.
$(JARS): connectors/local/jars/pom.xml | $(BRIDGE_JAR)
	@mkdir -p $(@D)
	$(MVN) -f connectors/local/jars/pom.xml package
	touch $@

# The pages' scripts: fetched and laid out once, served locally for ever after.
$(VENDOR): dashboards/web/package-lock.json dashboards/web/build.mjs
	cd dashboards/web && npm ci --ignore-scripts --no-audit --no-fund && npm run --silent build
	touch $@

demo: setup ## Run the fraud job end to end on the local stack (about two minutes of traffic)
	$(BIN)/riskstream demo

demo-risk: setup ## Run the market-risk job on recorded and simulated feeds
	$(BIN)/riskstream demo-risk

test: setup ## All tests; servers are started and stopped by the tests themselves
	$(MVN) -f connectors/bridge/pom.xml test
	$(BIN)/python -m pytest

check: setup ## Formatting, lint, types, files of the images
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict jobs schemas connectors models dashboards
	docker/check.sh

scan: setup ## Compare what is pinned with published advisories (asks PyPI and npm)
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r requirements.lock
	cd dashboards/web && npm audit --package-lock-only

lock: $(VENV)/.complete ## Newest versions that pyproject.toml allows, into requirements.lock
	head -n 2 requirements.lock > requirements.lock.new
	$(BIN)/uv pip compile --all-extras --python-version 3.11 --no-header --no-annotate \
	  pyproject.toml >> requirements.lock.new
	mv requirements.lock.new requirements.lock

faults: setup ## Upgrades, delivery and the whole failure matrix (long)
	$(BIN)/python -m pytest -m matrix tests/faults
	$(BIN)/python -m tests.faults.matrix

bench: setup ## Benchmarks against the field (long)
	$(BIN)/python -m benchmarks.run

clean: ## Remove everything that set-up made
	rm -rf $(VENV) connectors/bridge/target connectors/local/jars/target dashboards/static/vendor dashboards/web/node_modules .riskstream
