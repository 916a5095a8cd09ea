# Everything happens in .venv, which is made at the first call. Needs Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MANIFEST := setup.cfg pyproject.toml
IMAGE := immich-bridge
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/immich_bridge/__init__.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pips at once in one environment get in each other's way; nothing else here takes long.
.NOTPARALLEL:
.PHONY: help demo test torture run image bench bench-full soak clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed ## show it: a stand-in Immich, the bridge, and photos sent through it
	@$(BIN)/python tests/demo.py $(ARGS)

# Tests wait more than they compute: three at once keep two processors busy.
JOBS := 3

test: $(VENV)/installed-test ## all checks: lint, format, types, architecture, tests (JOBS=0: one by one)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

# PARTS are the names of tests/torture/test_*.py; SEED repeats a run; SOAK is in minutes. Tests that
# compare times wait until they are alone.
torture: $(VENV)/installed-test ## faults, abuse and load, 17 minutes on two cores (PARTS="kills soak" SEED=7 SOAK=30)
	$(BIN)/pytest $(if $(PARTS),$(PARTS:%=tests/torture/test_%.py),tests/torture) --torture \
		--numprocesses $(JOBS) --dist worksteal \
		$(if $(SEED),--seed $(SEED)) $(if $(SOAK),--soak-minutes $(SOAK)) $(ARGS)

run: $(VENV)/installed ## serve in front of your own Immich (IMMICH_SERVER_URL, else http://localhost:2283)
	@exec $(BIN)/python -m immich_bridge $(ARGS)

# A client without its daemon is passed over. Only the Docker format has room for HEALTHCHECK.
image: ## build the container image, with docker, podman or buildah
	@for builder in docker podman buildah; do \
		$$builder info >/dev/null 2>&1 || continue; \
		format=; [ $$builder = docker ] || format='--format docker'; \
		echo "building $(IMAGE):$(VERSION) with $$builder ..."; \
		exec $$builder build $$format --tag $(IMAGE):$(VERSION) --tag $(IMAGE):latest $(ARGS) .; \
	done; \
	echo "make: building the image takes a running docker, podman or buildah; there is none" >&2; \
	exit 1

bench: $(VENV)/installed-bench ## measure beside nginx, haproxy and caddy; a few minutes
	@$(BIN)/python benchmarks/compare.py $(ARGS)

bench-full: $(VENV)/installed-bench ## the same at length: more works, longer rounds
	@$(BIN)/python benchmarks/compare.py --full $(ARGS)

soak: $(VENV)/installed ## mixed traffic in which no request may fail (ARGS="--duration 30m")
	@$(BIN)/python benchmarks/soak.py $(ARGS)

clean: ## remove .venv, caches and build results; data/ and storage/ stay
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# uvloop has no wheel for some platforms; the bridge then runs on asyncio's own loop.
define install
	@echo "installing $(1) into $(VENV) ..."
	@$(PIP) install --editable '.[$(2)]' || { \
		echo "trying again without uvloop, which may be what cannot be installed here ..." >&2; \
		$(PIP) install --editable '.$(3)'; }
	@touch $@
endef

$(VENV)/installed: $(VENV)/created $(MANIFEST)
	$(call install,the bridge,fast,)

$(VENV)/installed-test: $(VENV)/created $(MANIFEST)
	$(call install,the bridge and what its tests need,fast$(comma)test,[test])

$(VENV)/installed-bench: $(VENV)/created $(MANIFEST)
	$(call install,the bridge and what it is measured beside,fast$(comma)bench,[bench])

comma := ,

# Debian and Ubuntu ship Python without ensurepip; their own pip can fill an environment too.
$(VENV)/created:
	@python=; for candidate in $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14); do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "make: $(or $(PYTHON),python3) is not Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version) ..."; \
	if $$python -c 'import ensurepip, venv' 2>/dev/null; then \
		$$python -m venv $(VENV); \
	elif $$python -c 'import pip, venv' 2>/dev/null; then \
		$$python -m venv --without-pip $(VENV) && \
		$$python -m pip --disable-pip-version-check --python $(BIN)/python install --quiet pip; \
	else \
		echo "make: $$python cannot make virtual environments; install python3-venv (apt install python3-venv)" >&2; \
		exit 1; \
	fi
	@touch $@
