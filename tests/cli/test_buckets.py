"""Buckets are those of the trainers, and pictures are cut to them around their middle."""

import numpy as np
import pytest
from PIL import Image

from remote_vae.cli.buckets import area_side, buckets_of_kohya, buckets_of_musubi, fit
from remote_vae.errors import ConfigurationError

# As make_bucket_resolutions((512, 512)) of sd-scripts lists them.
KOHYA_512 = [
    (256, 1024),
    (320, 768),
    (384, 640),
    (448, 576),
    (512, 512),
    (576, 448),
    (640, 384),
    (768, 320),
    (1024, 256),
]


def test_the_list_of_kohya() -> None:
    """The defaults at 512 are those of sd-scripts: from 256 to 1024 in steps of 64, at most 512 x 512 pixels."""
    found = buckets_of_kohya(512, 64, None, None)
    assert set(KOHYA_512) <= set(found.sizes)
    assert all(w * h <= 512 * 512 and w % 64 == h % 64 == 0 for w, h in found.sizes)
    assert found.of((4000, 3000)) == (576, 448)
    assert found.of((3000, 4000)) == (448, 576)
    assert found.of((1000, 1000)) == (512, 512)
    assert found.of((5000, 100)) == (1024, 256)


def test_the_list_of_musubi_tuner() -> None:
    """Steps of 16 from half of the resolution on."""
    found = buckets_of_musubi(960, 16)
    assert min(map(min, found.sizes)) == 480
    assert {(960, 960), (480, 1920), (1920, 480), (864, 1056)} <= set(found.sizes)
    assert found.of((1920, 1080)) == (1280, 720)


@pytest.mark.parametrize(("size", "bucket"), [((200, 100), (64, 64)), ((100, 200), (64, 64)), ((50, 40), (64, 48))])
def test_a_picture_covers_its_bucket(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    """The picture is scaled until it covers the bucket, and as much is cut off on both sides."""
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (size[1], size[0])).copy())
    found = fit(image, bucket)
    assert found.image.size == bucket
    left, top, right, bottom = found.kept
    assert left + right == pytest.approx(size[0], abs=2)
    assert top + bottom == pytest.approx(size[1], abs=2)
    assert (right - left) / (bottom - top) == pytest.approx(bucket[0] / bucket[1], rel=0.05)
    middle = np.asarray(found.image)[bucket[1] // 2, bucket[0] // 2]
    assert abs(int(middle) - 127) < 6
    assert found.share_cut(size) == pytest.approx(1 - (right - left) * (bottom - top) / (size[0] * size[1]))


def test_modes_and_profiles() -> None:
    """Every mode can be scaled; a profile stays with the colours it is of; transparency stays."""
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"):
        image = Image.new(mode, (40, 20))
        image.info["exif"] = b"turned"
        found = fit(image, (16, 16)).image
        assert found.size == (16, 16)
        assert "exif" not in found.info
    wide = Image.new("RGB", (40, 20))
    wide.info["icc_profile"] = b"wide"
    assert fit(wide, (16, 16)).image.info["icc_profile"] == b"wide"
    assert fit(Image.new("PA", (40, 20)), (16, 16)).image.mode == "RGBA"
    white = fit(Image.new("I;16", (40, 20), 65535), (16, 16)).image
    assert (white.mode, white.getextrema()) == ("L", (255, 255))


@pytest.mark.parametrize("text", ["", "0", "-1", "1x2x3", "1e3", "999999", "³"])
def test_what_is_no_resolution(text: str) -> None:
    """A resolution is one or two numbers of pixels."""
    with pytest.raises(ConfigurationError, match="--bucket"):
        area_side(text)
    assert (area_side("1024"), area_side("1216x832")) == (1024, 1005)
