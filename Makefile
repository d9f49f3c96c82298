# A few verbs. Everything happens in .venv, made on first use.

PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test check soak fuzz huge bench predict clean

$(BIN)/rmpi-run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(BIN)/rmpi-run         ## k-means on a photograph, four ranks
	$(BIN)/rmpi-run -n 4 examples/kmeans.py

test: $(BIN)/rmpi-run         ## the tests; those that need root and sshd skip without them
	$(BIN)/python -m pytest

check: $(BIN)/rmpi-run        ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(BIN)/rmpi-run         ## the concurrent tests, fifty times; an hour and more
	for i in $$(seq 50); do $(BIN)/python -m pytest -q -x tests/transport tests/comm tests/launcher tests/places tests/rpc tests/taskfarm tests/mapreduce || exit 1; done
	$(BIN)/python tests/taskfarm/farm_soak.py 600

fuzz: $(BIN)/rmpi-run         ## random programs on an extension with sanitizers; ten minutes; needs gcc
	$(BIN)/python tests/transport/random_programs.py 600

huge: $(BIN)/rmpi-run        ## messages of 2 GiB and more; minutes, and 13 GiB of memory
	RMPI_HUGE=1 $(BIN)/python -m pytest -q tests/comm/test_huge.py

bench: $(BIN)/rmpi-run        ## against MPICH and Open MPI; each link; k-means; calls; tasks; word count; on an idle machine, half an hour
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/links.py --anyway       # what load there is now is our own
	$(BIN)/python benchmarks/kmeans_scaling.py --anyway
	$(BIN)/python benchmarks/rpc.py --anyway
	$(BIN)/python benchmarks/taskfarm.py --anyway
	$(BIN)/python benchmarks/mapreduce.py --anyway

predict: $(BIN)/rmpi-run      ## what collectives would cost on up to 65,536 ranks; on an idle machine, five minutes
	$(BIN)/python benchmarks/predict.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
