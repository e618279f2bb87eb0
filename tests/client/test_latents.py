"""Tensors of torch and numpy <-> frames."""

import numpy as np
import pytest
import torch

from remote_vae.client.latents import tensor_like, tensor_of
from remote_vae.errors import InvalidValue
from remote_vae.values import Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_torch_round_trip(dtype):
    """A torch tensor of any travelling type becomes little-endian C-order bytes and comes back equal."""
    tensor = (torch.arange(24).reshape(2, 3, 4) - (0 if dtype is torch.uint8 else 12)).to(dtype)
    frame = tensor_of(tensor)
    assert (frame.dtype, frame.shape) == (str(dtype)[6:], (2, 3, 4))
    assert bytes(frame.buffer) == tensor.view(torch.uint8).numpy().tobytes()
    assert torch.equal(tensor_like(frame, tensor), tensor)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", ">f4", ">f2"])
def test_numpy_round_trip(dtype):
    """A numpy array of any byte order becomes little-endian bytes and comes back equal."""
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    frame = tensor_of(array)
    assert bytes(frame.buffer) == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert np.array_equal(tensor_like(frame, array), array)


def test_strides_and_gradients_do_not_travel():
    """A transposed view, a broadcast view and a tensor with a gradient are sent as what they hold."""
    base = torch.arange(6.0).reshape(2, 3)
    for tensor in (base.T, base[:1].expand(4, 3), base.clone().requires_grad_(), torch.nn.Parameter(base)):
        assert torch.equal(tensor_like(tensor_of(tensor), tensor), tensor.detach())
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    for view in (array.T, array[:, ::-1], np.broadcast_to(array[:1], (4, 3))):
        assert np.array_equal(tensor_like(tensor_of(view), view), view)


def test_no_copy_of_what_lies_right():
    """A contiguous tensor in main memory and a reply's buffer are used in place, and the result can be written to."""
    tensor = torch.zeros(1, 4, 2, 2)
    frame = tensor_of(tensor)
    tensor[0, 0, 0, 0] = 1
    assert bytes(frame.buffer[:4]) == np.float32(1).tobytes()
    buffer = bytearray(8)
    for like in (tensor, np.zeros(1)):
        found = tensor_like(Tensor("float32", (2,), buffer), like)
        found[0] = 2
        assert bytes(buffer[:4]) == np.float32(2).tobytes()


def test_frames_pass_through():
    """A Tensor is sent as it is, and numpy comes back for it."""
    frame = Tensor("float32", (2,), bytes(8))
    assert tensor_of(frame) is frame
    assert isinstance(tensor_like(frame, frame), np.ndarray)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, dtype=torch.float64),
        np.zeros(1),
        np.zeros(1, np.int64),
        np.zeros((1, 0), np.float32),
        torch.zeros(()),
    ],
    ids=str,
)
def test_tensor_that_does_not_travel(tensor):
    """A type that the wire does not have, an empty tensor and a scalar are refused, not converted."""
    with pytest.raises(InvalidValue):
        tensor_of(tensor)


@pytest.mark.parametrize("value", [None, [1.0], "x", b"x"])
def test_what_is_no_tensor(value):
    """Anything else is a TypeError that names its type."""
    with pytest.raises(TypeError, match=type(value).__name__):
        tensor_of(value)
