"""remote_decode and remote_encode: the two functions of diffusers' remote_utils, over this project's transport.

Names, order, defaults and results are those of diffusers 0.42.1, so that changing the import is all it takes; what
is new are time-outs, retries, checks of the reply and typed errors. The URL is used exactly as it is given.
"""

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from remote_vae.client.calls import Answer, answer, decode_request, encode_request, read_reply
from remote_vae.client.clients import Client
from remote_vae.client.endpoint import Endpoint, read_endpoint, split_endpoint
from remote_vae.client.exchange import HttpRequest
from remote_vae.client.latents import AnyTensor, is_torch
from remote_vae.client.network import BlockingNetwork, PathText, run
from remote_vae.client.parts import joined, parts_of
from remote_vae.client.retry import Bounds, send
from remote_vae.errors import InvalidValue, TooLarge
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Reply
from remote_vae.protocol.options import DecodeArguments
from remote_vae.protocol.wire import render_request
from remote_vae.values import FORMATS, VIDEO_FORMATS

RETURN_TYPES = {"pil": ("pil", "pt"), "pt": ("pil", "pt"), **{name: (name,) for name in VIDEO_FORMATS}}


def remote_decode(
    endpoint: str,
    tensor: AnyTensor,
    processor: Any = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    output_type: str = "pil",
    return_type: str = "pil",
    image_format: str = "jpg",
    partial_postprocess: bool = False,
    input_tensor_type: str = "binary",
    output_tensor_type: str = "binary",
    height: int | None = None,
    width: int | None = None,
    *,
    timeout: float = 300.0,
    token: str | None = None,
    ca_file: PathText | None = None,
) -> Any:
    """A latent, decoded at `endpoint`: a PIL image, a list of them, a tensor, or an MP4's bytes.

    `output_type` is what the server sends, `return_type` what is made of it. `processor` turns a raw tensor into
    pictures, as diffusers' image and video processors do; with output_type="pil" it only says, by not being None,
    that the model is one for video. *Units*: timeout in seconds, for all tries together.
    *Raises* RequestError, ServerError as the server did; ConnectionFailed, ClientTimeout, InvalidReply.
    """
    _check_types(output_type, return_type, processor, partial_postprocess)
    _check_transfer(input_tensor_type, output_tensor_type)
    what: DecodeArguments = {"output_type": output_type, "image_format": image_format}
    what["partial_postprocess"] = partial_postprocess
    if do_scaling:
        what |= {"do_scaling": True, "scaling_factor": scaling_factor, "shift_factor": shift_factor}
    if height is not None and width is not None:
        what |= {"height": height, "width": width}
    request = _decode_request(tensor, what, processor)
    reply = _ask(endpoint, request, timeout=timeout, token=token, ca_file=ca_file)
    return _returned(answer(request, reply, like=tensor), request, processor, return_type)


def _check_types(output_type: str, return_type: str, processor: Any, partial_postprocess: bool) -> None:
    """Refuses, before a generation is lost, what could not be returned in the end."""
    allowed = RETURN_TYPES.get(output_type)
    if allowed is None:
        known = ", ".join(RETURN_TYPES)
        raise InvalidValue(f"output_type={output_type!r} is not known; expected one of {known}", name="output_type")
    if output_type == "pil" and processor is None:
        allowed = ("pil",)
    if return_type not in allowed:
        raise InvalidValue(
            f"return_type={return_type!r} cannot be made of output_type={output_type!r}"
            f"{' without a processor' if output_type == 'pil' else ''}; expected {' or '.join(allowed)}",
            name="return_type",
            allowed=list(allowed),
        )
    if output_type == "pt" and return_type == "pil" and not partial_postprocess and processor is None:
        raise InvalidValue(
            "a processor is needed to make pictures of a raw tensor; pass one, or partial_postprocess=True, or take "
            'output_type="pil"',
            name="processor",
        )


def _check_transfer(*types: str) -> None:
    for name in types:
        if name not in ("binary", "base64"):  # base64 means binary, as it does in diffusers
            raise InvalidValue(f"tensors do not travel as {name!r}; expected 'binary'", allowed=["binary"])


