# The one door. Every target sets up what it needs first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/remote-vae

.PHONY: demo test lint types serve bench train picture clean help

help:            ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

# A stamp per set of extras: pip runs again only when the project's requirements have changed.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.demo   ## a photograph to a latent and back, into demo-output/
	$(RUN) demo

serve: $(VENV)/.demo  ## the embedded model at http://127.0.0.1:8000
	$(RUN) serve

test: lint            ## lint, then every test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev    ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev   ## what the service costs beside a VAE, against LitServe and a bare server
	$(BIN)/python benchmarks/overhead.py --json benchmarks/results/overhead.json

train: $(VENV)/.dev   ## the embedded model again, from nothing
	$(BIN)/python training/demo_vae.py

picture: $(VENV)/.demo ## the README's picture, of the demo as it is now
	$(RUN) demo
	$(BIN)/python -c "from PIL import Image; Image.open('demo-output/comparison.png').save('docs/images/demo.jpg', quality=90)"

clean:                ## remove what the targets made
	rm -rf $(VENV) demo-output build dist
