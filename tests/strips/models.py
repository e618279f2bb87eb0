"""Small seeded AutoencoderKLs whose norms and biases are far from neutral."""

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderKLFlux2


def small(
    widths: tuple[int, ...] = (16, 32, 32),
    *,
    attention: bool = True,
    quant: bool = True,
    layers: int = 1,
    seed: int = 0,
) -> AutoencoderKL:
    """Of the SD kind; without attention of the CogView4 kind, without quant convolutions of the SD3 and FLUX.1 kind."""
    torch.manual_seed(seed)
    count = len(widths)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=8,
        mid_block_add_attention=attention,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )
    return shaken(model)


def flux2() -> AutoencoderKLFlux2:
    """Of the FLUX.2 kind, whose decoder may have other widths than its encoder."""
    torch.manual_seed(1)
    model = AutoencoderKLFlux2(
        block_out_channels=(16, 16, 32, 32), decoder_block_out_channels=(8, 16, 16, 32), layers_per_block=1,
        latent_channels=4, norm_num_groups=8,
    )  # fmt: skip
    return shaken(model)


def asymmetric() -> AsymmetricAutoencoderKL:
    """Of the kind for inpainting, whose decoder is wider and deeper than its encoder."""
    torch.manual_seed(7)
    model = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, down_block_out_channels=(8, 16, 16), layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 3, up_block_out_channels=(16, 24, 32), layers_per_up_block=2,
        norm_num_groups=8,
    )  # fmt: skip
    return shaken(model)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Every bias, scale and shift is moved: at their neutral start a forgotten one would not be missed."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.3)
    return model.eval().requires_grad_(False)
