PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
UV ?= uv
MUTANTS ?= 300
SEED ?= 0
DEMO_PERSONS ?= 4300
DEMO_IMAGES ?= 4
DEMO_SIZE ?= 96x48
DEMO_SEED ?= 0
DEMO_QUERY ?= a woman with long brown hair in a red coat and dark blue trousers, with a red shoulder bag
DEMO_PHRASES ?= woman --and "long brown hair" --and "red coat" --and "dark blue trousers" --and "red shoulder bag"

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DEVELOPED := $(VENV)/developed
CORE := .venv-core
EXTRAS := .venv-extras
WHEEL := .venv-wheel
DATA := data/pedes-synth
FEW := data/pedes-synth-few
GALLERY := runs/demo/gallery
INDEX := runs/demo/index
STARTED := $(shell date +%s)
COMPILE = $(UV) pip compile --quiet --generate-hashes --no-annotate --custom-compile-command="make lock" \
	--python-version=3.12 --python-platform=x86_64-manylinux_2_31 $(LOCK)
# Without --no-compile, half of the time goes into compiling every module; Python compiles those that are imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Otherwise pytest-xdist would run a test that ends its worker again and again.
PYTEST := python -m pytest --tb=short -n 2 --dist=loadfile --max-worker-restart=0

.DEFAULT_GOAL := help
.PHONY: environment help install data demo serve test test-core test-extras test-wheel faults mutants lint lock ablation clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

# Steps on a CPU take a tenth less where the buffers, made anew in each, lie in huge pages (Linux with glibc).
demo ablation: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make the environment .venv (PYTHON=python3.12 names another interpreter, VENV=FOLDER another place)

data: $(INSTALLED) ## generate PEDES-Synth
	@echo "== data: $(DATA)"
	@$(BIN)/python -m input_pipeline.synthetic --out=$(DATA) --persons=$(DEMO_PERSONS) \
		--images_per_person=$(DEMO_IMAGES) --size=$(DEMO_SIZE) --seed=$(DEMO_SEED)

demo: data $(GALLERY) ## generate data, train, evaluate, index, search, in minutes; again: resume or do nothing twice
	@echo "== train, select on validation, report test once: runs/demo"
	@$(BIN)/python -m ivt_jax.main --config=configs/synth.py --workdir=runs/demo
	@echo "== index the test gallery: $(INDEX)"
	@$(BIN)/python -m ivt_jax.index --workdir=runs/demo --images=$(GALLERY) --index=$(INDEX)
	@echo "== search it: $(DEMO_QUERY)"
	@$(BIN)/python -m ivt_jax.search --index=$(INDEX) --html=runs/demo/search.html --explain "$(DEMO_QUERY)"
	@echo "== the same, split into its phrases"
	@$(BIN)/python -m ivt_jax.search --index=$(INDEX) --top=4 $(DEMO_PHRASES)
	@seconds=$$(($$(date +%s) - $(STARTED))); echo "== done in $$((seconds / 60)) min $$((seconds % 60)) s; open"
	@echo "   runs/demo/report.html   curves, retrieval strips, failures"
	@echo "   runs/demo/search.html   the search for the sentence"
	@echo "   or search by hand:      make serve"

serve: $(INSTALLED) ## open the page that searches the demo's index, on this machine alone
	@$(BIN)/python -m ivt_jax.serve --index=$(INDEX)

test: $(DEVELOPED) ## run all tests but those of `make faults`
	@$(BIN)/$(PYTEST)

test-core: ## run the tests that need no TensorFlow, in .venv-core, an environment without it (PYTHON=python3.13)
	@$(MAKE) --no-print-directory VENV=$(CORE) $(CORE)/core
	@$(CORE)/bin/$(PYTEST)

test-extras: ## run the tests that need PyTorch, Apache Beam or OpenCV, in .venv-extras, a separate environment
	@$(MAKE) --no-print-directory VENV=$(EXTRAS) $(EXTRAS)/extras
	@$(EXTRAS)/bin/python -c "import apache_beam, cv2, torch"  # otherwise pytest would skip the tests
	@$(EXTRAS)/bin/$(PYTEST) tests/reference tests/conversion tests/benchmarks tests/gallery/test_beam.py tests/test_cut_crops.py

