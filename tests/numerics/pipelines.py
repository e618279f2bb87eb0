"""diffusers' own pipelines of tiny, seeded components, for every use that a VAE has in them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
CONTROL_UNET = {name: value for name, value in UNET.items() if name != "up_block_types"}
XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 16 + 6 * 4,
}
TRANSFORMER: dict[str, Any] = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "pooled_projection_dim": 16,
}
SD3: dict[str, Any] = {
    **TRANSFORMER,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 8,
    "joint_attention_dim": 16,
    "caption_projection_dim": 16,
    "pos_embed_max_size": 16,
}
FLUX: dict[str, Any] = {
    **TRANSFORMER,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
COGVIEW: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
}
FLUX2: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "in_channels": 32,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "timestep_guidance_channels": 8,
    "axes_dims_rope": (4, 4, 4, 4),
}
HUNYUAN: dict[str, Any] = {
    **TRANSFORMER,
    "attention_head_dim": 10,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (2, 4, 4),
}


IMAGE_PARTS = ("image_encoder", "image_processor", "safety_checker", "feature_extractor")


def unet(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "unet": diffusers.UNet2DConditionModel(**{"sample_size": 64, **UNET, **more}),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }


def controlled(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**unet(**more)(), "controlnet": noisy(diffusers.ControlNetModel(**CONTROL_UNET, **more))}


def upscaler() -> dict[str, Any]:
    return {
        **unet(in_channels=7, num_class_embeds=350)(),
        "low_res_scheduler": DDPMScheduler(),
    }


def flow(cls: Any, **config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"transformer": cls(**config), "scheduler": FlowMatchEulerDiscreteScheduler()}


def controlled_flow(cls: Any, control: Any, **config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**flow(cls, **config)(), "controlnet": noisy(control(**config))}


def noisy(network: Any) -> Any:
    """Untrained control networks end in zeros and would control nothing."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return network


def embeds(*shape: int) -> torch.Tensor:
    """What a text encoder would have given for a prompt."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def prompt(*, batch: int, pooled: bool, mask: bool = False) -> dict[str, torch.Tensor]:
    found = {"prompt_embeds": embeds(batch, 7, 16)}
    if pooled:
        found["pooled_prompt_embeds"] = embeds(batch, 16)
    if mask:
        found["prompt_attention_mask"] = torch.ones(batch, 7)
    return found


def picture(height: int, width: int, *, darkest: int = 0) -> Image.Image:
    values = np.random.default_rng(3).integers(darkest, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def mask(height: int, width: int) -> Image.Image:
    """White, which is to be painted anew, in the middle half."""
    values = np.zeros((height, width), np.uint8)
    values[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return Image.fromarray(values)


@dataclass(frozen=True)
class Case:
    """A pipeline class, the VAE that it is made for, its networks, and what it is called with."""

    cls: Any
    family: str
    networks: Callable[[], dict[str, Any]]
    call: dict[str, Any] = field(default_factory=dict)
    pooled: bool = True
    mask: bool = False
    component: str = "vae"  # the name that the pipeline has for its VAE

    @property
    def encodes(self) -> bool:
        return any("image" in name for name in self.call)

    def build(self, vae: Any) -> Any:
        """The pipeline with `vae` and without what encodes text; its networks are the same every time."""
        torch.manual_seed(3)
        names = self.cls._get_signature_types()
        parts = dict.fromkeys(name for name in names if name.startswith(("text_encoder", "tokenizer", "processor")))
        parts |= {name: None for name in IMAGE_PARTS if name in names}
        extra = {"requires_safety_checker": False} if "safety_checker" in names and "unet" in names else {}
        if self.cls is diffusers.StableDiffusionUpscalePipeline:
            extra = {}
        pipeline = self.cls(**{**parts, **self.networks()}, **{self.component: vae}, **extra)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def arguments(self, batch: int = 1) -> dict[str, Any]:
        """What `run` calls it with, but for the output type."""
        return {"guidance_scale": 1.0, **prompt(batch=batch, pooled=self.pooled, mask=self.mask), **self.call}

    def run(self, vae: Any, output_type: str = "pt", *, batch: int = 1, **more: Any) -> Any:
        """The pipeline's result: its networks, its noise and its prompt are the same in every run."""
        return call(self.build(vae), output_type, **{**self.arguments(batch), **more})


def call(pipeline: Any, output_type: str, generator: torch.Generator | None = None, **arguments: Any) -> Any:
    generator = generator or torch.Generator().manual_seed(4)
    return pipeline(num_inference_steps=2, generator=generator, output_type=output_type, **arguments)[0]


