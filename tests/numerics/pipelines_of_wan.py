"""The pipelines on the VAEs of Wan and of Qwen-Image, of tiny, seeded components."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler

from .pipelines import Case, embeds, flow, mask, picture

WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
}
FIBO: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "text_encoder_dim": 8,
    "axes_dims_rope": [4, 4, 4],
}
JOYIMAGE: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 1,
    "rope_dim_list": [4, 4, 4],
}
COSMOS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
    "extra_pos_embed_type": None,
    "concat_padding_mask": False,  # scaling the mask needs torchvision
}
MOTIF: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_single_layers": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}
QWEN: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 4),
}
VIDEO = {"height": 32, "width": 48, "num_frames": 9}
SIZE = {"height": 48, "width": 80}
FRAMES = [picture(32, 48, darkest=20 * index) for index in range(9)]


class Fibo(diffusers.BriaFiboPipeline):
    """Without what encodes text; its own call takes no embeddings."""

    def encode_prompt(self, **_: Any) -> tuple[Any, ...]:
        text = embeds(1, 7, 16)
        return text, None, torch.zeros(7, 3), torch.ones(1, 7), None, [embeds(1, 7, 8)], None

    def __call__(self, prompt_embeds: Any, **how: Any) -> Any:
        return super().__call__(prompt="a", **how)


class Motif(diffusers.MotifVideoImage2VideoPipeline):
    """Its guider has the scale."""

    def __call__(self, guidance_scale: float, **how: Any) -> Any:
        return super().__call__(prompt=None, **how)


class ChronoEdit(diffusers.ChronoEditPipeline):
    """Without what encodes the picture for the transformer."""

    def encode_image(self, *_: Any) -> torch.Tensor:
        return embeds(1, 257, 8)


class NoChecker:
    """Finds every prompt and every video harmless."""

    def to(self, _: Any) -> None: ...

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def checked(**config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "transformer": diffusers.CosmosTransformer3DModel(**COSMOS, **config),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        "safety_checker": NoChecker(),
    }


def guided() -> dict[str, Any]:
    return {
        **flow(diffusers.MotifVideoTransformer3DModel, **MOTIF)(),
        "guider": ClassifierFreeGuidance(guidance_scale=1.0),
    }


def vace() -> dict[str, Any]:
    config = {**WAN, "num_layers": 2, "vace_layers": [0, 1], "vace_in_channels": 96}
    return flow(diffusers.WanVACETransformer3DModel, **config)()


def helios() -> dict[str, Any]:
    transformer = diffusers.HeliosTransformer3DModel(**WAN, rope_dim=(4, 4, 4))
    return {
        "transformer": transformer,
        "scheduler": diffusers.HeliosScheduler(stages=1, stage_range=[0, 1], gamma=1 / 3),
    }


def unipc() -> dict[str, Any]:
    scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    return {"transformer": diffusers.SkyReelsV2Transformer3DModel(**WAN), "scheduler": scheduler}


JOY_CALL = {**SIZE, "prompt_embeds_mask": torch.ones(1, 7)}
PICTURES = {
    "fibo": Case(Fibo, "fibo", flow(diffusers.BriaFiboTransformer2DModel, **FIBO, in_channels=48), SIZE, pooled=False),
    "fibo-patches": Case(
        Fibo,
        "fibo",
        flow(diffusers.BriaFiboTransformer2DModel, **FIBO, in_channels=192),
        {"height": 64, "width": 96, "do_patching": True},
        pooled=False,
    ),
    "joyimage": Case(
        diffusers.JoyImageEditPipeline,
        "joyimage",
        flow(diffusers.JoyImageEditTransformer3DModel, **JOYIMAGE),
        JOY_CALL,
        pooled=False,
    ),
    "pictures": Case(diffusers.Cosmos2TextToImagePipeline, "joyimage", checked(), SIZE, pooled=False),
}
VIDEOS = {
    "cosmos": Case(
        diffusers.Cosmos2VideoToWorldPipeline,
        "wan",
        checked(in_channels=17),
        {**VIDEO, "image": picture(32, 48)},
        pooled=False,
    ),
    "motif": Case(
        Motif,
        "wan",
        guided,
        {**VIDEO, "image": picture(32, 48)},
        pooled=False,
        mask=True,
    ),
    "skyreels": Case(diffusers.SkyReelsV2Pipeline, "wan", unipc, VIDEO, pooled=False),
    "video-to-video": Case(
        diffusers.WanVideoToVideoPipeline,
        "wan",
        flow(diffusers.WanTransformer3DModel, **WAN),
        {"height": 32, "width": 48, "video": FRAMES, "strength": 0.9},
        pooled=False,
    ),
    "lucy": Case(
        diffusers.LucyEditPipeline,
        "lucy",
        flow(diffusers.WanTransformer3DModel, **{**WAN, "in_channels": 96, "out_channels": 48}),
        {**VIDEO, "height": 64, "width": 96, "video": FRAMES},
        pooled=False,
    ),
}
VACE = Case(
    diffusers.WanVACEPipeline,
    "wan",
    vace,
    {**VIDEO, "video": FRAMES, "mask": [mask(32, 48)] * 9, "reference_images": [picture(32, 48), picture(40, 40)]},
    pooled=False,
)
CHRONOEDIT = Case(
    ChronoEdit,
    "wan",
    flow(diffusers.ChronoEditTransformer3DModel, **{**WAN, "in_channels": 36, "image_dim": 8}),
    {
        **VIDEO,
        "num_frames": 13,
        "image": picture(32, 48),
        "enable_temporal_reasoning": True,
        "num_temporal_reasoning_steps": 2,
    },
    pooled=False,
)
HELIOS = Case(
    diffusers.HeliosPipeline,
    "wan",
    helios,
    {**VIDEO, "num_frames": 18, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]},
    pooled=False,
)
QWEN_EDIT = flow(diffusers.QwenImageTransformer2DModel, **QWEN)
EDIT_CALL = {**SIZE, "image": picture(48, 80), "prompt_embeds_mask": torch.ones(1, 7), "true_cfg_scale": 1.0}
EDITS = {
    "vace": VACE,
    "chronoedit": CHRONOEDIT,
    "helios": HELIOS,
    "joyimage-edit": Case(
        diffusers.JoyImageEditPipeline,
        "joyimage",
        flow(diffusers.JoyImageEditTransformer3DModel, **JOYIMAGE),
        {**JOY_CALL, "image": picture(48, 80)},
        pooled=False,
    ),
    "edit": Case(diffusers.QwenImageEditPipeline, "edit", QWEN_EDIT, EDIT_CALL, pooled=False),
    "edit-plus": Case(diffusers.QwenImageEditPlusPipeline, "edit", QWEN_EDIT, EDIT_CALL, pooled=False),
}