test-wheel: ## build the wheel, install it into an empty environment, .venv-wheel, and try it from another folder
	@rm -rf $(WHEEL) build dist
	@$(MAKE) --no-print-directory VENV=$(WHEEL) environment
	@$(WHEEL)/bin/python -m pip wheel --quiet --no-deps --wheel-dir=dist .
	@echo "== install dist/*.whl and what it requires"
	@$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile dist/*.whl
	@$(WHEEL)/bin/python -I tests/smoke.py

mutants: $(DEVELOPED) ## change the core in 300 places, one at a time, and check that tests fail (2 hours, resumable)
	@$(BIN)/python tests/mutants.py --count=$(MUTANTS) --seed=$(SEED)

faults: $(DEVELOPED) ## kill, stop, starve and damage real runs (20 minutes)
	@$(BIN)/python -m pytest tests/faults -m "faults or not faults" --tb=short -o faulthandler_timeout=1800

lint: $(DEVELOPED) ## check style, types, shell scripts and the Dockerfile
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/hadolint launch/Dockerfile
	@$(BIN)/shellcheck launch/*.sh ivt_jax/benchmarks/*.sh .ci/run

lock: ## write launch/locks, the versions and hashes for launch/Dockerfile (UV=PATH; LOCK=--upgrade takes the newest)
	@$(UV) --version >/dev/null || { echo "error: make lock needs uv: pip install uv, or set UV to its path" >&2; exit 2; }
	@$(COMPILE) --output-file=launch/locks/cpu.txt requirements.txt
	@echo "jax[cuda13]" | $(COMPILE) --constraint=launch/locks/cpu.txt --output-file=launch/locks/cuda.txt requirements.txt -
	@echo "jax[tpu]" | $(COMPILE) --constraint=launch/locks/cpu.txt --output-file=launch/locks/tpu.txt requirements.txt -
	@echo "setuptools wheel" | tr ' ' '\n' | $(COMPILE) --constraint=launch/locks/cpu.txt --output-file=launch/locks/build.txt -

ablation: $(INSTALLED) ## train nine variants with three seeds each (hours, resumable), write three tables and plots
	@echo "== data: $(FEW)"
	@$(BIN)/python -m input_pipeline.synthetic --out=$(FEW) --persons=800 --size=$(DEMO_SIZE) --seed=$(DEMO_SEED)
	@$(BIN)/python -m ivt_jax.ablation --out=runs/ablation --root=$(FEW)
	@$(BIN)/python -m ivt_jax.ablation --study=losses --out=runs/ablation --root=$(FEW)
	@$(BIN)/python -m ivt_jax.ablation --study=towers --out=runs/ablation --root=$(FEW)

clean: ## remove the environments, caches, and the demo's data and run
	rm -rf $(VENV) $(CORE) $(EXTRAS) $(WHEEL) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(DATA) $(FEW) runs/demo runs/mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot be started here, or is older than Python 3.11; add PYTHON= and a newer one's path" >&2; \
		exit 2; }
	@echo "== environment: $(VENV), from $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# An environment keeps its Python, so a PYTHON= that differs would otherwise do nothing.
environment: $(BIN)/pip
ifneq ($(origin PYTHON), file)
	@test "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" = \
		"$$($(BIN)/python -c 'import sys; print(sys.version_info[:2])')" || { \
		echo "error: $(VENV) was made with $$($(BIN)/python --version), not $(PYTHON); remove $(VENV) first" >&2; exit 2; }
endif

$(INSTALLED): requirements.txt pyproject.toml | environment
	@echo "== install requirements.txt (about 2.6 GB, minutes the first time) and this project"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -e .
	@touch $@

$(DEVELOPED): tests/requirements.txt $(INSTALLED)
	@echo "== install tests/requirements.txt"
	@$(PIP) -r tests/requirements.txt
	@touch $@

$(VENV)/core: tests/requirements-core.txt requirements.txt | environment
	@echo "== install tests/requirements-core.txt"
	@$(PIP) -r tests/requirements-core.txt
	@touch $@

# PyTorch from PyPI includes CUDA on Linux (gigabytes). The CPU build has its own index; PyTorch's install page has the
# address: make test-extras TORCH="torch==2.13.0 --index-url=..."
$(VENV)/extras: tests/requirements-extras.txt tests/requirements.txt requirements.txt | environment
	@echo "== install tests/requirements-extras.txt"
	@$(PIP) $(TORCH)
	@$(PIP) -r tests/requirements-extras.txt
	@touch $@

# The crops of the test split alone: a folder to search.
$(GALLERY): | data
	@mkdir -p $@.partial
	@$(BIN)/python -c "import json; [print(r['file_path']) for r in json.load(open('$(DATA)/reid_raw.json')) if r['split'] == 'test']" \
		| (cd $(DATA)/imgs && xargs cp -t $(abspath $@.partial))
	@mv $@.partial $@
