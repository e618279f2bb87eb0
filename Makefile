# The one door. Every target sets up what it needs first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
# More words for benchmarks/decode.py: make bench BENCH="--models sd1 --sizes 512"
BENCH  ?=
RUN    := $(BIN)/remote-vae
# Files of tests at a time.
JOBS   ?= 2

.PHONY: demo test raytest lint types serve fuzz hostile bench gpu chaos train picture docs lock audit sbom clean help

help:            ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

# A stamp per set of extras: pip runs again only when the project's requirements have changed.
$(VENV)/.server: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server]'
	touch $@

$(VENV)/.dev: $(VENV)/.server
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.gpu: $(VENV)/.server
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' \
		pytest pytest-asyncio pytest-timeout
	touch $@

demo: $(VENV)/.server   ## encodes a photograph and decodes it again, into demo-output/
	$(RUN) demo

serve: $(VENV)/.server  ## the embedded model at http://127.0.0.1:8000
	$(RUN) serve

test: lint            ## lint, then every test, JOBS files at a time, and then the tests that nothing may run beside
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not alone'
	$(BIN)/python -m pytest -m alone

raytest: $(VENV)/.dev ## the tests of the wire again, against Ray Serve
	TEST_ON=ray $(BIN)/python -m pytest tests/server/test_routes.py tests/server/test_dialects.py tests/contract \
		tests/hostile/test_bad_input.py tests/server/test_streams.py tests/client/test_streams.py

lint: $(VENV)/.dev    ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 src/remote_vae/client
	$(BIN)/lint-imports

fuzz: $(VENV)/.dev    ## fuzzes the readers of pictures, videos, files, connections, requests and replies, an hour each
	for target in image container video latents connection request reply parts; do mkdir -p fuzz/$$target && PYTHONPATH=tests $(BIN)/python tests/hostile/fuzz.py $$target \
	  -max_total_time=$(or $(SECONDS),3600) -rss_limit_mb=2048 -timeout=10 -artifact_prefix=fuzz/ fuzz/$$target || exit 1; done

hostile: $(VENV)/.dev ## measures the memory of hostile requests, looks for what a thousand leave behind; a read-only file system
	EVERY=1 $(BIN)/python -m pytest tests/hostile/test_memory.py tests/hostile/test_stored.py
	READ_ONLY=1 $(BIN)/python -m pytest tests/server tests/hostile

bench: $(VENV)/.dev   ## time and memory of each plan beside other ways to run a VAE; what the service costs
	$(BIN)/python benchmarks/decode.py --random-weights --json benchmarks/results/decode.json --csv benchmarks/results/decode.csv \
		--plot benchmarks/results/decode.png $(BENCH)
	$(BIN)/python benchmarks/overhead.py --json benchmarks/results/overhead.json

gpu: $(VENV)/.gpu     ## on a machine with a GPU: its tests, then ours beside diffusers, and a server under load, in 9 minutes
	$(BIN)/python benchmarks/gpu_run.py

chaos: $(VENV)/.dev   ## Ray Serve under load, while processes are killed for a minute
	$(BIN)/python benchmarks/ray_chaos.py --json benchmarks/results/ray_chaos.json

train: $(VENV)/.dev   ## trains the embedded model from the beginning
	$(BIN)/python training/demo_vae.py

docs: $(VENV)/.dev    ## the documentation, as a site in build/site; broken links fail
	$(BIN)/mkdocs build --strict

picture: $(VENV)/.dev  ## draws the pictures of the README and the documentation again
	$(RUN) demo
	$(BIN)/python -c "from PIL import Image; Image.open('demo-output/comparison.png').save('docs/images/demo.jpg', quality=90)"
	$(BIN)/python docs/figures/models.py
	$(BIN)/python docs/figures/served.py
	$(BIN)/python docs/figures/strips.py
	$(BIN)/python docs/figures/page.py

$(VENV)-supply/.done: deploy/requirements/supply.txt
	$(PYTHON) -m venv $(VENV)-supply
	$(VENV)-supply/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

SUPPLY := PATH=$(VENV)-supply/bin:$$PATH $(VENV)-supply/bin/python deploy/supply.py

lock: $(VENV)-supply/.done ## writes the hash-locked requirements; TORCH_WHEELS is a folder with torch's wheel for CPUs
	$(SUPPLY) lock $(if $(TORCH_WHEELS),--torch-wheels $(TORCH_WHEELS))

audit: $(VENV)-supply/.done ## known vulnerabilities of what is locked; what cannot be looked up fails too
	$(SUPPLY) audit

sbom: $(VENV)/.server $(VENV)-supply/.done ## a bill of materials and the licences of the environment, in build/
	mkdir -p build
	$(SUPPLY) sbom $(BIN)/python build/sbom.json
	$(SUPPLY) licences $(BIN)/python build/licences.md

clean:                ## remove what the targets made
	rm -rf $(VENV) $(VENV)-supply demo-output build dist
