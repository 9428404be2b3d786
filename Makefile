# make demo      the whole job on drawn radiographs: environment, data, split, training, test
# make test      environment, ruff, mypy, pytest
# make soak      all tests, the slow ones too, and those of faults many times over
# make pictures  draw the README's pictures anew, with chromium

# Where this is set, Python compiles torch anew in every process: 13 s of import instead of 3 s.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo pictures test soak

demo: .venv/ready
	test -d data/demo/FracAtlas || $(RUN) -m fracture.data.synthetic data/demo/FracAtlas
	test -d data/demo/split || $(RUN) split_dataset.py --config recipes/demo.yaml
	$(RUN) train.py --config recipes/demo.yaml
	$(RUN) infer.py --config recipes/demo.yaml

pictures: demo
	PYTHONPATH=. $(RUN) docs/pictures/draw.py

test: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .
	$(RUN) -m pytest

soak: .venv/ready
	KILLS=20 $(RUN) -m pytest

# uv installs in under a minute what takes pip several.
.venv/ready: requirements.txt requirements-dev.txt requirements-app.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip install --quiet --python $(RUN) -r requirements.txt -r requirements-dev.txt
	touch $@
