"""The files in which trainers keep latents, a row for each: what they are called and how they are laid out.

*Source*: kohya's sd-scripts, library/strategy_base.py and the strategies beside it; musubi-tuner,
dataset/cache_io.py and dataset/architectures.py.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from remote_vae.errors import ConfigurationError

Size = tuple[int, int]  # width and height in pixels
VERSION: Final = "1.0.1"  # of musubi-tuner's caches
PLAIN: Final = "safetensors"


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache of a trainer for one kind of model.

    Its latents are `raw`, as the VAE gave them, or normalised. `posterior` is what the trainer itself caches. A cache
    of kohya's scripts names its arrays with the latent's size if it is `sized`; one of musubi-tuner has an
    `architecture`, and an axis of frames if it is `framed`.
    """

    end: str  # of the file's name
    raw: bool
    channels: int
    posterior: str
    sized: bool = False
    architecture: str = ""
    framed: bool = False


CACHES: Final[Mapping[str, Cache]] = {
    "kohya-sd": Cache("_sd.npz", True, 4, "sample"),
    "kohya-sdxl": Cache("_sdxl.npz", True, 4, "sample"),
    "kohya-sd3": Cache("_sd3.npz", True, 16, "sample", sized=True),
    "kohya-flux": Cache("_flux.npz", False, 16, "sample", sized=True),
    "kohya-lumina": Cache("_lumina.npz", False, 16, "sample", sized=True),
    "musubi-hunyuan_video": Cache("_hv.safetensors", True, 16, "sample", architecture="hunyuan_video", framed=True),
    "musubi-hunyuan_video_1_5": Cache(
        "_hv15.safetensors", True, 32, "mode", architecture="hunyuan_video_1_5", framed=True
    ),
    "musubi-wan": Cache("_wan.safetensors", False, 16, "mode", architecture="wan", framed=True),
    "musubi-qwen_image": Cache("_qi.safetensors", False, 16, "mode", architecture="qwen_image", framed=True),
    "musubi-z_image": Cache("_zi.safetensors", True, 16, "mode", architecture="z_image"),
}
RAW_CACHES: Final = {row.end.partition(".")[0]: row.raw for row in CACHES.values() if not row.architecture}
RAW_ARCHITECTURES: Final = {row.architecture for row in CACHES.values() if row.architecture and row.raw}
FORMS: Final = (PLAIN, *CACHES)


def check_form(form: str, card: Mapping[str, Any]) -> Cache | None:
    """The row of a form, None for a plain file; *raises* ConfigurationError if there is none or the model differs."""
    if form not in FORMS:
        simple = "SimpleTuner keeps pickles, which are not written here" if "simple" in form.lower() else ""
        raise ConfigurationError("; ".join(filter(None, (f"--form {form} must be one of {', '.join(FORMS)}", simple))))
    row = CACHES.get(form)
    if row is not None and card["latent_channels"] != row.channels:
        raise ConfigurationError(
            f"a cache {form} holds latents of {row.channels} channels; model {card['name']!r} has "
            f"{card['latent_channels']}; choose the model with --model"
        )
    return row


def file_name(row: Cache | None, stem: str, size: Size) -> str:
    """What the trainer calls the latent of a picture; `stem` is the picture's name without its suffix."""
    return f"{stem}.{PLAIN}" if row is None else f"{stem}_{size[0]:04d}x{size[1]:04d}{row.end}"


def written(
    row: Cache | None, latent: np.ndarray, *, size: Size, bucket: Size | None, about: Mapping[str, Any]
) -> bytes:
    """The file's bytes. A plain file has the latent as the server sent it, and `about` as its metadata.

    *Shapes*: latent [1,C,h,w] or [1,C,1,h,w].
    """
    latent = np.ascontiguousarray(latent)
    if row is None:
        return _steady(save({"latents": latent}, metadata={name: str(value) for name, value in about.items()}))
    assert bucket is not None, "trainers' caches are of buckets"
    single = latent[0]
    if row.architecture:
        single = single if single.ndim == 4 else single[:, None]
        cells = "x".join(map(str, single.shape[1:]))
        metadata = {"architecture": row.architecture, "format_version": VERSION}
        metadata |= {"width": str(size[0]), "height": str(size[1])}
        found = single if row.framed else single[:, 0]
        named = {f"latents_{cells}_{latent.dtype.name}": np.ascontiguousarray(found)}
        return _steady(save(named, metadata=metadata))
    end = f"_{single.shape[-2]}x{single.shape[-1]}" if row.sized else ""
    single = single.reshape(single.shape[0], *single.shape[-2:]).astype(np.float32)
    sizes = {f"original_size{end}": np.array(size), f"crop_ltrb{end}": np.array(_crop_of_kohya(size, bucket))}
    buffer = io.BytesIO()
    np.savez(buffer, **{f"latents{end}": single, **sizes})
    return buffer.getvalue()


def _steady(data: bytes) -> bytes:
    """A safetensors file with its metadata in order, so that equal latents are equal files."""
    size = int.from_bytes(data[:8], "little")
    head = json.dumps(
        json.loads(data[8 : 8 + size]), ensure_ascii=False, separators=(",", ":"), sort_keys=True
    ).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


def _crop_of_kohya(size: Size, bucket: Size) -> tuple[float, ...]:
    """The picture's left, top, right and bottom edge, if it is made to fit into its bucket as a whole.

    These are the numbers that SDXL is trained with. *Source*: BucketManager.get_crop_ltrb of sd-scripts.
    """
    aspect = size[0] / size[1]
    if bucket[0] / bucket[1] > aspect:
        width, height = bucket[1] * aspect, float(bucket[1])
    else:
        width, height = float(bucket[0]), bucket[0] / aspect
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height
