# The two commands of this project: make book, make test. PYTHON chooses the interpreter (3.11, 3.12 or 3.13).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: book test lint notebooks smoke-results clean

book: $(READY)  ## run the notebooks and build the HTML, warnings as errors
	$(BIN)/jupyter-book build . --nitpick --warningiserror --keep-going
	@echo "Open $(CURDIR)/_build/html/index.html"

test: $(READY)  ## the module's tests, then the notebooks' cells against their stored outputs
	$(BIN)/python -m pytest --cov=ddpp --cov-report=term-missing:skip-covered --cov-fail-under=90
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=900 notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)  ## run the notebooks and keep their outputs in them
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

smoke-results: $(READY)  ## the three smoke runs that the README shows, from a clean state
	rm -rf runs/smoke
	for seed in 0 1 2; do \
	  $(BIN)/ddpp distill --seed $$seed --teachers.seed $$seed --out runs/smoke/seed$$seed.safetensors && \
	  mkdir -p results/smoke && cp runs/smoke/seed$$seed.json results/smoke/ || exit 1; \
	done
	$(BIN)/ddpp show runs/smoke/seed0.safetensors --out runs/smoke/grid.png --progress results/smoke/progress.png

clean:
	rm -rf _build .venv notebooks/runs

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	touch $(READY)
