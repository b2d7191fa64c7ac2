# Two commands do everything on a fresh Debian or Ubuntu machine with python3 and make:
#   make demo   creates .venv, installs edgetl[demo], runs the main job on real photos
#   make test   creates .venv, installs edgetl[dev], runs lint, types and tests
# A second run reuses .venv and installs nothing unless pyproject.toml changed. PYTHON=python3.12 chooses the interpreter.
# The tests run in one process per core, four at most; WORKERS=0 runs them in one.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin

.PHONY: help demo test lint types unit venv venv-demo clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: venv-demo
	$(BIN)/edgetl demo

test: lint types unit

lint: venv
	$(BIN)/ruff check .

types: venv
	$(BIN)/mypy

unit: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The stamps hold what was installed; `dev` contains `demo`, so after `make test` the demo installs nothing.
venv: $(VENV)/.installed-dev

venv-demo:
	@test -e $(VENV)/.installed-dev -a ! pyproject.toml -nt $(VENV)/.installed-dev || \
		$(MAKE) --no-print-directory $(VENV)/.installed-demo

$(VENV)/.installed-dev $(VENV)/.installed-demo: $(VENV)/.installed-%: pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deploy/make-venv.sh
	@echo "Installing edgetl[$*] into $(VENV); PyTorch is large, this takes a few minutes ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
