"""A diffusers pipeline with a small UNet of random weights, for what does not depend on what it paints."""

from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

WIDTH = 16  # of what a text encoder would give


def pipeline(vae: Any = None) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt() -> dict[str, Any]:
    return {"prompt_embeds": torch.zeros(1, 7, WIDTH), "guidance_scale": 1.0}
