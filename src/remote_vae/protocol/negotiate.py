"""Which form a reply takes: the Accept header against what the output type can give."""

import re
from collections.abc import Mapping
from typing import Final

from remote_vae.errors import NotAcceptable
from remote_vae.protocol.dtype import clip
from remote_vae.protocol.messages import DecodeOptions, Form, ImageFormat, OutputType

TENSOR_FORMS: Final = {
    Form.BINARY: ("tensor/binary", "application/octet-stream"),
    Form.BASE64: ("tensor/base64", "application/json"),
}
IMAGE_FORMS: Final = {ImageFormat.JPG: Form.JPG, ImageFormat.PNG: Form.PNG, ImageFormat.WEBP: Form.WEBP}


def decode_form(accept: str, options: DecodeOptions) -> Form:
    """The reply's form by output type, image format and Accept; *raises* NotAcceptable."""
    if options.output_type is OutputType.MP4:
        return _negotiate(accept, {Form.MP4: (Form.MP4.value, "text/plain", "application/octet-stream")}, options)
    if options.output_type is OutputType.PT:
        return _negotiate(accept, TENSOR_FORMS, options)
    wanted = [options.image_format] if options.image_format else list(ImageFormat)
    images = {IMAGE_FORMS[item]: (IMAGE_FORMS[item].value,) for item in wanted}
    return _negotiate(accept, {**images, **TENSOR_FORMS}, options)


def encode_form(accept: str) -> Form:
    """The form of an encode's reply; *raises* NotAcceptable."""
    return _negotiate(accept, TENSOR_FORMS, None)


def _negotiate(accept: str, offers: Mapping[Form, tuple[str, ...]], options: DecodeOptions | None) -> Form:
    """The offer with the highest q; among equals the first, which is the default."""
    if not accept.strip():
        return next(iter(offers))
    ranges = [_media_range(item) for item in accept.split(",")[:32]]

    def quality(names: tuple[str, ...]) -> float:
        return max(_quality(name, ranges) for name in names)

    best = max(offers, key=lambda form: quality(offers[form]))
    if quality(offers[best]) > 0:
        return best
    names = ", ".join(name for group in offers.values() for name in group)
    what = f"output_type={options.output_type.value}" if options else "an encode"
    raise NotAcceptable(f"accept {clip(accept)!r} does not go with {what}; expected one of {names}")


def _quality(name: str, ranges: list[tuple[str, float]]) -> float:
    """What the most specific matching range says; 0 where none matches. *Source*: RFC 9110, 12.5.1."""
    matching = [(len(pattern.strip("*")), q) for pattern, q in ranges if _matches(pattern, name)]
    return max(matching, default=(0, 0.0))[1]


def _media_range(item: str) -> tuple[str, float]:
    pattern, _, rest = item.partition(";")
    match = re.search(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*$", rest)
    return pattern.strip().lower(), float(match.group(1)) if match else 1.0


def _matches(pattern: str, name: str) -> bool:
    return pattern in ("*/*", "*", name) or (pattern.endswith("/*") and name.startswith(pattern[:-1]))
