# The two commands of this project: make book, make test. PYTHON chooses the interpreter (3.11, 3.12 or 3.13).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: book test lint notebooks assignments pages links address smoke-results ipc-results class clean

book: $(READY)  ## build the HTML from the notebooks with their stored outputs, warnings as errors
	$(BIN)/jupyter-book build . --nitpick --warningiserror --keep-going
	@echo "Open $(CURDIR)/_build/html/index.html"

test: $(READY)  ## the module's tests, then the notebooks' cells against their stored outputs
	$(BIN)/python -m pytest --cov=ddpp --cov-report=term-missing:skip-covered --cov-fail-under=90
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=900 notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)  ## run the notebooks and keep their outputs in them
	$(BIN)/python book/run.py

assignments: $(READY)  ## the students' copies, the solutions and the points, from assignments/source
	$(BIN)/ddpp assign

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
	$(BIN)/ddpp distill --ipc 10 --steps 30 --student-steps 10 --image-lr 1000 --iterates 2 --repeats 3 --protocol.epochs 60 --out runs/ipc/ipc10.safetensors
	$(BIN)/ddpp distill --ipc 50 --steps 30 --student-steps 10 --image-lr 3000 --batch 100 --iterates 1 --repeats 2 --protocol.epochs 40 --out runs/ipc/ipc50.safetensors
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
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	touch $(READY)
