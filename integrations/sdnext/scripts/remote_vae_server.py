"""SD.Next's remote VAE on a server of your own: its URL and key are settings, and none of SD.Next's addresses stays.

SD.Next runs this file as an extension's script, once its settings are read and before it makes pictures.
"""

from typing import Any
from urllib.parse import quote

from diffusers.utils.remote_utils import remote_decode
from modules import shared
from modules.framepack import framepack_vae
from modules.logger import log
from modules.vae import sd_vae_remote

# SD.Next's name of a model with a VAE of its own -> the model of the server. Every other name of SD.Next shares the
# address of one of these.
MODELS = {"sd": "sd1", "sdxl": "sdxl", "f1": "flux1", "hunyuanvideo": "hunyuanvideo"}
TABLES = (sd_vae_remote.hf_decode_endpoints, sd_vae_remote.hf_encode_endpoints)
URL, KEY = "remote_vae_url", "remote_vae_key"  # SD.Next keeps settings that end with _key in secrets.json
SECTION = ("vae_encoder", "Variational Auto Encoder")  # where SD.Next has the other settings of its remote VAE


def address(model: str) -> str:
    """The URL of a model of the server. SD.Next sends no headers of ours, so the key is a part of the path."""
    key = str(shared.opts.get(KEY)).strip()
    places = [str(shared.opts.get(URL)).strip().rstrip("/"), *([quote(key, safe="")] if key else []), model]
    return "/".join(places)


def models(table: dict[str, str]) -> dict[str, str | None]:
    """The server's model for each name of a table: that of the name in MODELS which has the same address, if any."""
    known = {table[name]: model for name, model in MODELS.items() if name in table}
    return {name: known.get(url) for name, url in table.items()}


def send_here() -> None:
    """Replaces every address. A name whose address is unknown is removed, so that SD.Next decodes it by itself."""
    for table in TABLES:
        for name, model in models(table).items():
            if model is not None:
                table[name] = address(model)
            else:
                del table[name]
                log.warning(f"Remote VAE: {name} has an address of its own and no model here, so it is not sent")
    log.info(f"Remote VAE: addresses={sum(map(len, TABLES))} server={shared.opts.get(URL)}")


def decode_for_framepack(latents: Any) -> Any:
    """FramePack has its address in a function, which this function replaces."""
    there = address(MODELS["hunyuanvideo"])
    return remote_decode(endpoint=there, tensor=latents.contiguous(), output_type="pt", return_type="pt")


for option, default, label in (
    (URL, "http://127.0.0.1:8000", "Remote VAE server"),
    (KEY, "", "Remote VAE key of that server"),
):
    shared.opts.add_option(option, shared.OptionInfo(default, label, section=SECTION, onchange=send_here))
framepack_vae.vae_decode_remote = decode_for_framepack
send_here()
