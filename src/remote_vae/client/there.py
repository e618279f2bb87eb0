"""What RemoteVAE asks a server's model for, in a pipeline's own shapes; `fallback` is the same for a local VAE."""

from importlib import import_module

from remote_vae.client.decoder_arguments import Arguments
from remote_vae.client.latents import AnyTensor
from remote_vae.client.model import FRAMES_AXES, RemoteModel
from remote_vae.client.pixel_range import of_the_server, of_the_vae
from remote_vae.client.watching import Tell


def _is_one_frame(remote: RemoteModel, tensor: AnyTensor) -> bool:
    """Whether a pipeline hands over a picture as a video of one frame, and the server's model takes pictures."""
    return tensor.ndim == 5 and tensor.shape[2] == 1 and not remote.is_video


def decode_there(remote: RemoteModel, z: AnyTensor, arguments: list[Arguments], progress: bool | Tell) -> AnyTensor:
    """A request has one set of arguments at most, so latents with different ones go one by one."""
    if _is_one_frame(remote, z):
        return decode_there(remote, z[:, :, 0], arguments, progress).unsqueeze(2)
    if any(each != arguments[0] for each in arguments):
        pairs = zip(z, arguments, strict=True)
        return import_module("torch").cat([decode_there(remote, one[None], [each], progress) for one, each in pairs])
    how = arguments[0] if arguments else {}
    sent = remote.decode(z, do_scaling=remote.is_normalised, progress=progress, **how)
    pixels = of_the_vae(remote.card, sent)
    return pixels.transpose(1, 2) if remote.card.get("frames_first") else pixels


def encode_there(remote: RemoteModel, x: AnyTensor, progress: bool | Tell) -> tuple[AnyTensor, bool]:
    """A posterior's parameters from the server; or a latent, and True, if the encoder is deterministic."""
    if _is_one_frame(remote, x):
        found, is_latent = encode_there(remote, x[:, :, 0], progress)
        return found.unsqueeze(2), is_latent
    x = of_the_server(remote.card, x)
    if remote.takes_frames and x.ndim == FRAMES_AXES:
        return remote.encode(x, posterior="parameters", progress=progress).squeeze(2), False
    if remote.card["deterministic"]:
        return remote.encode(x, posterior="mode", do_scaling=remote.is_normalised, progress=progress), True
    return remote.encode(x, posterior="parameters", progress=progress), False
