# make demo   installs, then opens the omni chat on 127.0.0.1
# make test   installs, then runs every notebook and every test
# make install | learn | train BUDGET=15m | bench | clean
#
# Variables: PYTHON=python3.12  PIP_ARGS="..." (for every pip call)  PORT=7860
#            BUDGET=15m PRESET=nano WORLD=small FROM=shipped OUT=runs/train (for train)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
HERE   := $(CURDIR) $(PYTHON)
KEY    := $(shell { cat constraints.txt pyproject.toml; echo "$(HERE)"; } | cksum | tr ' ' '-')
PIP    := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

PORT   ?= 7860
PRESET ?= nano
BUDGET ?= 15m
WORLD  ?= small
OUT    ?= runs/train

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install demo test learn train bench clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# An install is good while constraints.txt, pyproject.toml, this folder and the Python asked for are the same.
# A moved folder or another Python gets a new environment, since its programs name their old place.
# --no-compile: byte code of what is never imported would take more than a third of the processor time.
# torch goes first, under its pin, or pip would take the newest build with CUDA for its dependants.
install:
	@if [ "$$(cat $(STAMP) 2>/dev/null)" = "$(KEY)" ] && [ -x $(BIN)/omni-lite ]; then exit 0; fi; set -e; \
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"omni_lite needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make install PYTHON=python3.12" if v < (3, 11) else 0)'; \
	rm -f $(STAMP); \
	if [ "$$(cat $(VENV)/.home 2>/dev/null)" != "$(HERE)" ]; then \
	  echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); echo "$(HERE)" > $(VENV)/.home; fi; \
	echo "installing torch"; $(PIP) $$(grep '^torch==' constraints.txt); \
	echo "installing omni_lite and what it needs (a few minutes)"; $(PIP) -e '.[all]'; \
	$(BIN)/python -m omni_lite.doctor --repair; \
	echo "$(KEY)" > $(STAMP)

demo: install
	@$(BIN)/omni-lite demo --port $(PORT)

test: export OMP_NUM_THREADS := 1
test: export GRADIO_ANALYTICS_ENABLED := False
test: export HF_HUB_OFFLINE := 1
test: export HF_HUB_DISABLE_TELEMETRY := 1
test: install
	@$(BIN)/python -c 'from nbdev.doclinks import nbglob; n = len(nbglob()); print(n, "notebooks"); raise SystemExit(n == 0)'
	@$(BIN)/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("lm_eval") is None)' || { echo "installing lm-eval"; $(PIP) -e '.[eval]'; }
	$(BIN)/nbdev-test --n-workers 2 --timing
	$(BIN)/python -m pytest

learn: install
	@$(BIN)/jupyter lab --LabApp.news_url=None \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate nbs

train: install
	@$(BIN)/omni-lite train --preset $(PRESET) --budget $(BUDGET) --world $(WORLD) --out $(OUT) $(if $(FROM),--from $(FROM))

bench: install
	@OMP_NUM_THREADS=1 $(BIN)/omni-lite bench all --json runs/bench.json

clean:
	rm -rf build dist *.egg-info _proc _docs .pytest_cache .hypothesis tests/artifacts
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "kept: $(VENV) and runs (delete them by hand)"
