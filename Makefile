# Every target sets up .venv first, if it is missing or older than pyproject.toml or constraints.txt.
#   make demo    train the demonstration grid and print its table
#   make test    run the tests but the slow ones; ARGS="tests/models" some of them
#   make test-all  run all tests; those on Ray and Slurm are skipped where these are missing
#   make cluster   install Ray, and Slurm on Debian as root
#   make test-cluster  install both and train on them
#   make fuzz    try suites, records, weights and archives that hypothesis makes up, for long; ARGS="-k suites" some of them
#   make docs    build the documentation into .venv/site, strictly: broken links and undocumented keys are errors
#   make bench   measure steps, streams, saves, start-up and reports; PEER=FOLDER RepDistiller beside; ARGS="--quick" tries it
#   make bench-tables  write the tables of benchmarks/README.md from what was measured
#   make tiny    try every bundled suite's grid with tiny runs; SUITES="ega_weights demo" tries these alone
PYTHON ?= python3
EXTRAS ?= dev
VENV := .venv
READY := $(VENV)/.ready
KDBENCH := $(VENV)/bin/kdbench
PIP := $(VENV)/bin/python -m pip install --quiet
# What kdbench sets for its workers, too: freed memory is kept, and threads that wait for each other soon sleep.
export MALLOC_TRIM_THRESHOLD_ := 1073741824
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export GOMP_SPINCOUNT := 10000
# Compiled modules are kept: otherwise each process that a test starts compiles kdbench anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all cluster test-cluster fuzz lint docs smoke tiny bench bench-tables clean

demo: $(READY)
	$(KDBENCH) run demo

# Tests write thousands of files that kdbench waits for until they are on the disk: in memory, where there is room, none waits.
MEMORY := $(shell df -Pk /dev/shm 2> /dev/null | awk 'NR == 2 && $$4 > 8000000 { print "TMPDIR=/dev/shm" }')
PYTEST := $(MEMORY) OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

# Tests on clusters and of killed processes wait most of their time: two workers more than cores keep these busy.
test-all: $(READY)
	$(PYTEST) --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 2)) $(ARGS)

cluster: $(READY)
	command -v slurmctld > /dev/null || (apt-get update -qq && apt-get install -qq --yes --no-install-recommends slurmctld slurmd \
	slurm-client munge > /dev/null) || echo "Slurm cannot be installed here: its test is skipped"
	$(VENV)/bin/python -c 'import ray' 2> /dev/null || $(PIP) --constraint constraints.txt --editable '.[cluster]'

test-cluster: cluster
	$(PYTEST) tests/execution/test_ray.py tests/cli/test_slurm.py -rs $(ARGS)

fuzz: $(READY)
	KDBENCH_FUZZ=fuzz $(PYTEST) tests/fuzz $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	test -x $(VENV)/bin/mkdocs || $(PIP) --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --site-dir $(VENV)/site

smoke: $(READY)
	$(KDBENCH) run smoke --results $(VENV)/smoke
	$(VENV)/bin/python .ci/tables.py $(VENV)/smoke smoke

# All suites in one go, from nothing: what several share is trained once. Their tables and the progress go to files.
SUITES ?= $(patsubst suites/%.yaml,%,$(wildcard suites/*.yaml))
TINY := $(VENV)/tiny
tiny: $(READY)
	@rm -rf $(TINY) && mkdir -p $(TINY)
	@$(KDBENCH) run $(SUITES) --tiny --devices cpu --checkpoint-seconds 600 --results $(TINY) > $(TINY)/tables.txt 2> $(TINY)/progress.txt; \
	code=$$?; $(VENV)/bin/python .ci/tables.py --tiny $(TINY) $(SUITES); checked=$$?; \
	if [ $$code -ne 0 ]; then tail -n 20 $(TINY)/progress.txt >&2; exit $$code; fi; exit $$checked

bench: $(READY)
	$(VENV)/bin/python benchmarks/bench.py $(if $(PEER),--peer $(PEER)) $(ARGS)

bench-tables: $(READY)
	$(VENV)/bin/python benchmarks/bench.py --tables

clean:
	rm -rf $(VENV)

# torch comes first and alone: the build that is installed then decides between CPU and CUDA for all that follows.
$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
