"""What only VidTok has: quantised latents, and models that are not causal."""

from remote_vae.models.stages import vidtok as stages

from .families import VIDTOK


def test_other_kinds_run_by_their_own_code() -> None:
    """Quantised latents decode by blocks; they are not encoded so. A model that is not causal has no stages."""
    found = stages.describe(VIDTOK.made(regularizer="fsq", double_z=False, z_channels=5, codebook_size=8**5))
    assert found is not None
    assert found[1] is None
    assert stages.describe(VIDTOK.made(is_causal=False)) is None
