"""DecodeQueue and RemoteVAE: image to image at four strengths, each decoded while the next is generated.

Usage: python examples/with_queue.py photo.jpg [URL]

The pipeline is diffusers' own. Its network is tiny and random, so that nothing has to be fetched: it adds noise.
"""

import sys
from collections.abc import Iterator

import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from PIL import Image

from remote_vae import DecodeQueue, RemoteVAE

photo = Image.open(sys.argv[1]).convert("RGB")
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"

vae = RemoteVAE(url)
channels = vae.config.latent_channels
torch.manual_seed(0)
pipe = StableDiffusionImg2ImgPipeline(
    vae=vae,  # encodes the photograph, and tells the pipeline what it needs to know
    unet=UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
    ),
    scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
    requires_safety_checker=False,
)


def generate() -> Iterator[torch.Tensor]:
    for strength in (0.2, 0.3, 0.4, 0.5):
        words = {"prompt_embeds": torch.zeros(1, 7, 16), "guidance_scale": 1.0, "num_inference_steps": 10}
        yield pipe(image=photo, strength=strength, output_type="latent", **words).images


strip = Image.new("RGB", (4 * photo.width, photo.height))
with DecodeQueue(url, do_scaling=True, progress=True) as queue:
    for item in queue.map(generate()):
        strip.paste(item.result(), (item.index * photo.width, 0))
strip.save("with_queue.png")
