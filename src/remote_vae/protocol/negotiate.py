"""Which format a reply has: the Accept header against what the output type can give."""

import re
from typing import Final

from remote_vae.errors import NotAcceptable
from remote_vae.protocol.options import DecodeOptions
from remote_vae.values import FORMATS, IMAGE_FORMATS, PARTS, TRANSPARENT_FORMATS, VIDEO_FORMATS, Format, clip

TENSORS: Final = tuple(row for row in FORMATS.values() if row.is_tensor)


def decode_format(accept: str, options: DecodeOptions, *, transparent: bool = False, video: bool = False) -> Format:
    """The reply's format by output type, image format and Accept; *raises* NotAcceptable.

    A `transparent` picture is written in a format that holds transparency, unless another one is named. A `video` can
    be asked for by Accept alone, in a format that no picture has. Frames that are streamed come in parts.
    """
    output_type, image_format = options["output_type"], options["image_format"]
    what = f"output_type={output_type}"
    tensors = (PARTS,) if options["stream"] else TENSORS
    if output_type == "pt":
        return _negotiate(accept, tensors, what)
    if output_type in VIDEO_FORMATS:
        return _negotiate(accept, (VIDEO_FORMATS[output_type],), what)
    videos = [row for row in VIDEO_FORMATS.values() if video and FORMATS[row.name] is row]
    if options["stream"]:
        return _negotiate(accept, (*videos, *tensors), what)
    if image_format:
        return _negotiate(accept, (FORMATS[image_format], *tensors), what)
    images = [FORMATS[name] for name in (TRANSPARENT_FORMATS if transparent else IMAGE_FORMATS)]
    return _negotiate(accept, (*images, *tensors, *videos), what)


def encode_format(accept: str) -> Format:
    """The format of an encode's reply; *raises* NotAcceptable."""
    return _negotiate(accept, TENSORS, "an encode")


def _negotiate(accept: str, offers: tuple[Format, ...], what: str) -> Format:
    """The offer with the highest q; among equals the first, which is the default."""
    if not accept.strip():
        return offers[0]
    ranges = [_media_range(item) for item in accept.split(",")[:32]]

    def quality(offer: Format) -> float:
        return max(_quality(name, ranges) for name in (offer.media_type, *offer.accepts))

    best = max(offers, key=quality)
    if quality(best) > 0:
        return best
    names = ", ".join(name for offer in offers for name in (offer.media_type, *offer.accepts))
    raise NotAcceptable(f"accept {clip(accept)!r} does not go with {what}; expected one of {names}")


def _quality(name: str, ranges: list[tuple[str, float]]) -> float:
    """What the most specific matching range says; 0 if none matches. *Source*: RFC 9110, 12.5.1."""
    matching = [(len(pattern.strip("*")), q) for pattern, q in ranges if _matches(pattern, name)]
    return max(matching, default=(0, 0.0))[1]


def _media_range(item: str) -> tuple[str, float]:
    pattern, _, rest = item.partition(";")
    match = re.search(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*$", rest)
    return pattern.strip().lower(), float(match.group(1)) if match else 1.0


def _matches(pattern: str, name: str) -> bool:
    return pattern in ("*/*", "*", name) or (pattern.endswith("/*") and name.startswith(pattern[:-1]))
