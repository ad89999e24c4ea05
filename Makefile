# Everything by hand and in CI goes through these; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve test coverage format client accuracy bench memory browser fuzz faults settings-table deploy-check image-check ray-test mutate clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

# torch goes first and alone: resolved with the rest, plain `torch` would pull gigabytes of CUDA packages.
$(VENV)/.serving: pyproject.toml clients/python/pyproject.toml constraints.txt hatch_build.py service/ops/rows.c service/ops/rows.inc
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e . -e clients/python
	touch $@

$(VENV)/.installed: $(VENV)/.serving
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# From the command line only: shells and compilers have a variable HOST of their own.
flag = $(if $(findstring command,$(origin $(1))),--$(2) '$($(1))')

serve: $(VENV)/.serving ## install and start the service, on 127.0.0.1:8000 unless HOST=... or PORT=... is given
	$(BIN)/loss-service serve $(call flag,HOST,host) $(call flag,PORT,port)

test: $(VENV)/.installed ## install, then format, lint, types, imports and all tests
	$(BIN)/ruff format --check --diff .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

coverage: $(VENV)/.installed ## print which lines the tests do not reach
	$(BIN)/pytest --cov=service --cov=loss_client --cov-branch --cov-report=term:skip-covered

format: $(VENV)/.installed ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

client: $(VENV)/.installed ## write the generated parts of the Python client anew
	$(BIN)/python clients/python/generate.py

accuracy: $(VENV)/.installed ## print the largest errors beside torch's own
	$(BIN)/python -m benchmarks.accuracy

bench: $(VENV)/.installed ## print the speed beside torch, a bare server and pydantic
	$(BIN)/python -m benchmarks.bench

memory: $(VENV)/.installed ## print the memory of large binary requests
	$(BIN)/python -m benchmarks.memory

browser: $(VENV)/.installed ## drive the pages in headless Chromium
	npm install --no-save --no-audit --no-fund --silent --prefix tests/browser
	$(BIN)/pytest -m browser

fuzz: $(VENV)/.installed ## generated bad input: to a running service, and guided by coverage to the safetensors reader
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/pytest -m fuzz
	$(BIN)/python -m tests.fuzz_safetensors

settings-table: $(VENV)/.installed ## write the table of settings into deploy/README.md
	$(BIN)/python -m deploy.settings_table

deploy-check: $(VENV)/.installed ## check Dockerfiles, compose files, manifests, rules and dashboard
	deploy/check.sh

image-check: ## build the image and run it for real, with compose and Prometheus (needs root)
	deploy/check-image.sh

# Ray listens on every interface it finds, so it gets a network of its own, with nothing but loopback.
RAY_VENV := .venv-ray

$(RAY_VENV)/.installed: pyproject.toml constraints.txt hatch_build.py service/ops/rows.c service/ops/rows.inc
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

ray-test: $(RAY_VENV)/.installed ## serve from a Ray cluster of two nodes, and kill replicas under load (Linux)
	unshare --net $$([ "$$(id -u)" = 0 ] || echo --map-root-user) sh -c \
		'ip link set lo up && exec $(RAY_VENV)/bin/pytest -m ray tests/deploy/test_ray.py -s'

mutate: $(VENV)/.installed ## take every check away, one at a time, and see that a test notices
	$(BIN)/python -m tests.mutate

faults: $(VENV)/.installed ## try what goes wrong under load and under attack, and print the figures
	$(BIN)/pytest -m faults -s

clean: ## remove what was installed and built
	rm -rf $(VENV) $(RAY_VENV) build dist *.egg-info