def _decode_request(tensor: AnyTensor, what: DecodeArguments, processor: Any) -> DecodeRequest:
    request = decode_request(tensor, what)
    if request.options["output_type"] == "pil" and processor is not None:
        return replace(request, format=FORMATS["binary"])
    return request


def _returned(found: Answer, request: DecodeRequest, processor: Any, return_type: str) -> Any:
    if not request.format.is_tensor:
        if isinstance(found.value, Image.Image):
            found.value.format = str(found.value.format).lower()
        return found.value
    if return_type == "pt":
        return found.value
    if request.options["output_type"] == "pil":
        return [Image.fromarray(pixels) for pixels in _pixels_of_unit(found.value)]
    if request.options["partial_postprocess"]:
        pictures = [Image.fromarray(np.asarray(pixels)) for pixels in found.value]
        return pictures[0] if len(pictures) == 1 else pictures
    if hasattr(processor, "postprocess_video"):
        return processor.postprocess_video(found.value, output_type="pil")[0]
    return processor.postprocess(found.value, output_type="pil")[0]


def _pixels_of_unit(unit: AnyTensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """*Shapes*: floats in [0, 1] [F,P,H,W] -> uint8 [F,H,W,P]."""
    floats = np.asarray(unit).astype(np.float32).transpose(0, 2, 3, 1)
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = (floats * 255).round().clip(0, 255).astype(np.uint8)
    return pixels


def remote_encode(
    endpoint: str,
    image: AnyTensor | Image.Image,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    *,
    posterior: str | None = None,
    seed: int | None = None,
    timeout: float = 300.0,
    token: str | None = None,
    ca_file: PathText | None = None,
) -> AnyTensor:
    """The latent of a PIL image or a tensor, encoded at `endpoint`; numpy for numpy, else a torch tensor.

    `posterior` ("sample", "mode", "parameters") and `seed` are this project's own. *Units*: timeout in seconds.
    *Raises* RequestError, ServerError as the server did; ConnectionFailed, ClientTimeout, InvalidReply; ImportError
    when there is no torch to return a tensor of.
    """
    like = image if isinstance(image, np.ndarray) or is_torch(image) else importlib.import_module("torch").empty(0)
    arguments = {"scaling_factor": scaling_factor, "shift_factor": shift_factor, "posterior": posterior, "seed": seed}
    request = encode_request(image, arguments)
    reply = _ask(endpoint, request, timeout=timeout, token=token, ca_file=ca_file)
    return answer(request, reply, like=like).value


def _ask(
    endpoint: str,
    request: DecodeRequest | EncodeRequest,
    *,
    timeout: float,
    token: str | None,
    ca_file: PathText | None,
) -> Reply:
    """The reply; a batch that is too large for a server that tells its limits goes in parts."""
    target = read_endpoint(endpoint, token=token)
    network = BlockingNetwork(target.url, ca_file=ca_file)
    bounds = Bounds(timeout=timeout)

    def ask(part: DecodeRequest | EncodeRequest) -> Reply:
        return read_reply(part, run(send(network, _post(target, part), bounds)))

    try:
        return ask(request)
    except TooLarge:
        base, model = split_endpoint(endpoint, None)
        with Client(base, token=token, timeout=timeout, ca_file=ca_file) as client:
            card = run(client.card(model))
        parts = [request] if card is None else parts_of(request, card)
        if parts[0] is request:
            raise
        return joined([ask(part) for part in parts])
    finally:
        run(network.close())


def _post(target: Endpoint, request: DecodeRequest | EncodeRequest) -> HttpRequest:
    _, query, headers, body = render_request(request)
    if isinstance(request, EncodeRequest):
        del headers["content-type"]
    elif request.format.accepts[:1] == ("text/plain",):
        headers["accept"] = "text/plain"  # as diffusers' own client asks for a video
    return target.request("POST", "", query=query, headers=headers, body=bytes(body))
