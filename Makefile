PYTHON ?= python3
CONSTRAINTS ?= constraints.txt

SHELL := /bin/bash
BIN := .venv/bin
TESTED := $(if $(CONSTRAINTS),--constraint $(abspath $(CONSTRAINTS)))
# Bytecode is kept, whatever the environment says: else each process compiles all tests and the package anew.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet $(TESTED)

.DEFAULT_GOAL := help
.PHONY: help demo test slow smoke check extras docs pictures clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*  ## /make \1\t/p' Makefile | expand -t 14
	@echo
	@echo 'CONSTRAINTS=FILE takes the versions from FILE, CONSTRAINTS= whatever pip chooses, PYTHON=python3.12'
	@echo 'another Python: `make clean` before changing one of them.'

demo: .venv/.demo  ## train networks on real images, measure their variance shift, repair them
	$(BIN)/evenkeel demo

test: .venv/.test  ## run the tests and the examples in docstrings, but for those marked slow, on two processes
	$(PYTEST) -m 'not slow'

slow: .venv/.test  ## run those marked slow: processes, training, models of torchvision and timm, programs of pages
	$(PYTEST) -m slow

smoke: .venv/.test  ## run every experiment of the papers at smoke scale, on synthetic images, digits and simulations
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && set -ex && \
	$(BIN)/evenkeel reproduce hendrycks2016 li2018 chen2019 kim2023 --scale smoke --out "$$tmp" && \
	$(BIN)/evenkeel report "$$tmp" --html "$$tmp/report.html" --markdown "$$tmp/report.md"

check: .venv/.test  ## check format, style and types, then the wheel in an empty environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && set -ex && \
	$(BIN)/python -m build --outdir "$$tmp" . && \
	$(BIN)/python -m venv "$$tmp/venv" && \
	"$$tmp/venv/bin/python" -m pip install --quiet $(TESTED) "$$tmp"/*.whl && \
	cd "$$tmp" && \
	venv/bin/python -c 'import evenkeel, evenkeel.theory.li2018' && \
	venv/bin/evenkeel --version && \
	venv/bin/python -m evenkeel --version

# Of each extra: what it lets one import.
EXTRAS := plots:matplotlib report:jinja2 lightning:evenkeel.lightning hf:evenkeel.hf \
	papers:evenkeel.papers.catalogue cluster:ray tensorboard:torch.utils.tensorboard browser:playwright docs:mkdocs

extras:  ## install every extra by itself in an empty environment, and import what it is for
	@set -e; for pair in $(EXTRAS); do \
		tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; echo "$${pair%%:*}"; \
		$(PYTHON) -m venv "$$tmp" && "$$tmp/bin/python" -m pip install --quiet $(TESTED) torch && \
		"$$tmp/bin/python" -m pip install --quiet $(TESTED) ".[$${pair%%:*}]" && \
		(cd "$$tmp" && bin/python -c "import $${pair##*:}, evenkeel; evenkeel.trace") && rm -rf "$$tmp"; \
	done

docs: .venv/.test  ## write the pages that are made from rules and results anew, and build the site
	$(BIN)/evenkeel explain --write docs/linting/rules
	$(BIN)/python -m benchmarks.claims
	$(BIN)/mkdocs build --strict --quiet

pictures: .venv/.test  ## draw the README's picture anew, from a network trained on real digits
	$(BIN)/python -m benchmarks.pictures

clean:  ## remove .venv and everything built or cached
	rm -rf .venv build dist .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch comes first: all that follows is resolved around the one version asked for.
.venv/.torch: $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(INSTALL) --editable . scikit-learn
	touch $@

# torchvision and timm come without their dependencies, which may ask for another torch.
.venv/.test: .venv/.torch pyproject.toml
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps torchvision timm
	touch $@
