# make demo: images from the packaged model.  make test, make lint: checks.  Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# What the environment was made from; a change to either file installs anew.
READY := .venv/.ready

.PHONY: demo test lint format docs clean

demo: $(READY)
	@mkdir -p out
	$(BIN)/mvar sample --model fashion-mnist --per-class 8 --show-scales --out out/demo.png
	@echo
	@echo "Look at out/demo.png. What to try next:"
	@echo "  $(BIN)/mvar sample --model fashion-mnist --labels Sandal,Bag --per-class 12 --seed 7 --out out/mine.png"
	@echo "  $(BIN)/mvar info fashion-mnist"
	@echo "  $(BIN)/mvar train tokenizer --help     # your own images: see README.md"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

docs: $(READY)
	$(BIN)/mvar sample --model fashion-mnist --per-class 8 --show-scales --out docs/images/demo.png
	$(BIN)/python -m mvar.recipes.fashion_mnist page

clean:
	rm -rf .venv out dist .pytest_cache .ruff_cache .mypy_cache
