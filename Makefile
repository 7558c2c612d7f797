# make sweep   set everything up and run the quickstart sweep to its leaderboard, report and exported config
# make test    set everything up and run the tests
.PHONY: sweep test setup data lint format pretrain ui clean

PY := .venv/bin/python
export PYTHONWARNINGS ?= ignore::UserWarning:mmcv

setup:
	@scripts/setup.sh

data: setup
	@$(PY) -m aqr_model.data.synthetic --quickstart

sweep: data
	@if [ -e runs/quickstart/study.db ]; then .venv/bin/aqr-sweep resume runs/quickstart; \
	else .venv/bin/aqr-sweep run sweeps/specs/quickstart.yaml; fi
	@.venv/bin/aqr-sweep export runs/quickstart

test: setup
	@$(PY) -m pytest

lint: setup
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/pyright
	@.venv/bin/lint-imports

format: setup
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

clean:
	rm -rf .venv data runs work_dirs
