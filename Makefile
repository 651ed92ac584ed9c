# make demo   what the package does, offline, on three synthetic people
# make test   the tests
# make lint   style and types
# Each makes .venv when it is missing and installs again when pyproject.toml or constraints.txt changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer."; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"; exit 2; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "error: cannot make $(VENV); on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): the first time about 2 minutes and 7 GB, most of it PyTorch."
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -e '.[dev]' -c constraints.txt
	@$(BIN)/python -c 'import cv2; from mediapipe.tasks.python import vision' 2>$(VENV)/import.log || { tail -n 1 $(VENV)/import.log; \
	  echo "error: a system library is missing; on Debian and Ubuntu: apt-get install libgl1 libegl1 libgles2 libglib2.0-0"; exit 2; }
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/personalize demo

test: $(STAMP)
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
