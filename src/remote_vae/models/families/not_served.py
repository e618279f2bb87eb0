"""What is not served, and why: asking for it gives this reason before anything is fetched or imported."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from remote_vae.models.family import Family

FAMILIES: Final[tuple[Family, ...]] = ()


@dataclass(frozen=True, slots=True)
class NotServed:
    """`names` are what users may ask for, `classes` and `marks` what a config has: its class, or a key that is set.

    Keys of `foreign` count only if the config's class is not one that is served.
    """

    what: str
    reason: str
    instead: str
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} is not served: {self.reason}; {self.instead}"


_SOUND: Final = "it makes sound, and replies are pictures and videos"
_LOCALLY: Final = "keep it in the pipeline, where it takes little beside the video's VAE"
_TOKENS: Final = "its latents are numbers of codebook entries, and latents travel as floats"
_PIXELS: Final = "it works on pixels and has no VAE"
_NOTHING: Final = "there is nothing to decode elsewhere"
_OTHER_CODE: Final = "no class of diffusers can hold its weights, and code that comes with weights is not run"

NOT_SERVED: Final = (
    NotServed(
        "the VAE of Stable Audio and ACE-Step", _SOUND, "keep it in the pipeline",
        ("stable-audio", "stable-audio-open", "ace-step", "acestep", "oobleck"), ("AutoencoderOobleck",),
    ),
    NotServed(
        "the VAE of Stable Audio 3", _SOUND, "keep it in the pipeline", ("stable-audio-3", "same"), ("AutoencoderSAME",)
    ),
    NotServed(
        "the VAE of LTX-2's sound", _SOUND, _LOCALLY, ("ltx2-audio", "ltx-2-audio"),
        ("AutoencoderKLLTX2Audio", "LTX2Vocoder", "LTX2VocoderWithBWE"),
    ),
    NotServed(
        "the VAE of Kandinsky 6's sound", _SOUND, _LOCALLY, ("mmaudio", "kandinsky6-audio"),
        ("MMAudioVAE", "MMAudioVocoder"),
    ),
    NotServed(
        "the VAE of LongCat-AudioDiT", _SOUND, "keep it in the pipeline", ("longcat-audio",), ("LongCatAudioDiTVae",)
    ),
    NotServed(
        "the VAE of MiniMax's sound and music", _SOUND, _LOCALLY, ("minimax-h3-audio", "minimax-music"),
        ("AutoencoderKLMiniMaxH3Audio", "MiniMaxMusic3Vocoder"),
    ),
    NotServed(
        "the tokenizer of Cosmos 3's sound", _SOUND, _LOCALLY, ("cosmos3-audio",), ("Cosmos3AVAEAudioTokenizer",)
    ),
    NotServed("KVAE for sound", _SOUND, "keep it in the pipeline", ("kvae-audio",), ("AutoencoderKLKVAEAudio",)),
    NotServed(
        "the autoencoder of Proteina", "it makes the atoms of proteins", "keep it in the pipeline",
        ("proteina", "rfd4"), ("RFD4ProteinaAutoencoder",),
    ),
    NotServed(
        "the codebook of aMUSEd", _TOKENS, "keep it in the pipeline", ("amused", "open-muse"),
        marks=("lookup_from_codebook",),
    ),
    NotServed("the codebook of VQ-Diffusion", _TOKENS, "keep it in the pipeline", ("vq-diffusion",)),
    NotServed("PRX Pixel", _PIXELS, _NOTHING, ("prx-pixel", "prxpixel")),
    NotServed(
        "Chroma Radiance", _PIXELS, f"{_NOTHING} (Chroma 1 HD has a VAE: chroma)",
        ("chroma-radiance", "chroma1-radiance"),
    ),
    NotServed(
        "HiDream-O1", _PIXELS, f"{_NOTHING} (HiDream-I1 has a VAE: hidream)", ("hidream-o1", "hidream-o1-image")
    ),
    NotServed(
        "Z-Image in pixel space", _PIXELS, f"{_NOTHING} (Z-Image has a VAE: z-image)",
        ("zeta-chroma", "z-image-pixel"),
    ),
    NotServed("PixelDiT", _PIXELS, _NOTHING, ("pixeldit",)),
    NotServed("DeepFloyd IF", _PIXELS, _NOTHING, ("deepfloyd-if", "deepfloyd", "if")),
    NotServed("LLaDA 2 and DiffusionGemma", "they make text", _NOTHING, ("llada2", "diffusiongemma")),
    NotServed("Shap-E", "its latents are shapes in space", "keep its renderer in the pipeline", ("shap-e",)),
    NotServed(
        "the VAE of SeedVR2", _OTHER_CODE, "decode it with the program that runs SeedVR2", ("seedvr2", "seedvr")
    ),
    NotServed(
        "the VAE of HunyuanImage 3", _OTHER_CODE,
        "decode it with the program that runs HunyuanImage 3 (HunyuanImage 2.1 is served: hunyuan-image)",
        ("hunyuan-image-3", "hunyuanimage-3", "hunyuan-image-3.0"),
    ),
    NotServed(
        "Wan-Alpha", "it has two decoders for one latent, one for colours and one for transparency",
        "decode it with the program that runs Wan-Alpha", ("wan-alpha",),
    ),
    NotServed(
        "VisualCloze", "its token stream holds pictures of several sizes, which only its pipeline can tell apart",
        "set the pipeline's vae to RemoteVAE with flux1: then each decode is a request with one size",
        ("visualcloze",),
    ),
    NotServed(
        "an autoencoder that brings its code along", _OTHER_CODE, "take the model that it was made from, or a preview",
        ("flux.2-tiny-autoencoder", "flux2-tiny-autoencoder"), foreign=("auto_map",),
    ),
)  # fmt: skip
_BY_NAME: Final = {name: one for one in NOT_SERVED for name in one.names}


def why_not(name: str) -> NotServed | None:
    """What is known of a name that is not served."""
    return _BY_NAME.get(name.lower())


def why_not_these(config: Mapping[str, object], classes: Collection[str]) -> NotServed | None:
    """What is known of weights with this config that are not served; `classes` are those that are."""
    for one in NOT_SERVED:
        cls, marks = config.get("_class_name"), one.marks
        if cls not in classes:
            marks += one.foreign
        if cls in one.classes or any(config.get(mark) for mark in marks):
            return one
    return None
