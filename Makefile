# Everything a person needs starts here: `make help`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done

# PyTorch: `cpu` (about 200 MB) unless a GPU is seen; TORCH=cuda or TORCH=cpu decides otherwise.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# Where CPU builds come from. Empty: wherever pip is configured to look (PyPI's Linux builds are
# CUDA ones, gigabytes of them).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_PIN    = $(shell grep -h '^torch==' constraints.txt)

# `kernels` adds what tests of GPU kernels need (Triton, 0.7 GB): make setup EXTRAS=engine,dev,kernels
EXTRAS ?= engine,dev

PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2
# Stories wait more than they compute; those that disturb a whole cluster come afterwards, alone.
E2E_WORKERS ?= 3

# Clients of others, in an environment of their own (.venv-clients): 0.7 GB for lm_eval, 1.1 GB more
# for guidellm (which wants a PyTorch) and aiperf. By uv: pip takes minutes to choose versions.
CLIENTS    ?= lm_eval guidellm aiperf
CLIENTS_BIN = .venv-clients/bin

# Images: `make images BUILDER=podman`, `BUILDER="docker buildx" BUILD_ARGS="--platform linux/arm64 --push"`.
# BUILD is the whole command, for builders with other flags: $(1) name, $(2) Dockerfile, $(3) stage.
IMAGES     ?= operator gateway engine
REGISTRY   ?= localhost
TAG        ?= $(shell sed -n 's/^appVersion: //p' charts/sloserve/Chart.yaml)
BUILDER    ?= docker
BUILD_ARGS ?=
BUILD      ?= $(BUILDER) build --tag $(1) --file $(2) --target $(3) $(BUILD_ARGS) .

.DEFAULT_GOAL := help
.PHONY: help setup up bench test clients e2e check format generate images clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make .venv and install everything (TORCH=cuda for GPU builds)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sloserve needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cuda)
	$(PIP) '$(TORCH_PIN)'
else
	$(PIP) --retries 2 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH_PIN)'
endif
	$(PIP) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

up: $(STAMP)  ## serve examples/sloservice.yaml on http://127.0.0.1:8080/v1 (ARGS="--port 9000")
	@$(BIN)/sloserve up -f examples/sloservice.yaml $(ARGS) || test $$? -eq 130

bench: $(STAMP)  ## load the service that `make up` started (ARGS="--help")
	@$(BIN)/sloserve bench $(ARGS)

# Tests that share a cluster run one after the other: they put its CRD there, and take it away.
test: $(STAMP)  ## run the whole test suite (ARGS="-k planner")
	$(BIN)/python -m pytest -n $(WORKERS) $(if $(KUBECONFIG),-m "not e2e") $(ARGS)
ifneq ($(KUBECONFIG),)
	$(BIN)/python -m pytest tests -m e2e $(ARGS) || test $$? -eq 5
endif

clients: $(STAMP) .venv-clients  ## run lm_eval, guidellm, aiperf against a service (CLIENTS=lm_eval)
	$(BIN)/python -m pytest tests/clients $(ARGS)

.PHONY: .venv-clients   # CLIENTS may be others than last time
.venv-clients:
	test -x $(CLIENTS_BIN)/uv || { $(PYTHON) -m venv .venv-clients && \
		$(CLIENTS_BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
ifneq ($(filter guidellm,$(CLIENTS)),)
	$(CLIENTS_BIN)/python -m pip install --quiet --disable-pip-version-check --retries 2 \
		$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH_PIN)'
endif
	$(CLIENTS_BIN)/uv pip install --quiet --python $(CLIENTS_BIN)/python \
		-c tests/clients/constraints.txt $(patsubst lm_eval,'lm_eval[api]' transformers,$(CLIENTS))

e2e: $(STAMP)  ## run the stories of e2e/ on KUBECONFIG's cluster, else on one made by kind
ifeq ($(KUBECONFIG),)
	e2e/on-kind
else
	$(BIN)/python -m pytest e2e -m "not alone" -n $(E2E_WORKERS) --durations=0 $(ARGS) || test $$? -eq 5
	$(BIN)/python -m pytest e2e -m alone --durations=0 $(ARGS) || test $$? -eq 5
endif

check: $(STAMP)  ## formatting, lint, types, imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format the code and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: $(STAMP)  ## write what exists twice: boards, docs/metrics.md, the chart's copies
	$(BIN)/python -m dashboards.generate
	cp crds/*.yaml charts/sloserve/files/crds/

images: $(IMAGES:%=image-%)  ## build container images (IMAGES="operator gateway engine engine-cuda")

.PHONY: image-operator image-gateway image-engine image-engine-cuda
image-operator:
	$(call BUILD,$(REGISTRY)/sloserve-operator:$(TAG),operator/Dockerfile,operator)
image-gateway:
	$(call BUILD,$(REGISTRY)/sloserve-gateway:$(TAG),server/Dockerfile.gateway,gateway)
image-engine:
	$(call BUILD,$(REGISTRY)/sloserve-engine:$(TAG),server/Dockerfile.engine,engine-cpu)
image-engine-cuda:
	$(call BUILD,$(REGISTRY)/sloserve-engine-cuda:$(TAG),server/Dockerfile.engine,engine-cuda)

clean:  ## remove what tools and runs left behind; keeps .venv
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .sloserve build dist
