"""remote_decode and remote_encode beside the functions of diffusers that they replace."""

import inspect
import warnings
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from PIL import Image

from remote_vae.client import remote_decode, remote_encode
from remote_vae.errors import InvalidReply, InvalidValue, LatentMismatch

MP4 = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x08moov"
LATENT = torch.arange(64.0).reshape(1, 4, 4, 4).to(torch.float16)
PACKED = torch.ones(1, 12, 64, dtype=torch.bfloat16)
VIDEO = torch.ones(1, 16, 2, 4, 4)


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers.utils.remote_utils")


@pytest.fixture(scope="module")
def processors(theirs):
    return {None: None, "image": theirs.VaeImageProcessor(), "video": theirs.VideoProcessor()}


@pytest.mark.parametrize(("ours", "name"), [(remote_decode, "remote_decode"), (remote_encode, "remote_encode")])
def test_signatures(theirs, ours, name):
    """Names, order and defaults of the arguments are diffusers'; our own come after, by keyword only."""
    given = inspect.signature(ours).parameters.values()
    expected = inspect.signature(getattr(theirs, name)).parameters.values()
    positional = [p for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in expected]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(given)[len(positional) :])


def floats(*shape):
    return np.random.default_rng(0).uniform(0, 1, shape).astype(np.float16)


CASES = [
    (LATENT, {}, "jpeg", None),
    (LATENT, {"image_format": "png"}, "png", None),
    (LATENT, {"scaling_factor": 0.18215}, "jpeg", None),
    (LATENT, {"do_scaling": False}, "jpeg", None),
    (LATENT, {"do_scaling": False, "scaling_factor": 0.18215}, "jpeg", None),
    (PACKED, {"height": 48, "width": 64, "scaling_factor": 0.3611, "shift_factor": 0.1159}, "packed", None),
    (LATENT, {"height": 48}, "jpeg", None),
    (LATENT, {"output_type": "pt", "return_type": "pt"}, "raw", None),
    (LATENT, {"output_type": "pt"}, "raw", "image"),
    (LATENT, {"output_type": "pt", "partial_postprocess": True}, "uint8", None),
    (LATENT, {"output_type": "pt", "partial_postprocess": True, "return_type": "pt"}, "uint8", None),
    (LATENT.repeat(2, 1, 1, 1), {"output_type": "pt", "partial_postprocess": True}, "two uint8", None),
    (LATENT, {"input_tensor_type": "base64", "output_tensor_type": "base64"}, "jpeg", None),
    (VIDEO, {}, "frames", "video"),
    (VIDEO, {"return_type": "pt"}, "frames", "video"),
    (VIDEO, {"output_type": "pt"}, "raw video", "video"),
    (VIDEO, {"output_type": "mp4", "return_type": "mp4"}, "mp4", None),
]


@pytest.fixture
def replies(answers):
    return {
        "jpeg": answers.picture(form="jpeg"),
        "png": answers.picture(),
        "packed": answers.picture((64, 48), "jpeg"),
        "raw": answers.tensor(floats(1, 3, 32, 32)),
        "uint8": answers.tensor((floats(1, 32, 32, 3) * 255).astype(np.uint8)),
        "two uint8": answers.tensor((floats(2, 32, 32, 3) * 255).astype(np.uint8)),
        "frames": answers.tensor(floats(5, 3, 32, 32)),
        "raw video": answers.tensor(floats(1, 3, 5, 32, 32)),
        "mp4": answers.http(200, MP4, content_type="video/mp4"),
    }


def same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        return all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, Image.Image):
        assert (ours.mode, ours.format) == (theirs.mode, theirs.format)
        return np.array_equal(np.asarray(ours), np.asarray(theirs))
    return ours == theirs


def asked(seen):
    path, _, query = seen.target.partition("?")
    kept = {name: value for name, value in seen.headers.items() if name in ("accept", "content-type", "content-length")}
    return path, sorted(parse_qsl(query, keep_blank_values=True)), kept, seen.body


@pytest.mark.parametrize(("tensor", "options", "reply", "processor"), CASES)
def test_decode_is_the_same(serve, replies, theirs, processors, tensor, options, reply, processor):
    """The same call sends the same request and returns the same value as diffusers'."""
    server = serve(replies[reply])
    options = {**options, "processor": processors[processor]}
    url = f"{server.url}/vae/?key=1"
    ours = remote_decode(url, tensor, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.remote_decode(url, tensor, **options)
    assert same(ours, expected)
    assert asked(server.seen[0]) == asked(server.seen[1])


@pytest.mark.parametrize("factors", [{}, {"scaling_factor": 0.3611, "shift_factor": 0.1159}])
@pytest.mark.parametrize("image", [Image.new("RGB", (32, 32)), torch.ones(1, 3, 32, 32, dtype=torch.float16)])
def test_encode_is_the_same(serve, answers, theirs, image, factors):
    """The same call sends the same picture and returns the same tensor as diffusers'."""
    server = serve(answers.tensor(floats(1, 4, 4, 4)))
    ours, expected = remote_encode(server.url, image, **factors), theirs.remote_encode(server.url, image, **factors)
    assert same(ours, expected)
    first, second = server.seen
    assert first.target.partition("?")[0] == "/"
    assert asked(first)[1] == asked(second)[1]
    assert "content-type" not in first.headers
    if isinstance(image, torch.Tensor):
        assert first.body == second.body
    else:
        assert first.body.startswith(b"\x89PNG")


def test_encode_keeps_to_numpy(serve, answers):
    """A numpy picture gives a numpy latent, and our own options are sent."""
    server = serve(answers.tensor(floats(1, 4, 4, 4)))
    found = remote_encode(server.url, np.zeros((1, 3, 32, 32), np.float32), posterior="sample", seed=3)
    assert isinstance(found, np.ndarray)
    assert {("posterior", "sample"), ("seed", "3")} <= set(asked(server.seen[0])[1])


@pytest.mark.parametrize(
    "options",
    [
        {"output_type": "mp4"},
        {"output_type": "mp4", "return_type": "pt"},
        {"output_type": "gif"},
        {"return_type": "pt"},
        {"return_type": "mp4"},
        {"output_type": "pt"},
        {"output_type": "pt", "return_type": "mp4"},
        {"input_tensor_type": "json"},
    ],
)
def test_what_cannot_be_returned_is_not_sent(serve, answers, options):
    """A combination that no value can come of is refused before the latent is sent."""
    server = serve(answers.picture())
    with pytest.raises(InvalidValue):
        remote_decode(server.url, LATENT, **options)
    assert server.seen == []


def test_floats_beyond_one_do_not_wrap(serve, answers):
    """Frames slightly outside [0, 1] are clamped, where wrapping would turn white to black."""
    server = serve(answers.tensor(np.full((1, 3, 32, 32), 1.01, np.float16)))
    frames = remote_decode(server.url, VIDEO, processor=object())
    assert frames[0].getpixel((0, 0)) == (255, 255, 255)


def test_errors_are_ours(serve, answers):
    """An error of the server is raised as its class; a wrong picture is not returned."""
    server = serve(answers.error(422, "latent_mismatch"), answers.picture((1024, 512), "jpeg"))
    with pytest.raises(LatentMismatch):
        remote_decode(server.url, LATENT)
    with pytest.raises(InvalidReply):
        remote_decode(server.url, LATENT)


def test_overload_is_tried_again(serve, answers):
    """A generation is not lost to a busy moment."""
    server = serve(answers.error(503, "overloaded"), answers.picture(form="jpeg"))
    assert remote_decode(server.url, LATENT).size == (32, 32)
