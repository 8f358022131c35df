# Two commands do everything on a machine with Python 3.11+ and make: `make run` and `make test`.

PYTHON ?= python3
# From the command line alone: the environment's HOST is conda's, or somebody else's.
HOST := 127.0.0.1
PORT := 8000
# What leads Python to other packages, such as another project's "app", and pip to another place than the environment.
unexport PYTHONHOME PYTHONPATH PIP_PREFIX PIP_TARGET PIP_USER
# Else each process of each run of the tests compiles them anew: ten seconds of CPU.
unexport PYTHONDONTWRITEBYTECODE
CHAOS_SECONDS ?= 600
STARTS ?= 100000
CHAOS_REDIS ?= standalone
CHAOS_WAIT_REPLICAS ?= 0
UPGRADE ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
UV_VERSION := 0.13.9
# Pinned, because the rendered manifests are committed. Without Go: HELM=/path/to/helm.
HELM_VERSION := v3.22.0
HELM ?= $(BIN)/helm
# The oldest that the chart supports, and the newest that kubernetes-validate has the schemas of.
KUBERNETES := 1.30 1.37
RENDERED := deploy/kubernetes/rendered

# A process without tests takes some of another's: the last tests are the longest ones.
parallel = --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test test-cluster test-sentinel e2e paste proxies check check-deploy helm fmt lock bench memory floods simulate screenshots chaos clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Start the service on an embedded Redis and the sandbox provider (HOST=, PORT=)
	@$(BIN)/plusofon-verify demo --host $(HOST) --port $(PORT)

test: $(VENV)/.dev $(VENV)/.clients ## Run all tests, with coverage
	$(BIN)/python -m pytest $(parallel) --cov --cov-report term

test-cluster: $(VENV)/.dev ## Run the tests of Redis' users on a cluster of three primaries and three replicas
	$(BIN)/python -m pytest tests/contract tests/integration --redis cluster $(parallel)

test-sentinel: $(VENV)/.dev ## Run some of them on a primary with two replicas behind three Sentinels
	$(BIN)/python -m pytest $(wildcard tests/contract/test_*_store.py) tests/integration/test_verification.py \
		tests/integration/test_idempotency.py tests/integration/test_webhooks.py --redis sentinel $(parallel)

e2e: $(VENV)/.dev ## Test the demo page and the docs in Debian's chromium (apt-get install chromium)
	$(BIN)/python -m pytest tests/browser --numprocesses 2 --dist loadgroup

paste: $(VENV)/.dev ## Paste the shell blocks of every document into zsh (apt-get install zsh)
	@command -v zsh >/dev/null || \
		{ echo "zsh is needed; on Debian: apt-get install --no-install-recommends zsh"; exit 1; }
	$(BIN)/python -m pytest tests/shell

proxies: $(VENV)/.dev ## Attack the service through real proxies (apt-get install caddy curl haproxy nginx-light)
	@for tool in caddy curl haproxy nginx; do \
		PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null || \
		{ echo "$$tool is needed; on Debian: apt-get install caddy curl haproxy nginx-light"; exit 1; }; done
	$(BIN)/python -m pytest tests/proxies $(parallel)

check: $(VENV)/.dev ## Lint, format, types, import contracts, deployment files, the description of the API
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(validate_manifests)
	$(BIN)/plusofon-verify openapi | $(BIN)/openapi-spec-validator -
	$(BIN)/python -m pytest --quiet tests/unit/test_openapi_rules.py

