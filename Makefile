# Two commands on a fresh machine: `make quickstart` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart test test-slow lint docs site hero families notebooks deploy trial results results-latents results-latents-families results-latents-128 results-latents-32 results-photographs results-text-to-image tables presets bench bench-quality chaos wheel clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade "pip>=24"
	$(BIN)/pip install -q -c constraints.txt torch -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/genflow quickstart

# two workers of pytest-xdist; tests/conftest.py hands out whole groups of tests
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadscope --no-loadscope-reorder --durations=10

test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/genflow families --into README.md
	$(BIN)/genflow recipe --into docs/recipe.md

# the documentation as a site in build/site, to be read at http://127.0.0.1:8001
site: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "$(BIN)/python -m http.server 8001 --bind 127.0.0.1 --directory build/site"

# the README's walk between two pictures, from a store with a run of `genflow run text_to_image` (RUN; default: latest)
hero: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.hero $(or $(RUN),latest)

# the README's samples of every family; trains for twelve CPU minutes, unless the store in this folder has the runs
families: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.families $(RUNS)

# the notebooks of docs/notebooks with their outputs (two minutes on two cores), from an empty folder
notebooks: $(VENV)/.installed
	folder=$$(mktemp -d) && cd $$folder && $(CURDIR)/$(BIN)/python $(CURDIR)/docs/notebooks/execute.py $(CURDIR)/docs/notebooks/*.ipynb

# cluster.yaml and the files of deploy/, from deploy/templates
deploy: $(VENV)/.installed
	$(BIN)/python deploy/render.py

# deploy/onprem.yaml on three hosts made of namespaces, one of which dies; needs root, takes five minutes
trial: $(VENV)/.installed
	PYTHON=$(BIN)/python bash deploy/trial/run.sh

# every family, three seeds, on Fashion-MNIST: hours on two cores; run it again to resume
results: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py

# latent against pixel training on colour icons (hours on two cores; needs: apt-get install fonts-noto-color-emoji)
results-latents: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --plan benchmarks/latents.yaml --out docs/latents-results.md

# every family on the latents of colour icons, in ten minutes each (an hour and a quarter of one core)
results-latents-families: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --plan benchmarks/latents_families.yaml --out docs/latents-families.md

# icons of 128 pixels (forty minutes of one core)
results-latents-128: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --plan benchmarks/latents_128.yaml --out docs/latents-128.md

# every family in three minutes, on icons of 32 pixels (forty minutes of one core)
results-latents-32: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --plan benchmarks/latents_32.yaml --out docs/latents-32.md

# latents against pixels, as above, for crops of photographs (as long; needs mate-backgrounds)
results-photographs: $(VENV)/.installed
	test -d benchmarks/photographs || $(BIN)/python -m benchmarks.autoencoder --cut /usr/share/backgrounds/mate/nature benchmarks/photographs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --plan benchmarks/latents_photographs.yaml --out docs/latents-photographs.md

# prompts of a colour font, three seeds (an hour on two cores; needs fonts-noto-color-emoji and the extra `text`)
results-text-to-image: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --plan benchmarks/text_to_image.yaml --out docs/text-to-image-results.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.combinations flow-s0 flow-s1 flow-s2 --out docs/text-to-image-results/combinations.md

# each family's preset against the result of `genflow tune` on Fashion-MNIST (an hour on two cores)
presets: $(VENV)/.installed
	$(BIN)/python -m benchmarks.presets --out docs/results/tuning.md

# the two tables on digits and on Fashion-MNIST, into docs/results (hours on two cores); run it again to resume
tables: $(VENV)/.installed
	for form in html md; do \
	  $(BIN)/genflow tables --data digits --out docs/results/tables-digits.$$form && \
	  $(BIN)/genflow tables --data fashion --cpu-minutes 1 --set evaluate.sweep_samples=500 --out docs/results/tables-fashion.$$form || exit; \
	done

# genflow against other libraries, in pairs, into docs/benchmarks.md (a quarter of an hour of CPU time on one core); PARTS="data memory"
PEERS := torchcfm==1.0.7 pot denoising-diffusion-pytorch==2.3.4 ema-pytorch==0.8.3 accelerate einops pytorch-fid torch-fidelity==0.4.0
bench: $(VENV)/.installed-test
	test -d build/peers/torch_fidelity || $(BIN)/pip install -q --no-deps --upgrade --target build/peers $(PEERS)
	OMP_NUM_THREADS=1 PYTHONPATH=build/peers:. $(BIN)/python -m benchmarks.bench $(PARTS) --out docs/benchmarks.md

# CPU time of trainings until a stated quality, against other libraries (hours of CPU time a seed; again to resume); SEEDS
bench-quality: $(VENV)/.installed-test
	test -d build/peers/torch_fidelity || $(BIN)/pip install -q --no-deps --upgrade --target build/peers $(PEERS)
	OMP_NUM_THREADS=1 PYTHONPATH=build/peers:. $(BIN)/python -m benchmarks.bench.quality \
	  --seeds $(or $(SEEDS),0) --out docs/benchmarks.md

# kill -9 of random processes at random moments, for every family; prints violations and how to repeat them; KILLS, SEED, FAMILY
chaos: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/chaos.py --kills $(or $(KILLS),3) --seed $(or $(SEED),0) $(addprefix --family ,$(FAMILY))

# dist/genflow_ray-*.whl; GENFLOW_URL=https://... states the repository, for links and pictures on an index page
wheel: $(VENV)/.installed
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
