"""The colours of a picture as sRGB, which is what VAEs know; and what was lost on the way, in a sentence."""

from io import BytesIO
from typing import Final

from PIL import Image, ImageCms

from remote_vae.values import clip

SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of a profile, by the picture's mode
CONVERTED: Final = "the colours were converted from the picture's profile, {}, to sRGB; profile=ignore leaves them"
IGNORED: Final = "the picture's colour profile is not one for its colours, and was ignored"


def to_srgb(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The picture in RGB or RGBA by its colour profile, and a note if that changed or could change its colours.

    Transparency is kept. A profile that is broken or for other colours than the picture's is ignored.
    """
    plain = "RGBA" if picture.has_transparency_data else "RGB"
    if not profile:
        return picture.convert(plain), ""
    try:
        found = ImageCms.ImageCmsProfile(BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(found).split())
        if "srgb" in name.lower():
            return picture.convert(plain), ""
        colours = picture if picture.mode in SPACES else picture.convert("RGB")
        if found.profile.xcolor_space.strip() != SPACES[colours.mode]:
            return picture.convert(plain), IGNORED
        converted = ImageCms.profileToProfile(colours, found, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture.convert(plain), IGNORED
    assert converted is not None  # only a conversion in place gives nothing
    if plain == "RGBA":
        converted.putalpha(picture.convert("RGBA").getchannel("A"))
    return converted, CONVERTED.format(clip(name.encode("ascii", "replace").decode()) or "which has no name")
