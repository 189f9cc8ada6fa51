# Each of the first two targets does all the set-up on a fresh machine (Python 3.11 or later, nothing else).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test lint tables clean

demo: $(VENV)/app-installed
	$(BIN)/auxin demo

test: $(VENV)/dev-installed
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/app-installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[app]"
	touch $@

$(VENV)/dev-installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[app,dev]"
	touch $@ $(VENV)/app-installed

# Every table of every README, and every one beside results, again from experiments/*/results.
tables: $(VENV)/app-installed
	$(BIN)/python experiments/tables.py
	$(BIN)/python experiments/readme.py README.md experiments/sakai2024/README.md experiments/equal_flops/README.md experiments/methods/README.md
	$(BIN)/python experiments/equal_flops/goal.py
	$(BIN)/python experiments/equal_flops/picture.py
	$(BIN)/python experiments/sakai2024/pictures.py
	$(BIN)/python experiments/sakai2024/duplicates.py
	$(BIN)/python experiments/secnn2024/tables.py
	$(BIN)/python experiments/similarity/table.py
	$(BIN)/python experiments/similarity/draw_table.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
