from functools import partial

from remote_vae.deploy.huggingface import EndpointHandler as Handler

EndpointHandler = partial(Handler, model="sd1")  # or sdxl, flux1, qwen-image, ...: see `remote-vae serve --help`
