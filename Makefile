# make demo: images from the packaged model. make test, make lint, make gpu: checks. Each installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
# Marks the environment as installed; a change to either file reinstalls it.
READY := .venv/.ready
# Packages are installed without bytecode, as compiling all of it takes a minute: Python writes that of what is imported.
export PYTHONDONTWRITEBYTECODE =
# Concepts of the first picture.
CONCEPTS := anchor,bell,camera,cloud,heart,house,key,lock,star,umbrella

.PHONY: demo test browser lint gpu format docs results clean

demo: $(READY)
	@mkdir -p out
	$(BIN)/mvar sample --model icons --labels $(CONCEPTS) --per-class 6 --show-scales --out out/demo.png
	@echo
	@echo "Look at out/demo.png. What to try next:"
	@echo "  $(BIN)/mvar sample --model icons --labels tree,fish,coffee --per-class 12 --seed 7 --out out/mine.png"
	@echo "  $(BIN)/mvar vary --model icons --label house --from-scale 0,2,4 --n 8 --out out/variations.png"
	@echo "  $(BIN)/mvar info icons                 # all 360 concepts"
	@echo "  $(BIN)/mvar train tokenizer --help     # your own images: see README.md"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# What the tests of the web service start, where Debian's packages can be installed.
browser:
	@if ! { command -v chromium && command -v nginx; } > /dev/null && command -v apt-get > /dev/null \
		&& [ "$$(id -u)" = 0 ]; then \
		apt-get update --quiet && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends chromium nginx-light; \
	fi

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a machine with an NVIDIA GPU: is everything right there, and how fast is it?
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --out out/gpu

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
		--editable ".[dev]"
	$(BIN)/python -c "import mvar.model"
	@touch $(READY)

# The pictures and the tables of the documentation, from the packaged model, Fashion-MNIST and icons.
docs: $(READY) out/fashion-mnist out/icons
	$(BIN)/mvar sample --model icons --labels $(CONCEPTS) --per-class 6 --show-scales --out docs/images/demo.png
	$(BIN)/mvar sample --model icons --labels house --per-class 1 --out-dir out/house
	$(BIN)/mvar edit --model icons --image out/house/house-000000.png --box 14,28,50,58 --label house --n 6 --compare \
		--out docs/images/icons-inpainting.png
	$(BIN)/mvar vary --model icons --label house --from-scale 0,1,2,3,4,5 --n 6 --out docs/images/icons-variations.png
	$(BIN)/mvar sample --model icons --labels 15,45,75,105,135,165,195,225,255,285,315,345 --per-class 8 \
		--out docs/images/icons/random.png
	$(BIN)/python -m recipes.icons page
	$(BIN)/python -m recipes.fashion_mnist page
	$(BIN)/python -m recipes.editing --model fashion-mnist --data out/fashion-mnist --out docs/images/editing \
		--page-file docs/editing.md --sheet docs/images/editing.png
	$(BIN)/mvar vary --model fashion-mnist --label Sneaker --from-scale 0,1,2,3,4,5 --n 6 --out docs/images/variation.png
	$(BIN)/python -m recipes.likelihood --model fashion-mnist --data out/fashion-mnist \
		--out docs/images/likelihood --page-file docs/likelihood.md
	$(BIN)/python -m recipes.token_cache --data out/fashion-mnist/val --out docs/images/tokens \
		--page-file docs/tokens.md
	$(BIN)/mvar score --model fashion-mnist --images out/fashion-mnist/val --limit 1000 --sheet docs/images/likelihood.png
	$(BIN)/python -m recipes.web_page
	rm -rf out/wide
	$(BIN)/mvar reschedule --model fashion-mnist --sides 1,2,3,4,[6,9],[8,12] --out out/wide
	$(BIN)/mvar sample --model out/wide --labels Bag,Sneaker --per-class 4 --out docs/images/resolutions.png
	$(BIN)/python -m recipes.icons describe --data out/icons --page-file docs/data.md \
		--credits src/mvar/models/icons/LICENCES.md --sheet docs/images/icons-data.png
	$(BIN)/python -m recipes.memory --page-file docs/cluster.md

# The figures of docs/results.md.
results: $(READY) out/fashion-mnist out/icons
	$(call measured,fashion-mnist)
	$(call measured,icons)
	$(BIN)/python -m recipes.results

# Of a model: as many samples, and reconstructions, as there are held-out images, against these.
define measured
	$(BIN)/mvar sample-set --model $(1) --counts-of out/$(1)/val --npz out/$(1)-samples.npz
	$(BIN)/mvar evaluate --samples out/$(1)-samples.npz --reference out/$(1)/val --floor out/$(1)/train \
		--cache out/features --out docs/images/results/$(1)/samples
	$(BIN)/mvar evaluate --model $(1) --reference out/$(1)/val --floor out/$(1)/train \
		--cache out/features --out docs/images/results/$(1)/reconstructions
endef

out/icons:
	$(BIN)/mvar data icons --out $@

out/fashion-mnist:
	$(BIN)/mvar data fashion-mnist --out $@

clean:
	rm -rf .venv out dist .pytest_cache .ruff_cache .mypy_cache
