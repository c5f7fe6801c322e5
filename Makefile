# make demo    set up what is missing, then simulate, prepare, train and evaluate: runs/demo/report.html
# make paper   the published study from nothing: docs/results.md; hours, most of them simulation (PUBLISHED=folder of its networks)
# make test    set up what is missing, then the test suite
# make test-farms    all that can happen on real Slurm and HTCondor daemons, which must be installed (.ci/farms does that)
# make test-faults   every way for ranks, workers, drivers and schedulers to die, ten times each
# make check   ruff and mypy
# make docs    the documentation as a site: site/index.html
# make lock    resolve requirements.lock and horovod.lock anew

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo paper test test-farms test-faults check docs install horovod lock

VENV := .venv
BIN := $(VENV)/bin
# trusts what the system trusts, as pip does
UV := $(BIN)/uv --system-certs
UV_VERSION := 0.13.9
INSTALLED := $(VENV)/.installed

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

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not farms"

test-farms: $(INSTALLED)
	@$(BIN)/python -m pytest tests/clusters/test_farms.py

test-faults: $(INSTALLED)
	@$(BIN)/python -m pytest -m faults --repeat 10 tests/distributed/test_distributed.py tests/distributed/test_distributed_restarts.py \
		tests/distributed/test_distributed_hosts.py

check: $(INSTALLED)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && \
		for folder in benchmarks reproduction; do (cd $$folder && $(abspath $(BIN))/mypy --config-file ../pyproject.toml .) || exit 1; done

docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --clean

install: $(INSTALLED)

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
# One word of 0.28.1 is mended: where it makes the ring it forgets the chosen network interface and takes whatever address the
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

# all extras but those of GPUs: they bring other builds of TensorFlow and XGBoost, and the Dask that RAPIDS wants
EXTRAS = $(shell $(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(f"--extra={name}" for name in extras if name not in ("gpu", "cuml")))')
lock:
	@$(UV) pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 $(EXTRAS) --generate-hashes \
		--no-header pyproject.toml -o requirements.lock
	@echo horovod==0.28.1 | $(UV) pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate - -o horovod.lock
