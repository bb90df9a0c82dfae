# What a developer types. `make demo` and `make test` prepare .venv themselves; see CONTRIBUTING.md.

PYTHON ?= python3
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --quiet --no-config --python-version 3.11 --generate-hashes \
	--no-header --no-annotate
NEEDS_NODE = command -v npm >/dev/null || \
	{ echo "test-clients needs node and npm: apt-get install nodejs npm" >&2; exit 1; }

.PHONY: demo test check test-clients docs figures-first figures-engine figures-versions soak lock clean ready ready-dev

demo: ready ## talk to the demo model, then see versions of it taken, caught and gone back from
	$(BIN)/appliance demo

test: ready-dev check ## the style gates and every test that needs only this machine and PyPI
	$(BIN)/pytest --ignore=tests/clients

check: ready-dev ## the style gates alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

test-clients: ready-dev ## the npm clients and buf; needs the Debian packages nodejs and npm
	@$(NEEDS_NODE)
	$(BIN)/pytest tests/clients

docs: ready-dev ## write again what is generated from the code
	$(BIN)/python -m tools.config_reference
	$(BIN)/python -m tools.code_reference
	$(BIN)/python -m tools.import_picture
	$(BIN)/python -m tools.deployment_picture
	$(BIN)/python -m tools.room_table
	$(BIN)/python -m tools.scheduler_example

figures-first: ready-dev ## measure beside llama-server (built once in the user's cache); 25 minutes
	$(BIN)/python -m benchmarks.first

figures-engine: ready-dev ## hold every figure of the engine against its bar, beside peers; 50 minutes
	$(BIN)/python -m benchmarks.engine

figures-versions: ready-dev ## hold every figure of versions against its bar; 50 minutes at most
	$(BIN)/python -m benchmarks.versions

soak: ready-dev ## an hour of mixed load that must leave no trace: memory flat, nothing held
	$(BIN)/python -m benchmarks.soak --minutes 60

lock: ready-dev ## resolve the pinned packages again
	$(BIN)/pip install --quiet uv
	$(LOCK) --upgrade pyproject.toml --output-file requirements.lock
	$(LOCK) --upgrade --extra dev --constraints requirements.lock pyproject.toml \
		--output-file requirements-dev.lock
	$(LOCK) --upgrade requirements-build.in --output-file requirements-build.lock

clean: ## remove what the other targets made, but not the compiled engine in the user's cache
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache tests/clients/node_modules
	find appliance tools tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

ready:
	@$(PYTHON) tools/bootstrap.py

ready-dev:
	@$(PYTHON) tools/bootstrap.py --dev
