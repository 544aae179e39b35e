# Everything runs from .venv, which tools/venv.sh makes and repairs.
# Needed beforehand: make and Python 3.11 or newer. To choose one: make PYTHON=python3.12 demo
PYTHON ?= python3
RUN := .venv/bin/python -m
CHECKED := $(wildcard sysout_jax experiments theory benchmarks)

.PHONY: demo test docs bench lint clean venv venv-dev

demo: venv
	$(RUN) experiments.variants
	$(RUN) experiments.tour --if_available

test: lint
	$(RUN) pytest -n 2 --dist worksteal

docs: venv # writes build/site; a broken link or a public name that is not documented fails
	$(RUN) pip --disable-pip-version-check install -qq -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

# Half an hour, and as long as demo and test take; make bench QUICK=--quick: two minutes, without
# what has a budget. Without requirements-reference.txt a line says that what is against PyTorch is left out.
bench: venv
	for name in variants seeds startup sweep; do $(RUN) benchmarks.$$name $(QUICK) || exit; done
	for name in first_result train analysis long_context; do $(RUN) benchmarks.$$name $(QUICK) || [ $$? = 2 ] || exit; done
	$(if $(QUICK),,$(RUN) benchmarks.budgets)
	$(RUN) benchmarks.verdicts

lint: venv-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy $(CHECKED)

clean: # keeps runs/, and corpora that were put into .cache/
	rm -rf .venv .cache/xla .cache/sysout_jax .cache/matplotlib .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

venv:
	@sh tools/venv.sh '$(PYTHON)' demo

venv-dev:
	@sh tools/venv.sh '$(PYTHON)' dev
