# Pomona. `make serve` and `make test` work from a clean clone with Python 3.11, make and a package index.

PYTHON ?= python3.11
HOST   ?= http://localhost:3000
VENV   := .venv
BIN    := $(VENV)/bin
# What `make image` builds: models of the catalogue; cpu or gpu; the image's name, with the registry if it is pushed.
MODELS  ?= mobile-sam,unet-mobilenetv2-citrus
VARIANT ?= cpu
IMAGE   ?= pomona
# Files of tests are spread over processes: a file's fixtures, servers among them, are made once.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

export BENTOML_DO_NOT_TRACK := True

.PHONY: help serve sam2 test test-fast check format bench bench-gpu soak fuzz loadtest train-unet finetune-sam evaluate client-wheel test-client proto bento image test-image attack-image manifests check-manifests kind-test audit observe check-observability try-label-studio loop docs lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*##/make \1 :/p' $(MAKEFILE_LIST) | column -t -s :

serve: $(VENV)/runtime.stamp  ## serve on POMONA_HTTP_PORT (3000); fetches the weights first if they are missing
	$(BIN)/bentoml serve service.app:Pomona

sam2: $(VENV)/sam2.stamp  ## install what SAM 2 needs beside the rest

test: check  ## run everything that CI runs, on all cores, then one by one what measures time or memory
	$(BIN)/python -m pytest $(PARALLEL) -m "not alone"
	$(BIN)/python -m pytest -m alone

test-fast: $(VENV)/dev.stamp  ## run all but the slow tests, while working: about two minutes
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow and not alone"

check: $(VENV)/dev.stamp  ## run ruff (lint and format), bandit, mypy (strict) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive service models clients/python/src
	$(BIN)/mypy
	cd clients/python && ../../$(BIN)/mypy
	PYTHONPATH=clients/python/src $(BIN)/lint-imports

format: $(VENV)/dev.stamp  ## format and fix with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: export PYTHONPATH = clients/python/src
bench: $(VENV)/peers.stamp  ## measure everything that the documentation quotes, beside other servers; writes loadtest/reports
	$(BIN)/python -m loadtest all

bench-gpu: $(VENV)/dev.stamp  ## measure SAM and U-Net on a CUDA device, if there is one
	$(BIN)/python -m loadtest gpu

soak: $(VENV)/dev.stamp  ## run all operations at 0.8 of the capacity for half an hour; ARGS="--minutes 3" for less
	$(BIN)/python -m loadtest soak $(ARGS)

fuzz: $(VENV)/dev.stamp  ## give 100,000 mutated images, requests and messages to their readers and to a server; only Pomona's errors may come of it
	$(BIN)/python -m loadtest fuzz $(ARGS)

loadtest: $(VENV)/dev.stamp  ## load a running service at HOST (that of make serve); ARGS="--help" lists options
	$(BIN)/python -m loadtest locust --host $(HOST) $(ARGS)

train-unet: $(VENV)/dev.stamp  ## train a U-Net on DATA into OUT (runs/unet); ARGS="--help" lists options
	$(BIN)/python -m models.training unet --out $(or $(OUT),runs/unet) $(if $(DATA),--data $(DATA)) $(ARGS)

finetune-sam: $(VENV)/dev.stamp  ## fine-tune a SAM's mask decoder on DATA into OUT (runs/sam); ARGS="--help" lists options
	$(BIN)/python -m models.training sam --out $(or $(OUT),runs/sam) $(if $(DATA),--data $(DATA)) $(ARGS)

evaluate: $(VENV)/dev.stamp  ## measure U-Nets and SAMs on DATA, report into OUT (runs/evaluation); ARGS="--help" lists options
	$(BIN)/python -m models.evaluation --out $(or $(OUT),runs/evaluation) $(if $(DATA),--data $(DATA)) $(ARGS)

client-wheel: $(VENV)/lock.stamp  ## build the Python client's wheel into clients/python/dist
	rm -rf clients/python/dist
	$(BIN)/uv build --wheel clients/python

test-client: client-wheel  ## install that wheel in a fresh environment of every installed Python, and run the client's tests there
	$(BIN)/python -m clients.python.try_wheel clients/python/dist/pomona_client-*.whl

proto: $(VENV)/dev.stamp  ## generate the gRPC code of service and client from service/proto/*.proto
	$(BIN)/python -m service.proto.generate
	$(BIN)/python -m clients.python.make_proto

bento: $(VENV)/runtime.stamp  ## build a Bento into dist/bentoml
	BENTOML_HOME=$(CURDIR)/dist/bentoml $(BIN)/bentoml build

image: bento  ## build the image IMAGE for VARIANT (cpu or gpu) with MODELS inside, by podman, buildah or docker
	IMAGE=$(IMAGE) MODELS=$(MODELS) deploy/image/build.sh $(VARIANT) dist/bentoml/bentos/pomona/$$(cat dist/bentoml/bentos/pomona/latest)

test-image: bento $(VENV)/dev.stamp  ## build the image VARIANT and test it by running it (needs podman or docker; takes minutes)
	IMAGE=$(IMAGE) MODELS=$(MODELS) deploy/test_image.sh $(VARIANT) dist/bentoml/bentos/pomona/$$(cat dist/bentoml/bentos/pomona/latest)

