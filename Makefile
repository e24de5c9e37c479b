# Every target works in a fresh clone and needs only Python 3.11 or newer (the tests of the page also need Chromium).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup page native demo test check fast lint types web unit typed sanitize browser soak llama-cpp stories-model wheel lock clean

help:           ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## *(.*)/\1\t\2/p' Makefile | expand -t 16

setup: $(STAMP) page native ## create .venv with the locked packages, build the page and the native kernels

page: $(STAMP)  ## build the page that `glassformer serve` shows, if web/ has changed
	@$(BIN)/python hatch_build.py

native: $(STAMP) ## build the native kernels if their sources have changed
	@$(BIN)/python native_build.py

$(STAMP): requirements.lock requirements-torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python 3.11 or newer is needed, found {v[0]}.{v[1]}: set PYTHON=..." if v < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-torch.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $(STAMP)

demo: setup     ## train a tokenizer and a model on generated stories, and open the page on it
	$(BIN)/glassformer demo

test: check     ## run what CI runs: lint, types, all tests, and a test of the wheel

check: lint types web unit typed sanitize wheel

fast: setup     ## run the fast tests in under three minutes: no browser, no training in subprocesses
	$(BIN)/python -m pytest -n 2 --sample 1 -m "not slow and not soak and not llama_cpp" --ignore tests/e2e

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

web: setup
	$(BIN)/python hatch_build.py check

unit: setup browser
	$(BIN)/python -m pytest -n 2

typed: setup    ## run the tests of model, cache and generation with shapes and types checked by beartype
	TYPECHECK=1 $(BIN)/python -m pytest -n 2 -m "not slow and not soak and not llama_cpp" tests/nn tests/cache tests/generate

sanitize: setup  ## run the tests of the native kernels on a build with AddressSanitizer and UBSan
	$(BIN)/python native_build.py sanitize

browser: setup
	@$(BIN)/python tests/e2e/find_browser.py

soak: setup     ## run the long tests: kill a training run 200 times, read 20,000 damaged files of each format, fuzz HTTP
	$(BIN)/python -m pytest tests/soak -m soak -s

LLAMA_CPP := build/llama-cpp
# GGML_NATIVE=OFF: a CPU may report instructions that the system forbids, which crashes quantized models. --no-cache-dir:
# pip's cache may hold a wheel that was built without this option.
LLAMA_CPP_ARGS := -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF -DGGML_NATIVE=OFF

llama-cpp: setup ## build llama-cpp-python (takes minutes), and run exported GGUF files in it
	test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	CMAKE_ARGS="$(LLAMA_CPP_ARGS)" nice $(LLAMA_CPP)/bin/python -m pip install --quiet --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36
	GLASSFORMER_LLAMA_CPP=$(LLAMA_CPP)/bin/python $(BIN)/python -m pytest tests/soak/test_llama_cpp.py -m llama_cpp -s

stories-model: setup  ## retrain the model that ships with the package
	$(BIN)/python -m glassformer.toys.train_stories

wheel: setup
	rm -rf dist && $(BIN)/python -m build --no-isolation --skip-dependency-check --wheel --outdir dist . >/dev/null && ls -l dist/*.whl
	$(BIN)/python tests/check_wheel.py dist/*.whl

lock: setup     ## write the package versions of .venv to requirements*.lock, with hashes
	$(BIN)/python -m pip install --quiet uv
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --all --exclude-editable | grep -v -E '^(torch|uv|pip)==' \
		| $(BIN)/uv pip compile --quiet --generate-hashes --no-deps --no-annotate --no-header -; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	$(BIN)/python runtime_lock.py

clean:          ## remove everything that the targets create
	rm -rf $(VENV) dist build web/node_modules glassformer/web_dist glassformer/kernels/native/lib .pytest_cache .ruff_cache .hypothesis