SIZE = {"height": 48, "width": 80}
IMAGE = {"image": picture(48, 80), "strength": 0.9}
INPAINT = {**IMAGE, "mask_image": mask(48, 80)}
CONTROL = {"image": picture(48, 80)}
XL_UNET, XL_CONTROL = unet(**XL), controlled(**XL)
SD3_FLOW = flow(diffusers.SD3Transformer2DModel, **SD3)
FLUX2_FLOW = flow(diffusers.Flux2Transformer2DModel, **FLUX2)
FLUX_FLOW = flow(diffusers.FluxTransformer2DModel, **FLUX)
PICTURES = {
    "sd": Case(diffusers.StableDiffusionPipeline, "sd", unet(), SIZE, pooled=False),
    "xl": Case(diffusers.StableDiffusionXLPipeline, "xl", XL_UNET, SIZE),
    "play": Case(diffusers.StableDiffusionXLPipeline, "play", XL_UNET, SIZE),
    "three": Case(diffusers.StableDiffusion3Pipeline, "three", SD3_FLOW, SIZE),
    "flux": Case(diffusers.FluxPipeline, "flux", FLUX_FLOW, SIZE),
    "flux2": Case(diffusers.Flux2Pipeline, "flux2", FLUX2_FLOW, SIZE, pooled=False),
    "cog": Case(
        diffusers.CogView4Pipeline, "cog", flow(diffusers.CogView4Transformer2DModel, **COGVIEW), SIZE, pooled=False
    ),
}
KLEIN = Case(diffusers.Flux2KleinPipeline, "klein", FLUX2_FLOW, SIZE, pooled=False)  # with no use for a None of a VAE
FROM_PICTURES = {
    "sd": Case(diffusers.StableDiffusionImg2ImgPipeline, "sd", unet(), IMAGE, pooled=False),
    "xl": Case(diffusers.StableDiffusionXLImg2ImgPipeline, "xl", XL_UNET, IMAGE),
    "play": Case(diffusers.StableDiffusionXLImg2ImgPipeline, "play", XL_UNET, IMAGE),
    "three": Case(diffusers.StableDiffusion3Img2ImgPipeline, "three", SD3_FLOW, {**IMAGE, **SIZE}),
    "flux": Case(diffusers.FluxImg2ImgPipeline, "flux", FLUX_FLOW, {**IMAGE, **SIZE}),
}
OTHERS = {
    "sd-inpaint": Case(diffusers.StableDiffusionInpaintPipeline, "sd", unet(), {**INPAINT, **SIZE}, pooled=False),
    "sd-inpaint-9": Case(
        diffusers.StableDiffusionInpaintPipeline,
        "sd",
        unet(in_channels=9),
        {**INPAINT, **SIZE},
        pooled=False,
    ),
    "xl-inpaint": Case(diffusers.StableDiffusionXLInpaintPipeline, "xl", XL_UNET, {**INPAINT, **SIZE}),
    "three-inpaint": Case(diffusers.StableDiffusion3InpaintPipeline, "three", SD3_FLOW, {**INPAINT, **SIZE}),
    "flux-inpaint": Case(diffusers.FluxInpaintPipeline, "flux", FLUX_FLOW, {**INPAINT, **SIZE}),
    "flux-fill": Case(
        diffusers.FluxFillPipeline,
        "flux",
        flow(diffusers.FluxTransformer2DModel, **FLUX, in_channels=64 + 64 + 256, out_channels=64),
        {**INPAINT, **SIZE},
    ),
    "sd-control": Case(diffusers.StableDiffusionControlNetPipeline, "sd", controlled(), CONTROL, pooled=False),
    "sd-control-image": Case(
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        "sd",
        controlled(),
        {**IMAGE, "control_image": picture(48, 80)},
        pooled=False,
    ),
    "xl-control": Case(diffusers.StableDiffusionXLControlNetPipeline, "xl", XL_CONTROL, CONTROL),
    "three-control": Case(
        diffusers.StableDiffusion3ControlNetPipeline,
        "three",
        controlled_flow(diffusers.SD3Transformer2DModel, diffusers.SD3ControlNetModel, **SD3),
        {"control_image": picture(48, 80), **SIZE},
    ),
    "flux-control": Case(
        diffusers.FluxControlPipeline,
        "flux",
        flow(diffusers.FluxTransformer2DModel, **FLUX, in_channels=128, out_channels=64),
        {"control_image": picture(48, 80), **SIZE},
    ),
    "flux-kontext": Case(
        diffusers.FluxKontextPipeline,
        "flux",
        FLUX_FLOW,
        {"image": picture(48, 80), **SIZE, "_auto_resize": False, "max_area": 48 * 80},
    ),
    "flux2-edit": Case(diffusers.Flux2Pipeline, "flux2", FLUX2_FLOW, {"image": picture(64, 80), **SIZE}, pooled=False),
    "klein": KLEIN,
    "klein-edit": replace(KLEIN, call={"image": picture(64, 80), **SIZE}),
    "upscale": Case(
        diffusers.StableDiffusionUpscalePipeline, "four", upscaler, {"image": picture(16, 24)}, pooled=False
    ),
}
VIDEO_SIZE = {"height": 32, "width": 48, "num_frames": 25}
VIDEO = Case(
    diffusers.HunyuanVideoPipeline,
    "video",
    flow(diffusers.HunyuanVideoTransformer3DModel, **HUNYUAN),
    VIDEO_SIZE,
    mask=True,
)
VIDEO_FROM_PICTURE = Case(
    diffusers.HunyuanVideoImageToVideoPipeline,
    "video",
    flow(
        diffusers.HunyuanVideoTransformer3DModel,
        **HUNYUAN,
        in_channels=16,
        out_channels=16,
        image_condition_type="token_replace",
        guidance_embeds=False,
    ),
    {**VIDEO_SIZE, "image": picture(32, 48)},
    mask=True,
)