attack-image: $(VENV)/dev.stamp  ## attack a container of the image that make image or make test-image built, within 3 GiB; takes half an hour
	$(BIN)/python -m loadtest memory --image $(IMAGE):$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)-$(VARIANT) $(ARGS)

manifests: $(VENV)/dev.stamp  ## render the Helm chart's variants as plain YAML into deploy/rendered, and its README
	$(BIN)/python -m deploy.manifests
	$(BIN)/python -m deploy.chart_readme

check-manifests: $(VENV)/deploy.stamp $(VENV)/dev.stamp  ## check the chart (schemas of three Kubernetes versions, checkov) and the Dockerfile (hadolint)
	$(BIN)/python -m pytest -q tests/unit/test_manifests.py tests/unit/test_chart.py
	$(VENV)/deploy-tools/bin/checkov --config-file deploy/checkov.yaml --directory deploy/rendered
	$(VENV)/deploy-tools/bin/hadolint deploy/image/Dockerfile

kind-test: $(VENV)/dev.stamp  ## try the chart on kubectl's cluster, whose context CONTEXT must name; ARGS="--help" lists options
	$(BIN)/python -m deploy.cluster --context "$(CONTEXT)" --repository "$(IMAGE)" $(ARGS)

audit: $(VENV)/deploy.stamp  ## look the locked packages up in PyPI's advisories, with pip-audit; needs pypi.org itself
	$(VENV)/deploy-tools/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

observe:  ## run Prometheus (Debian's package) with our rules on port 9090, beside make serve
	mkdir -p runs/prometheus
	prometheus --config.file=deploy/observability/prometheus.yaml --storage.tsdb.path=runs/prometheus \
	    --web.listen-address=127.0.0.1:9090

check-observability: $(VENV)/dev.stamp  ## check the alert rules (needs promtool), the dashboard and the documented metrics
	promtool check rules deploy/observability/rules.yaml
	promtool test rules deploy/observability/rules_test.yaml
	$(BIN)/python -m pytest -q tests/unit/test_observability_metrics.py

try-label-studio: $(VENV)/label-studio.stamp $(VENV)/dev.stamp  ## start the real Label Studio and connect Pomona to it; ARGS="--browser FOLDER" also clicks in Chromium
	$(BIN)/python -m deploy.label_studio --label-studio $(VENV)/label-studio/bin/label-studio $(ARGS)

loop: export PYTHONPATH = clients/python/src
loop: $(VENV)/dev.stamp  ## show on rendered fruit how captured frames become a better model, without a stop; writes OUT (runs/loop)
	$(BIN)/python -m deploy.loop --out $(or $(OUT),runs/loop) $(ARGS)

docs: $(VENV)/docs.stamp $(VENV)/runtime.stamp  ## build the documentation's site into dist/site; a broken link fails
	$(BIN)/python -m docs.generate_settings
	$(VENV)/docs-tools/bin/zensical build --strict --clean

lock: $(VENV)/lock.stamp  ## refresh the lock files from pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate --constraint requirements.lock \
	    pyproject.toml --group dev --output-file requirements-dev.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate --constraint requirements-dev.lock \
	    --group peers --output-file requirements-peers.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate --constraint requirements.lock \
	    --constraint requirements-dev.lock --group sam2 --output-file requirements-sam2.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate --constraint requirements.lock \
	    deploy/image/cpu.in --output-file deploy/image/requirements-cpu.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    docs/requirements.in --output-file docs/requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    deploy/label_studio/requirements.in --output-file deploy/label_studio/requirements.lock
	for folder in deploy/image deploy; do \
	    $(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	        --generate-hashes --no-emit-index-url --no-header --no-annotate \
	        $$folder/tools.in --output-file $$folder/requirements-tools.lock || exit 1; \
	done

clean:  ## remove the virtual environment and the caches of the tools
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime.stamp: requirements.lock | $(VENV)/bin/python
	@echo "Installing the locked packages into $(VENV) (about 5.7 GB with PyTorch; takes minutes, once) …"
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/runtime.stamp
	@echo "Installing the locked development packages …"
	$(PIP) install --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

$(VENV)/sam2.stamp: requirements-sam2.lock $(VENV)/runtime.stamp
	@echo "Installing what SAM 2 needs …"
	$(PIP) install --require-hashes --no-deps -r requirements-sam2.lock
	@touch $@

$(VENV)/peers.stamp: requirements-peers.lock $(VENV)/dev.stamp
	@echo "Installing the locked servers that Pomona is compared with …"
	$(PIP) install --require-hashes --no-deps -r requirements-peers.lock
	@touch $@

# Tools that check deployments have an environment of their own: their dependencies conflict with ours.
$(VENV)/deploy.stamp: deploy/requirements-tools.lock | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/deploy-tools
	$(VENV)/deploy-tools/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r deploy/requirements-tools.lock
	@touch $@

$(VENV)/docs.stamp: docs/requirements.lock | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/docs-tools
	$(VENV)/docs-tools/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r docs/requirements.lock
	@touch $@

# Label Studio has an environment of its own: it is only tried, and holds other versions of what we use.
$(VENV)/label-studio.stamp: deploy/label_studio/requirements.lock | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/label-studio
	$(VENV)/label-studio/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r deploy/label_studio/requirements.lock
	@touch $@

$(VENV)/lock.stamp: pyproject.toml | $(VENV)/bin/python
	$(PIP) install uv
	@touch $@
