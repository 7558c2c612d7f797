# make sweep     set everything up and run the quickstart sweep to its leaderboard, report and exported config
# make test      set everything up and pass the tests
# make chaos     break sweeps in every way the suite knows, in the large size; prints counts
# make clean     remove .venv and the synthetic data; sweeps, trainings and nuScenes stay
# make pretrain  make the committed nano checkpoint anew: about an hour on two cores
.PHONY: sweep test setup data lint format pretrain chaos clean

PY := .venv/bin/python
SWEEP := .venv/bin/aqr-sweep
RUN := runs/quickstart
SHIFTED := data/synthetic/shifted
BASE := data/synthetic/base
INFOS := nuscenes_infos_synth_val.pkl

sweep: setup $(SHIFTED)/$(INFOS)
	@if [ -e $(RUN)/spec.yaml ]; then $(SWEEP) resume $(RUN); \
	else $(SWEEP) run sweeps/specs/quickstart.yaml; fi
	@$(SWEEP) export $(RUN)

# A process for each of two cores. The order of the files is that of conftest.py.
test: setup
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

chaos: setup
	@CHAOS=large $(PY) -m pytest tests/integration/test_chaos.py tests/integration/test_postgresql.py -s

setup:
	@scripts/setup.sh

data: setup $(SHIFTED)/$(INFOS)

$(SHIFTED)/$(INFOS): | setup
	@$(PY) -m aqr_model.data.synthetic --root $(SHIFTED) --domain shifted \
		--train-scenes 45 --val-scenes 12 --seed 1 --workers 2
	@$(PY) -m aqr_model.data.prepare --dataroot $(SHIFTED) --version v1.0-synth --no-database

$(BASE)/$(INFOS): | setup
	@$(PY) -m aqr_model.data.synthetic --root $(BASE) --domain base \
		--train-scenes 300 --val-scenes 15 --seed 0 --workers 2
	@$(PY) -m aqr_model.data.prepare --dataroot $(BASE) --version v1.0-synth --no-database

pretrain: setup $(BASE)/$(INFOS)
	@$(PY) -m aqr_model.train aqr_model/configs/cmt_nano.py --resume
	@$(PY) -m aqr_model.publish aqr_model/configs/cmt_nano.py work_dirs/cmt_nano/final.pth \
		aqr_model/checkpoints/cmt_nano.pth

lint: setup
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/pyright
	@.venv/bin/lint-imports

format: setup
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

clean:
	rm -rf .venv data/synthetic
