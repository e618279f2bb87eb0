"""What only EasyAnimate has: norms of frames that run together."""

from remote_vae.models.stages import easyanimate as stages

from .families import EASYANIMATE
from .local_networks import decoded, encoded
from .test_blocks import CLOSE, apart, given_by


def test_norms_of_frames_that_run_together() -> None:
    """Norms that are not of single frames see those that run together. Frames that are doubled would then be mixed."""
    model = EASYANIMATE.made(
        block_out_channels=(8, 8, 8),
        down_block_types=("SpatialDownBlock3D",) * 3,
        up_block_types=("SpatialUpBlock3D",) * 3,
        spatial_group_norm=False,
    )
    z, x = EASYANIMATE.both(3)
    decoder, encoder = EASYANIMATE.ways(model, 2**14)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE
    assert stages.describe(EASYANIMATE.made(spatial_group_norm=False)) is None
