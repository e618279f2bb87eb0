"""Jobs of every family that runs in strips or blocks: beside each other, cancelled, and on a device that fills up."""

from functools import partial

import pytest
import torch

from remote_vae.core import blocks, strips
from remote_vae.core.canvas import Canvas
from remote_vae.core.executor import Choice, Executor, RunOptions, choose, execute
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.errors import DeadlineExceeded, Overloaded
from remote_vae.models.families import FAMILIES, MODELS, family_of

from .every_family import CLASSES, apart, given_to, own, served, through, ways_of

CLOSE = 1e-5  # of the scale
FEW = 2**15  # bytes of a block
# Videos that no other test has in 16 bits both ways. In float16 the code of LTX's classes takes minutes on a CPU, and
# that of Cosmos and VidTok does not encode.
VIDEOS = ("wan2.1", "wan2.2-5b", "qwen-image-2.1", "cogvideox", "easyanimate", "hunyuanvideo-1.5", "taew2.1")
SIXTEEN_BITS = [
    *((name, dtype) for name in VIDEOS for dtype in (torch.bfloat16, torch.float16)),
    *((name, torch.bfloat16) for name in ("ltx", "ltx2")),
]


def test_no_family_is_left_out() -> None:
    """Every class that has stages has a model here."""
    assert {family_of(MODELS[name]).cls for name in CLASSES} == {family.cls for family in FAMILIES if family.stages}


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_beside_each_other(name: str, decoding: bool) -> None:
    """Two jobs on one module, of which one runs between the blocks of the other, do not touch each other."""
    vae = served(name)
    one, two = (given_to(vae, name, decoding=decoding) for _ in range(2))
    likes = [own(vae, given, decoding=decoding) for given in (one, two)]
    for way in ways_of(vae, decoding=decoding, block_bytes=FEW).values():
        between: list[torch.Tensor] = []

        def other(rows: int, way: Executor = way, between: list[torch.Tensor] = between) -> None:
            if not between and 2 * rows >= len(likes[0]) * likes[0].shape[2]:
                between.append(through(way, two, likes[1]))

        found = [through(way, one, likes[0], beside=other), *between]
        assert len(found) == len(likes)
        assert max(map(apart, found, likes)) < CLOSE, way


class Checkpoint:
    """Counts its calls. One of them raises an error; what is alive at the next one, or at the first, is noted."""

    def __init__(self, error: type[Exception] | None = None, at: int = 0) -> None:
        self.calls, self.held, self._error, self._at = 0, 0, error, at
        self.live = LiveBytes()

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self._at and self._error is not None:
            raise self._error("half way")  # made here, because an error keeps what was alive when it was raised
        if self.calls == self._at + 1:
            self.held = self.live.current


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_cancelled(name: str, decoding: bool) -> None:
    """A job that is cancelled half way gives its memory back and leaves the module as it was, whatever its plan."""
    vae = served(name)
    given = given_to(vae, name, decoding=decoding)
    like = own(vae, given, decoding=decoding)
    plans = {way.name: way for way in (vae.decoders if decoding else vae.encoders) if way.exact}
    for way in (plans | ways_of(vae, decoding=decoding, block_bytes=FEW)).values():
        whole = Checkpoint()
        expected = through(way, given, like, whole)
        half = Checkpoint(DeadlineExceeded, at=max(1, whole.calls // 2))
        with half.live, pytest.raises(DeadlineExceeded):
            way.run(given, lambda *block: None, half)
        assert half.live.current == 0, way
        assert torch.equal(through(way, given, like), expected), way
        assert torch.equal(own(vae, given, decoding=decoding), like), way


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_a_device_that_fills_up(name: str, decoding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no memory half way, the job begins again by a smaller exact plan, for which all memory is back."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", {"cpu": 2**18})
    monkeypatch.setattr(strips, "SMALL_BYTES", 0)
    vae = served(name)
    given = given_to(vae, name, decoding=decoding)
    like = own(vae, given, decoding=decoding)
    ways, budget = vae.decoders if decoding else vae.encoders, 2**40
    plans = [*choose(ways, tuple(given.shape), given.dtype, budget=budget)]

    def run(checkpoint: Checkpoint) -> tuple[torch.Tensor, Choice]:
        options = RunOptions(budget=lambda: budget, checkpoint=checkpoint)
        with checkpoint.live:
            canvas = partial(Canvas, len(like), like.shape[2], torch.clone, row_axis=2)
            return execute(ways, given, options, canvas, output=0)

    whole = Checkpoint()
    run(whole)
    poor = Checkpoint(torch.OutOfMemoryError, at=whole.calls // 2)
    if len(plans) == 1:
        with pytest.raises(Overloaded, match="every exact plan"):
            run(poor)
        return
    found, choice = run(poor)
    alone = Checkpoint()
    with alone.live:
        through(choice.executor, given, like, alone)
    assert choice == plans[1]
    assert choice.executor.exact
    assert poor.held == alone.held
    assert apart(found, like) < CLOSE


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize(("name", "dtype"), SIXTEEN_BITS)
def test_sixteen_bits(name: str, decoding: bool, dtype: torch.dtype) -> None:
    """As near to float32 as the model's own code is in the same precision, or nearer: at most 0.5 dB less."""
    vae, half = served(name), served(name, dtype)
    given = given_to(vae, name, decoding=decoding, height=5, width=4)
    exact = own(vae, given, decoding=decoding)
    theirs = (own(half, given.to(dtype), decoding=decoding) - exact).square().mean()
    for way in ways_of(half, decoding=decoding, block_bytes=FEW).values():
        ours = (through(way, given.to(dtype), exact).float() - exact).square().mean()
        assert 10 * torch.log10(ours / theirs) < 0.5, way


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2-5b", "hunyuanvideo-1.5", "mochi", "easyanimate", "taew2.1"])
def test_the_first_frame_is_early(name: str) -> None:
    """Of 21 latent frames, which are 81 frames of Wan, the first frame is there after at most 12 % of the work."""
    vae = served(name)
    given = given_to(vae, name, decoding=True, height=2, width=2, frames=21)
    way, checkpoint, early = ways_of(vae, decoding=True, block_bytes=1)["frames"], Checkpoint(), list[int]()
    height = 2 * vae.info.spatial_compression_ratio

    def sink(first: int, row: int, block: torch.Tensor) -> None:
        if first == 0 and row + block.shape[2] == height:
            early.append(checkpoint.calls)

    with torch.inference_mode():
        way.run(given, sink, checkpoint)
    assert 0 < early[0] <= 0.12 * checkpoint.calls
