# Begin with make distill. PYTHON chooses the interpreter (3.11, 3.12 or 3.13), OPTIONS are added to what a target runs.
PYTHON ?= python3
OPTIONS ?=
BIN := .venv/bin
READY := .venv/ready
# As many tests at a time as there are cores, each on one core; more than four would need much memory.
PARALLEL := -n logical --maxprocesses 4
# Threads that wait do not spin: where other programs want the cores, too, spinning made a step 20 times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: distill test check memory oldest book pdf lab lint notebooks assignments gpu pages links address smoke-results ipc-results class clean

distill: $(READY)  ## ten images from the 5,000 that come with the project, compared with real ones; stopped, it goes on
	$(BIN)/ddpp distill --profile smoke --out runs/smoke.safetensors $(OPTIONS)
	$(BIN)/ddpp show runs/smoke.safetensors --progress runs/progress.png

test: $(READY)  ## the module's tests, then the notebooks' cells against their stored outputs
	$(BIN)/python -m pytest $(PARALLEL) --dist loadgroup --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(OPTIONS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=900 notebooks

check: lint  ## style, types, and the tests that are not slow: about three minutes on two cores
	$(BIN)/python -m pytest $(PARALLEL) --dist loadgroup -m "not slow" $(OPTIONS)

# An error of oneDNN's overwrites memory on processors without AVX-512; glibc looks at every block that is freed.
memory: $(READY)  ## the networks' tests as on a processor with AVX2 alone, on any: see troubleshooting, "free()"
	GLIBC_TUNABLES=glibc.malloc.check=3 LD_PRELOAD=libc_malloc_debug.so.0 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
	  $(BIN)/python -m pytest --quiet tests/test_modules.py tests/test_networks.py $(OPTIONS)

# DeprecationWarnings of versions that are years old concern nobody
oldest: $(READY)  ## the tests that are not slow, with the oldest versions of what ddpp needs: runs/oldest, 6 GB
	mkdir -p runs/oldest
	$(BIN)/uv pip compile --quiet --python $(BIN)/python --resolution lowest-direct --no-build --no-deps --all-extras pyproject.toml --output-file runs/oldest/versions.txt
	test -x runs/oldest/bin/python || $(BIN)/python -m venv runs/oldest
	$(BIN)/uv pip install --python runs/oldest/bin/python -r requirements.txt --constraint runs/oldest/versions.txt
	runs/oldest/bin/python -m pytest $(PARALLEL) --dist loadgroup -m "not slow" -W ignore::DeprecationWarning $(OPTIONS)

book: $(READY)  ## build the HTML from the notebooks with their stored outputs, warnings as errors
	rm -rf _build/html _build/.doctrees # a second build repeats no warning of the first, and would pass
	$(BIN)/jupyter-book build . --nitpick --warningiserror --keep-going
	$(BIN)/python book/built.py
	@echo "Open $(CURDIR)/_build/html/index.html"

pdf: book  ## the book as one PDF, printed by Chromium, which has to be installed: _build/ddpp.pdf
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r tests/pages-requirements.txt
	$(BIN)/python book/pdf.py

lab: $(READY)  ## JupyterLab, to run the chapters and change them
	$(BIN)/jupyter-lab notebooks $(OPTIONS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --project . --pythonpath $(BIN)/python

notebooks: $(READY)  ## run the notebooks and keep their outputs in them
	$(BIN)/python book/run.py

assignments: $(READY)  ## the students' copies, the solutions and the points, from assignments/source
	$(BIN)/ddpp assign

gpu: $(READY)  ## run the notebooks as on a machine with a GPU, which is pretended: an hour, or make gpu CHAPTERS=notebooks/01*.ipynb
	$(BIN)/python tests/on_gpu.py $(CHAPTERS)

pages: $(READY)  ## look at every page of the built book in Chromium, which has to be installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r tests/pages-requirements.txt
	$(BIN)/python tests/pages.py

links: $(READY)  ## which links are dead: _build/linkcheck/output.txt; needs a network
	$(BIN)/jupyter-book build . --builder custom --custom-builder linkcheck

address: $(READY)  ## where this project lives, everywhere it stands: make address URL=https://github.com/you/ddpp
	$(BIN)/python book/address.py $(URL) $(BRANCH)
	$(BIN)/ddpp assign

smoke-results: $(READY)  ## the three smoke runs that the README shows, from a clean state
	rm -rf runs/smoke
	for seed in 0 1 2; do \
	  $(BIN)/ddpp distill --seed $$seed --teachers.seed $$seed --out runs/smoke/seed$$seed.safetensors && \
	  mkdir -p results/smoke && cp runs/smoke/seed$$seed.json results/smoke/ || exit 1; \
	done
	$(BIN)/ddpp show runs/smoke/seed0.safetensors --out runs/smoke/grid.png --progress results/smoke/progress.png

ipc-results: $(READY)  ## ten and fifty images per class, shortened runs that chapter 6 shows
	rm -rf runs/ipc
	$(BIN)/ddpp distill --ipc 10 --repeats 3 --out runs/ipc/ipc10.safetensors
	$(BIN)/ddpp distill --ipc 50 --image-lr 1500 --batch 100 --repeats 2 --out runs/ipc/ipc50.safetensors
	for n in 10 50; do \
	  cp runs/ipc/ipc$$n.json results/smoke/ && \
	  $(BIN)/ddpp show runs/ipc/ipc$$n.safetensors --before-after results/smoke/ipc$$n.png || exit 1; \
	done

class: $(READY)  ## how long grading takes, with the wall and without: make class STUDENTS=10 ROUNDS=3
	rm -rf runs/class
	$(BIN)/python tests/class_of.py $(or $(STUDENTS),200) runs/class $(or $(ROUNDS),1)

clean:
	rm -rf _build .venv notebooks/runs

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv, once. On Linux it takes about 7 GB, because of PyTorch's CUDA libraries; UV_TORCH_BACKEND=cpu avoids them."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements.txt
	touch $(READY)
