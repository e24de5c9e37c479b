# Each target does everything it needs, from a machine with Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup page demo test check lint types web unit browser soak llama-cpp stories-model wheel bench clean

help:           ## these lines
	@grep -E '^[a-z-]+: .*##' Makefile | sed 's/:.*##/ /' | column -t -s '' 

setup: $(STAMP) page ## a virtual environment in .venv with the locked packages, and the page

page: $(STAMP)  ## the page that `glassformer serve` shows, where web/ is newer than it
	@$(BIN)/python hatch_build.py

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python 3.11 or newer is needed, found {v[0]}.{v[1]}: set PYTHON=..." if v < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup     ## train a tokenizer and a Transformer on little stories, and look inside
	$(BIN)/glassformer demo

test: check     ## what CI runs: lint, types, all tests, and a wheel that works

check: lint types web unit wheel

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

web: setup
	$(BIN)/python hatch_build.py check

unit: setup browser
	$(BIN)/python -m pytest -n 2

browser: setup
	@$(BIN)/python tests/e2e/find_browser.py

soak: setup     ## kill a training run 200 times, and see it end equal bit for bit
	$(BIN)/python -m pytest tests/soak -m soak -s

LLAMA_CPP := build/llama-cpp
# Not for this very processor: its newest instructions may be there and forbidden, and then quantized files crash it.
# And not from pip's cache, where a wheel that was built for it may lie.
LLAMA_CPP_ARGS := -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF -DGGML_NATIVE=OFF

llama-cpp: setup ## build llama-cpp-python (some minutes), and see it run the GGUF files that we write
	test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	CMAKE_ARGS="$(LLAMA_CPP_ARGS)" nice $(LLAMA_CPP)/bin/python -m pip install --quiet --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36
	GLASSFORMER_LLAMA_CPP=$(LLAMA_CPP)/bin/python $(BIN)/python -m pytest tests/soak/test_llama_cpp.py -m llama_cpp -s

stories-model: setup  ## train again the model that ships in the package
	$(BIN)/python -m glassformer.toys.train_stories

wheel: setup
	rm -rf dist && $(BIN)/python -m build --no-isolation --wheel --outdir dist . >/dev/null && ls -l dist/*.whl
	$(BIN)/python tests/wheel_has_page.py dist/*.whl

clean:          ## remove what the targets made
	rm -rf $(VENV) dist build web/node_modules glassformer/web_dist .pytest_cache .ruff_cache .hypothesis
