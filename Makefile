# Every target makes .venv when it is needed; nothing else has to be prepared. Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help install demo test faults check bench gpu clean

help:                   ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' Makefile

install: $(READY)       ## .venv with all packages: 7 GB, a few minutes

demo: $(READY)          ## a real sweep of the toy model: eight trials, report, exported winner
	@$(BIN)/lora-sweep run demo
	@$(BIN)/lora-sweep report demo
	@$(BIN)/lora-sweep status demo
	@$(BIN)/lora-sweep export demo --team demo --title watercolor --out exports/demo || echo "nothing was exported"
	@echo
	@echo "Try next:"
	@echo "  $(BIN)/lora-sweep ui                      browse the runs in MLflow"
	@echo "  $(BIN)/lora-sweep run demo --trials 12    go on with four more trials"
	@test ! -d exports/demo || echo "  $(BIN)/lora-sweep score exports/demo      score the exported story, or any folder of images"

test: $(READY)          ## the test suite, on the toy model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

faults: $(READY)        ## kill, tear, fill and hang everything, on the toy model: a few minutes
	$(BIN)/python -m pytest --override-ini addopts=-q -n 4 --dist worksteal tests/faults

check: $(READY)         ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)         ## ratios against the naive way, in one run
	$(BIN)/python -m tests.bench

gpu: $(READY)           ## Kolors' true shape on this GPU: speed, memory, numbers; needs CUDA, no weights, 9 minutes
	$(BIN)/python -m tests.gpu

clean:                  ## remove .venv and caches; runs/ and exports/ stay, and what they hold
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find core sweep reports tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lora-sweep needs Python 3.11 or later; set PYTHON=...")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing packages into .venv (7 GB with the CUDA build of torch; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
