"""ComfyUI nodes that decode and encode on a remote-vae server. ComfyUI reads the two mappings and the folder."""

from . import logs
from .nodes import DecodeRemotely, DecodeVideoRemotely, EncodeRemotely, LoadRemoteVAE

logs.set_up()

NODE_CLASS_MAPPINGS = {
    "RemoteVAELoader": LoadRemoteVAE,
    "RemoteVAEDecode": DecodeRemotely,
    "RemoteVAEDecodeVideo": DecodeVideoRemotely,
    "RemoteVAEEncode": EncodeRemotely,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RemoteVAELoader": "Load Remote VAE",
    "RemoteVAEDecode": "Remote VAE Decode",
    "RemoteVAEDecodeVideo": "Remote VAE Decode (Video)",
    "RemoteVAEEncode": "Remote VAE Encode",
}
WEB_DIRECTORY = "./web"  # its docs are the help of each node
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
