"""ComfyUI nodes that decode and encode on a remote-vae server. ComfyUI reads the two mappings."""

from .nodes import DecodeRemotely, DecodeVideoRemotely, EncodeRemotely, LoadRemoteVAE

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
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
