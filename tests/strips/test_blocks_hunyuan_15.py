"""What only HunyuanVideo 1.5 has: levels that keep their width, and frames that attend to all earlier ones."""

import torch

from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import hunyuan_video_15 as stages
from remote_vae.models.vae import DiffusersVAE

from .families import HUNYUANVIDEO_15
from .local_networks import decoded, encoded, off
from .test_blocks import CLOSE, apart, given_by


def test_levels_that_keep_their_width() -> None:
    """Shortcuts repeat channels, and take means of them, by other numbers."""
    model = HUNYUANVIDEO_15.made(downsample_match_channel=False, upsample_match_channel=False)
    z, x = HUNYUANVIDEO_15.both(2)
    decoder, encoder = HUNYUANVIDEO_15.ways(model, 2**14)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


def test_keys_of_all_frames_are_predicted() -> None:
    """The prediction for a long clip counts what attention keeps of each frame."""
    model = HUNYUANVIDEO_15.made(block_out_channels=(4, 4, 16, 64, 256))
    assert abs(off(HUNYUANVIDEO_15.ways(model, 2**20)[0], HUNYUANVIDEO_15.latent(30, 2, 2))) < 0.15


def test_frames_save_memory() -> None:
    """Of what diffusers' decode of a clip holds, `frames` holds less than half."""
    about = MODELS["hunyuanvideo-1.5"]
    with torch.device("meta"):
        model = HUNYUANVIDEO_15.cls(**(about.config or {})).eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family_of(about))
    peaks = {way.name: way.peak_bytes((1, 32, 5, 16, 24), torch.float32, 0) for way in vae.decoders if way.exact}
    assert peaks["frames"] < 0.5 * peaks["whole"]


def test_other_architectures_run_by_their_own_code() -> None:
    model = HUNYUANVIDEO_15.made()
    model.decoder.conv_in.pad_mode = "constant"
    assert stages.describe(model) is None
