# `make` alone lists the targets. Everything needs Python ≥ 3.11; the real broker also Java 17 and Maven (or Docker).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN     = $(BIN)/python

.PHONY: help demo test test-long check docs kafka kafka-stop edges bench bench-core chaos clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/: .*##/\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("streamjobs needs Python 3.11 or newer; set PYTHON=python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready  ## publish, run, fail, retry, bury and replay a few thousand jobs on the embedded broker; BREAK=1 loses one
	@$(BIN)/streamjobs demo $(if $(BREAK),--break) $(if $(OUTPUT),-o $(OUTPUT))

check: $(VENV)/.ready  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

test: check  ## everything that must hold, on a real broker too (KAFKA from Maven, Docker or STREAMJOBS_TEST_BOOTSTRAP)
	@$(RUN) -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-long: $(VENV)/.ready  ## what takes longer than `make test` may
	@$(RUN) -m pytest -m long

kafka: $(VENV)/.ready  ## a real Kafka for development, at localhost:9092
	@$(RUN) deploy/kafka/local.py start --port 9092 --detach

kafka-stop: $(VENV)/.ready
	@$(RUN) deploy/kafka/local.py stop

docs: $(VENV)/.ready  ## renew what the documentation takes from the code: settings, commands, metrics, states
	@$(RUN) -m tests.documentation

edges: $(VENV)/.ready  ## edge cases that no test carries
	@$(RUN) tests/edges.py

bench: $(VENV)/.ready  ## throughput and latency beside a bare client, in one run
	@$(RUN) -m tests.bench

bench-core: $(VENV)/.ready  ## instruction counts of the pure core (needs valgrind)
	@$(RUN) -m tests.bench.core

chaos: $(VENV)/.ready  ## faults for MINUTES=30 with a judge; SEED=n repeats a schedule
	@$(RUN) -m tests.chaos --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) .kafka build *.egg-info
