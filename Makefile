# make demo   synthetic speech -> train -> evaluate; sets everything up first
# make test   lint, types, all tests; sets everything up first
# make soak   the proofs that take long
# make gpu    on a GPU: no step waits for it, how fast a step is, what would limit many
# make docs   the documentation as a web site, in site/

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed

DEMO_DATA ?= data/demo
DEMO_CONFIG ?= models/demo/simclr/config.yml
DEMO_SIZE ?=# options of prepare_demo.py, such as --train_voices 40
DEMO_SET ?=# settings of the training, such as trainer.epochs=1 run_dir=runs/short
PYTEST ?=# options of pytest, such as -k config

.PHONY: demo test lint soak gpu docs clean

demo: $(READY)
	$(PY) tools/prepare_data/prepare_demo.py $(DEMO_DATA) $(DEMO_SIZE)
	$(PY) sslsv/bin/train.py $(DEMO_CONFIG) dataset.base_path=$(DEMO_DATA) $(DEMO_SET)
	$(PY) sslsv/bin/evaluate.py $(DEMO_CONFIG) --baselines --plots dataset.base_path=$(DEMO_DATA) $(DEMO_SET)

# A process for each core (eight at most), each with whole files of tests.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not soak" -n auto --maxprocesses 8 \
	  --dist loadfile --no-loadscope-reorder $(PYTEST)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

soak: $(READY)
	$(PY) -m pytest -m soak $(PYTEST)

gpu: $(READY)
	@$(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "error: PyTorch sees no GPU"; exit 2; }
	$(PY) -m pytest tests/methods/test_host_sync.py tests/trainer/test_prefetch.py -k "gpu or cuda or memory"
	@mkdir -p runs
	$(PY) benchmarks/train_step.py > runs/train_step.json
	$(PY) benchmarks/scaling.py --measured runs/train_step.json

docs: $(READY)
	$(PY) -m pip install --disable-pip-version-check -q -e ".[docs]"
	$(PY) tools/make_config_reference.py --check
	$(PY) -m mkdocs build --strict

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: Python 3.10 to 3.13 is needed; run 'make PYTHON=python3.12 ...'"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt -e ".[demo,dev,export,foundation]"
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
