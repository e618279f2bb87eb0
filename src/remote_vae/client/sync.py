"""Client: a Remote VAE server, for code that waits."""

from typing import Any, Self, Unpack

import httpx2
from PIL import Image

from remote_vae.client.calls import (
    Answer,
    decode_request,
    encode_request,
    post,
    read_decoded,
    read_encoded,
    read_models,
    read_ready,
)
from remote_vae.client.endpoint import read_endpoint
from remote_vae.client.latents import AnyTensor
from remote_vae.client.transport import GIB, Bounds, Transport
from remote_vae.errors import ClientTimeout, ConnectionFailed
from remote_vae.protocol.messages import Reply
from remote_vae.protocol.options import DecodeArguments, EncodeArguments
from remote_vae.values import Buffer


class Client:
    """Decodes latents and encodes pictures on a server; threads may share one.

    `timeout` is in seconds, for a whole call with all its tries; `retries` is how often a request is sent at most,
    the first time included. The credential is `token`, else one in the URL, else the variable REMOTE_VAE_API_KEY.
    An injected `http` keeps its own proxies and certificates, is not closed here, and may overrun `timeout` by one
    wait for the network.
    *Raises* InvalidValue, ConfigurationError.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        http: httpx2.Client | None = None,
        proxy: str | None = None,
        max_reply_bytes: int = GIB,
    ) -> None:
        self._endpoint = read_endpoint(endpoint, token=token)
        bounds = Bounds(timeout=timeout, tries=retries, max_reply_bytes=max_reply_bytes)
        self._transport = Transport(self._endpoint.url, bounds=bounds, http=http, proxy=proxy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def decode(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Any:
        """A PIL image; with output_type="pt" a tensor of the latent's kind, torch or numpy; with "mp4" bytes.

        `options`: model, scaling_factor, shift_factor, do_scaling=False, output_type="pil", image_format="png",
        partial_postprocess=False, quality, height, width, plan.
        *Raises* RequestError, ServerError as the server did; ConnectionFailed, ClientTimeout, InvalidReply.
        """
        return self._decode(latent, options).value

    def decode_reply(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Reply:
        """The same, as it came: a written picture or a values.Tensor, with its provenance."""
        return self._decode(latent, options).reply

    def encode(self, image: Image.Image | Buffer | AnyTensor, **options: Unpack[EncodeArguments]) -> AnyTensor:
        """The latent of a PIL image, of a written PNG, JPEG or WebP, or of a tensor; torch for torch, else numpy.

        `options`: model, scaling_factor, shift_factor, do_scaling=False, posterior, seed, plan.
        *Raises* RequestError, ServerError as the server did; ConnectionFailed, ClientTimeout, InvalidReply.
        """
        return self._encode(image, options).value

    def encode_reply(self, image: Image.Image | Buffer | AnyTensor, **options: Unpack[EncodeArguments]) -> Reply:
        """The same, as it came: a values.Tensor with its provenance."""
        return self._encode(image, options).reply

    def models(self) -> list[dict[str, Any]]:
        """The cards of the server's models, with the names of `ModelInfo`."""
        return read_models(self._transport.send(self._endpoint.request("GET", "/models")))

    def ready(self) -> bool:
        """Whether the server answers and has loaded its models; asked once, for 10 seconds at most."""
        try:
            request, bounds = self._endpoint.request("GET", "/ready"), self._transport.bounds.of_probe()
            return read_ready(self._transport.send(request, bounds=bounds))
        except (ConnectionFailed, ClientTimeout):
            return False

    def _decode(self, latent: AnyTensor, options: DecodeArguments) -> Answer:
        request = decode_request(latent, options)
        return read_decoded(request, self._transport.send(post(self._endpoint, request)), like=latent)

    def _encode(self, image: Image.Image | Buffer | AnyTensor, options: EncodeArguments) -> Answer:
        request = encode_request(image, options)
        return read_encoded(request, self._transport.send(post(self._endpoint, request)), like=image)
