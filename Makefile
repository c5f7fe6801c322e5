# make demo    set up what running needs, then simulate, prepare, train and evaluate: runs/demo/report.html
# make paper   the published study from nothing: docs/results.md; hours, most of them simulation (PUBLISHED=folder of its networks)
# make test    set up what developing needs, then the test suite
# make unit    the tests of pure functions: under a minute
# make test-farms    all that can happen on real Slurm and HTCondor daemons, which must be installed (.ci/farms does that)
# make test-faults   every way for ranks, workers, drivers and schedulers to die, ten times each
# make coverage    the quick tests and the lines they miss: coverage/index.html (TESTS=... for others)
# make check   ruff, mypy and codespell
# make docs    the documentation as a site: site/index.html
# make install    what running needs, into .venv; make develop: and what testing, checking and writing documentation need
# make lock    resolve requirements.lock, requirements-dev.lock and horovod.lock anew

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo paper test unit test-farms test-faults coverage check docs install develop horovod lock

VENV := .venv
BIN := $(VENV)/bin
# trusts what the system trusts, as pip does
UV := $(BIN)/uv --system-certs
UV_VERSION := 0.13.9
INSTALLED := $(VENV)/.installed
DEVELOPING := $(VENV)/.developing

# the first Python from 3.11 to 3.12; say make PYTHON=... for another
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

# built wheels are kept here, beyond the life of $(VENV)
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(if $(HOME),$(HOME)/.cache,$(CURDIR)/.cache))/hepdask

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(INSTALLED)
	@if $(BIN)/python -c 'import horovod' 2>/dev/null; then $(BIN)/hepdask run configs/demo.yaml; else \
		echo "Horovod is not built (make horovod): training on one rank instead of two"; \
		$(BIN)/hepdask run configs/demo.yaml --set training.ranks=1; fi

paper: $(INSTALLED)
	@$(BIN)/hepdask run configs/paper.yaml
	@$(BIN)/python reproduction/paper.py configs/paper.yaml $(if $(PUBLISHED),--published $(PUBLISHED))

test: $(DEVELOPING)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not farms"

# only files that have such tests: others import TensorFlow
UNIT = -m unit $$(grep -rl --include='test_*.py' 'pytest.mark.unit' tests)
unit: $(DEVELOPING)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(UNIT)

test-farms: $(DEVELOPING)
	@$(BIN)/python -m pytest tests/clusters/test_farms.py

test-faults: $(DEVELOPING)
	@$(BIN)/python -m pytest -m faults --repeat 10 tests/distributed/test_distributed.py tests/distributed/test_distributed_restarts.py \
		tests/distributed/test_distributed_hosts.py

TESTS ?= $(UNIT)
coverage: $(DEVELOPING)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(TESTS) --cov=hepdask --cov-report=term:skip-covered --cov-report=html:coverage

check: $(DEVELOPING)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell && $(BIN)/mypy && \
		for folder in benchmarks reproduction; do (cd $$folder && $(abspath $(BIN))/mypy --config-file ../pyproject.toml .) || exit 1; done

docs: $(DEVELOPING)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --clean

install: $(INSTALLED)

develop: $(DEVELOPING)

$(DEVELOPING): $(INSTALLED) requirements-dev.lock
	@echo "installing what tests, checks and documentation need into $(VENV)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@

$(INSTALLED): requirements.lock horovod.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "hepdask needs Python 3.11 or 3.12; none was found (or say: make PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (the first time takes a minute, and some more to build Horovod)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@$(MAKE) --no-print-directory horovod || echo "going on without Horovod: everything works except training with more than one rank"
	@touch $@

# Horovod is built once for each Python and TensorFlow; gloo alone, so that neither MPI nor NCCL is needed.
# One word of 0.28.1 is changed: where it makes the ring it forgets the chosen network interface and takes whatever address the
# host's name has, and crashes where the name has none.
HOROVOD_MENDED := horovod/common/gloo/gloo_context.cc
HOROVOD_MEND := /::InitializeForProcessSet/,/CreateDevice/s/iface = gloo_iface_;/iface = global_context.gloo_iface_;/
horovod: export HOROVOD_WITH_TENSORFLOW := 1
horovod: export HOROVOD_WITHOUT_PYTORCH := 1
horovod: export HOROVOD_WITHOUT_MXNET := 1
horovod: export HOROVOD_WITH_GLOO := 1
horovod: export HOROVOD_WITHOUT_MPI := 1
horovod: export CMAKE_POLICY_VERSION_MINIMUM := 3.5
horovod:
	@set -e -o pipefail; \
	tag=$$($(BIN)/python -c 'import sys, importlib.metadata as m; print(f"cp{sys.version_info.major}{sys.version_info.minor}-tf" + m.version("tensorflow-cpu"))'); \
	wheels=$(CACHE)/horovod-$$( (cat horovod.lock; echo '$(HOROVOD_MEND)') | sha256sum | cut -c1-8)-$$tag; \
	if ! ls $$wheels/*.whl >/dev/null 2>&1; then \
		for tool in c++ cmake make; do \
			command -v $$tool >/dev/null || { echo "Horovod needs a C++ compiler, cmake and make; $$tool is missing. On Debian and Ubuntu: apt install g++ cmake make; then: make horovod"; exit 1; }; \
		done; \
		echo "building Horovod (about three minutes, once)"; \
		rm -rf $$wheels.source $$wheels.building; mkdir -p $$wheels.source $$wheels.building; \
		{ $(BIN)/python -m pip download --disable-pip-version-check --no-build-isolation --no-deps --no-binary :all: \
			--require-hashes -r horovod.lock -d $$wheels.source \
		&& tar xzf $$wheels.source/horovod-*.tar.gz -C $$wheels.source --strip-components=1 \
		&& sed -i '$(HOROVOD_MEND)' $$wheels.source/$(HOROVOD_MENDED) \
		&& grep -q 'global_context.gloo_iface_' $$wheels.source/$(HOROVOD_MENDED) \
		&& PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps \
			-w $$wheels.building $$wheels.source; } >$$wheels.log 2>&1 \
			|| { tail -n 30 $$wheels.log; echo "building Horovod failed; the whole log is $$wheels.log"; exit 1; }; \
		rm -rf $$wheels $$wheels.source && mv $$wheels.building $$wheels; \
	fi; \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --reinstall $$wheels/*.whl

# Extras of those who run, and all but those of GPUs, which bring other builds of TensorFlow and XGBoost and the Dask that
# RAPIDS requires. The second file is resolved with the first as a constraint: what both hold has one version.
RUNNING := metrics onnx s3 simulate train trees tune xrootd
RESOLVE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
lock:
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }
	@$(RESOLVE) --fork-strategy fewest $(RUNNING:%=--extra=%) pyproject.toml -o requirements.lock
	@$(RESOLVE) --fork-strategy fewest $(RUNNING:%=--extra=%) --extra=dev --extra=docs --extra=test -c requirements.lock \
		pyproject.toml -o requirements-dev.lock
	@echo "horovod==0.28.1 ; python_full_version < '3.13' and platform_machine == 'x86_64' and sys_platform == 'linux'" \
		| $(RESOLVE) --no-config --no-deps --no-annotate - -o horovod.lock
