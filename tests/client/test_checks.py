"""Which replies can be the answer to which latents."""

import numpy as np
import pytest

from remote_vae.client.calls import decode_request, encode_request
from remote_vae.client.checks import check_decoded, check_encoded, most_pixels
from remote_vae.client.latents import tensor_of
from remote_vae.errors import InvalidReply

F16 = "float16"
PT = {"output_type": "pt"}
UINT8 = {"output_type": "pt", "partial_postprocess": True}


def tensor(shape, dtype=F16):
    return tensor_of(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("latent", "options", "reply", "dtype"),
    [
        ((1, 4, 8, 9), PT, (1, 3, 64, 72), F16),
        ((3, 4, 8, 9), PT, (3, 3, 64, 72), "float32"),
        ((3, 4, 8, 9), UINT8, (3, 64, 72, 3), "uint8"),
        ((3, 4, 8, 9), {}, (3, 3, 64, 72), F16),
        ((16, 8, 9), PT, (1, 3, 64, 72), F16),
        ((16, 8, 9), {**PT, "height": 64, "width": 72}, (1, 3, 64, 72), F16),
        ((2, 12, 64), {**PT, "height": 50, "width": 64}, (2, 3, 48, 64), F16),
        ((1, 2, 12, 64), {**PT, "height": 50, "width": 64}, (2, 3, 48, 64), F16),
        ((2, 16, 3, 4, 5), PT, (2, 3, 9, 32, 40), F16),
        ((2, 16, 3, 4, 5), {**PT, "height": 24, "width": 32}, (2, 3, 9, 32, 40), F16),
        ((1, 16, 1, 4, 5), PT, (1, 3, 32, 40), F16),
        ((1, 16, 3, 4, 5), {}, (9, 3, 32, 40), F16),
        ((1, 16, 3, 4, 5), UINT8, (9, 32, 40, 3), "uint8"),
        ((16, 3, 4, 5), PT, (1, 3, 9, 32, 40), F16),
        ((16, 3, 4, 5), UINT8, (9, 32, 40, 3), "uint8"),
    ],
)
def test_possible_replies(latent, options, reply, dtype):
    """Every layout that a server may answer a latent with is accepted."""
    check_decoded(decode_request(tensor(latent), options), tensor(reply, dtype))


@pytest.mark.parametrize(
    ("latent", "options", "reply", "dtype"),
    [
        ((1, 4, 8, 9), PT, (1, 3, 64, 72), "uint8"),
        ((1, 4, 8, 9), UINT8, (1, 64, 72, 3), F16),
        ((1, 4, 8, 9), UINT8, (1, 1, 64, 72, 3), "uint8"),
        ((1, 4, 8, 9), PT, (3, 64, 72), F16),
        ((1, 4, 8, 9), {}, (1, 3, 1, 64, 72), F16),
    ],
)
def test_impossible_replies(latent, options, reply, dtype):
    """A reply of another type or with another number of axes is refused."""
    with pytest.raises(InvalidReply):
        check_decoded(decode_request(tensor(latent), options), tensor(reply, dtype))


def test_most_pixels():
    """A picture has at most 64x64 pixels for each value of its latent, which no VAE exceeds."""
    assert most_pixels(decode_request(tensor((1, 12, 64)), {})) == 12 * 64 * 64 * 64


@pytest.mark.parametrize(
    ("image", "options", "reply", "dtype", "fits"),
    [
        (b"png", {}, (1, 4, 8, 8), F16, True),
        (b"png", {}, (1, 4, 8, 8), "uint8", False),
        (b"png", {}, (4, 8, 8), F16, False),
        (b"png", {"posterior": "parameters"}, (1, 8, 8, 8), F16, True),
        (tensor((2, 3, 64, 64)), {}, (2, 4, 8, 8), F16, True),
        (tensor((2, 3, 64, 64)), {}, (4, 8, 8), F16, False),
        (tensor((3, 64, 64)), {}, (1, 4, 8, 8), F16, True),
        (tensor((3, 9, 64, 64)), {}, (1, 16, 3, 8, 8), F16, True),
        (tensor((2, 3, 9, 64, 64)), {}, (2, 16, 3, 8, 8), F16, True),
    ],
)
def test_latents_of_an_encode(image, options, reply, dtype, fits):
    """A latent is float and has four or five axes."""
    request = encode_request(image, options)
    if fits:
        check_encoded(request, tensor(reply, dtype))
    else:
        with pytest.raises(InvalidReply):
            check_encoded(request, tensor(reply, dtype))