check-deploy: ## Check Prometheus' configuration and rules, and play the rules' tests (apt-get install prometheus)
	@command -v promtool >/dev/null || \
		{ echo "promtool is needed; on Debian: apt-get install --no-install-recommends prometheus"; exit 1; }
	promtool check config --syntax-only deploy/prometheus/prometheus.yml
	promtool check rules deploy/prometheus/rules/*.yml
	promtool test rules deploy/prometheus/tests/*.yml

helm: $(VENV)/.dev $(HELM) ## Check the Helm chart, and render it into deploy/kubernetes/rendered (builds helm with Go)
	@for set in default full; do \
		$(HELM) lint --quiet --strict deploy/kubernetes/plusofon-verify $(helm_options) && \
		$(HELM) template plusofon-verify deploy/kubernetes/plusofon-verify $(helm_options) >$(RENDERED)/$$set.yaml \
		|| exit 1; done
	cd deploy/kubernetes && find plusofon-verify rendered -type f ! -name SHA256SUMS | LC_ALL=C sort | \
		xargs sha256sum >rendered/SHA256SUMS
	$(validate_manifests)
	$(BIN)/python -m pytest --quiet tests/unit/test_helm_chart.py

fmt: $(VENV)/.dev ## Format, and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev ## Measure checks, starts and whole flows against a bare FastAPI route
	$(BIN)/python benchmarks/bench.py

memory: $(VENV)/.dev ## Measure Redis' memory for each start, and checks beside many pending verifications (STARTS=)
	$(BIN)/python -m benchmarks.memory --starts $(STARTS)

floods: $(VENV)/.dev ## Flood the service as strangers can, and show the memory and descriptors that it takes
	$(BIN)/python benchmarks/floods.py

simulate: $(VENV)/.dev ## Play fraud and brute force against the service, and count what they cost and win
	$(BIN)/python benchmarks/fraud_simulation.py
	$(BIN)/python benchmarks/guess_simulation.py

chaos: $(VENV)/.dev ## Fail Redis and the provider and kill workers under load (CHAOS_SECONDS=, CHAOS_REDIS=sentinel|cluster)
	$(BIN)/python benchmarks/chaos.py --seconds $(CHAOS_SECONDS) --redis $(CHAOS_REDIS) --wait-replicas $(CHAOS_WAIT_REPLICAS)

screenshots: $(VENV)/.dev ## Take the pictures of docs/screenshots anew (needs chromium)
	$(BIN)/python -m tests.browser.take_screenshots

lock: ## Pin all dependencies anew (UPGRADE=--upgrade for newer versions)
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --quiet install uv==$(UV_VERSION)
	$(call compile,requirements-dev.lock,pyproject.toml --extra sandbox --group dev --group build)
	$(call compile,requirements-sandbox.lock,pyproject.toml --extra sandbox --group build --constraint requirements-dev.lock)
	$(call compile,requirements.lock,pyproject.toml --group build --constraint requirements-dev.lock)
	$(call compile,requirements-clients.lock,--group clients)

clean: ## Remove what the other commands made
	rm -rf $(VENV) .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# Hashes and no index address: the files install from any index that has the same packages.
define compile
$(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-strip-extras --custom-compile-command "make lock" $(UPGRADE) --output-file $(1) $(2)
endef

# A helm that was built from the module has no idea of the cluster's version, and takes an old one.
helm_options = --kube-version $(firstword $(KUBERNETES)) --values $(RENDERED)/$$set.values.yaml

# A ServiceMonitor is not part of Kubernetes and has no schema here: the tests look at it.
validate_manifests = $(BIN)/kubernetes-validate --strict --quiet --no-warn \
	$(KUBERNETES:%=--kubernetes-version=%) $(RENDERED)/default.yaml $(RENDERED)/full.yaml

define install
$(PIP) install --require-hashes --requirement $(1)
$(PIP) install --no-deps --no-build-isolation --editable .
@touch $@
endef

$(VENV)/.run: requirements-sandbox.lock pyproject.toml | $(VENV)/bin/python
	$(call install,requirements-sandbox.lock)

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(call install,requirements-dev.lock)

# Of its own, for what generates clients from the description of the API: docs/adr/0004-lock-files.md says why.
$(VENV)/.clients: requirements-clients.lock | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes --requirement $<
	@touch $@

$(VENV)/bin/helm:
	@command -v go >/dev/null || \
		{ echo "helm is needed: install Go, which builds it, or name one: make helm HELM=/path/to/helm"; exit 1; }
	GOBIN="$(abspath $(BIN))" go install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is needed; on Debian it is in the package python3-venv"; rm -rf $(VENV); exit 1; }
