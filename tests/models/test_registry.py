"""The table of models: every promised name resolves, and every row is the architecture that it says it is."""

import inspect
from typing import Any

import pytest
import torch

from remote_vae.core.recipe import Affine, Constants
from remote_vae.errors import ConfigurationError
from remote_vae.models.families import ALIASES, MODELS, family_of, find_model, find_recipe
from remote_vae.models.family import Family, Model, channels_of
from remote_vae.models.spec import ModelSpec, parse_spec
from remote_vae.models.weights import find_weights

PROMISED = {
    "allegro": (),
    "animatediff": (),
    "animatediff-sdxl": (),
    "asymmetric": (),
    "asymmetric-x2": (),
    "bria3.2": (),
    "cogvideox": ("cogvideox-5b", "cogvideox-5b-i2v", "cogvideox-fun", "consisid"),
    "cogvideox-2b": (),
    "cogvideox1.5": ("cogvideox1.5-5b",),
    "cogvideox1.5-i2v": (),
    "cogview3-plus": (),
    "cogview4": (),
    "consistency-decoder": (),
    "cosmos": ("cosmos-1.0",),
    "cosmos-predict2": ("cosmos-transfer2.5",),
    "cosmos-predict2-text2image": (),
    "dc-ae-f128c512-in": (),
    "dc-ae-f128c512-mix": (),
    "dc-ae-f32c32-in": (),
    "dc-ae-f32c32-mix": (),
    "dc-ae-f64c128-in": (),
    "dc-ae-f64c128-mix": (),
    "demo": (),
    "dit": (),
    "easyanimate": ("easyanimate-v5.1", "easyanimate-inp", "easyanimate-control"),
    "ernie-image": (),
    "ernie-image-turbo": (),
    "fibo": ("fibo-edit",),
    "fibo2": (),
    "flux1": ("flux", "hidream", "chroma", "z-image", "lumina2"),
    "flux2": ("flux2-dev",),
    "flux2-klein": (),
    "flux2-small-decoder": (),
    "flux3": (),
    "glm-image": (),
    "helios": (),
    "hunyuan-image-2.1": ("hunyuan-image",),
    "hunyuan-image-refiner": ("hunyuan-image-2.1-refiner",),
    "hunyuandit": (),
    "hunyuanvideo": (),
    "hunyuanvideo-1.5": (),
    "i2vgen-xl": (),
    "ideogram4": (),
    "joyimage": ("joyimage-edit",),
    "joyimage-edit-plus": (),
    "kandinsky2.1": ("kandinsky2",),
    "kandinsky3": (),
    "kandinsky5-image": ("kandinsky5",),
    "kandinsky5-video": ("kandinsky5-t2v", "kandinsky5-i2v"),
    "kandinsky6": (),
    "kandinsky6-sr": (),
    "kvae-2d": (),
    "kvae-3d": (),
    "latte": (),
    "lcm": (),
    "ldm-super-resolution": (),
    "ltx": ("ltx-video",),
    "ltx-0.9.1": (),
    "ltx-0.9.5": (),
    "ltx-0.9.7": (),
    "ltx-0.9.8": (),
    "ltx2": ("ltx-2",),
    "ltx2-diffusion-decoder": (),
    "ltx2.3": ("ltx-2.3",),
    "ltx2.5": ("ltx-2.5",),
    "minimax-h3": (),
    "mochi": ("mochi-1",),
    "modelscope-t2v": (),
    "motif-video": (),
    "movq": ("kandinsky2.2",),
    "pixart-alpha": (),
    "qwen-image": ("qwen", "krea2"),
    "qwen-image-2.1": (),
    "qwen-image-edit": ("qwen-image-edit-plus",),
    "qwen-image-layered": (),
    "rae": (),
    "rae-512": (),
    "rae-large": (),
    "rae-mae": (),
    "rae-small": (),
    "sana": ("dc-ae-f32c32-sana-1.0",),
    "sana-1.1": ("prx-dc-ae",),
    "sana-1.5": (),
    "sana-sprint": (),
    "sana-video": (),
    "sana-video-720p": (),
    "sana-wm": (),
    "sd-x4-upscaler": (),
    "sd1": ("sd1.5",),
    "sd2": ("sd2.1",),
    "sd3": ("sd3.5",),
    "sdxl": ("pixart-sigma", "kolors", "auraflow", "omnigen", "lumina"),
    "skyreels-v2": (),
    "stable-cascade": ("wuerstchen",),
    "svd": ("svd-xt", "stable-video-diffusion"),
    "taecvx": (),
    "taecvx-2b": (),
    "taef1": (),
    "taef2": (),
    "taeh3": (),
    "taehv": (),
    "taehv-kandinsky5": (),
    "taehv1.5": ("taehv1_5",),
    "taehv1.5-super": ("taehv1_5_super",),
    "taeltx2": ("taeltx_2",),
    "taeltx2.3": ("taeltx2_3",),
    "taesd": (),
    "taesd3": (),
    "taesdxl": (),
    "taew2.1": ("taew2_1",),
    "taew2.1-image": (),
    "taew2.2": ("taew2_2",),
    "taew2.2-image": (),
    "taew2.2-super": ("taew2_2_super",),
    "vidtok": (),
    "wan2.1": ("wan", "wan2.2", "wan2.2-14b", "wan-vace", "chronoedit"),
    "wan2.2-5b": ("cosmos3", "lucy-edit"),
}
PARAMETERS = {
    "allegro": 174_955_751,
    "animatediff": 83_653_863,
    "animatediff-sdxl": 83_653_863,
    "asymmetric": 194_300_519,
    "asymmetric-x2": 406_130_151,
    "bria3.2": 83_653_863,
    "cogvideox": 215_583_907,
    "cogvideox-2b": 215_583_907,
    "cogvideox1.5": 215_583_907,
    "cogvideox1.5-i2v": 215_583_907,
    "cogview3-plus": 406_100_643,
    "cogview4": 406_100_643,
    "consistency-decoder": 655_441_366,
    "cosmos": 105_653_696,
    "cosmos-predict2": 126_892_531,
    "cosmos-predict2-text2image": 126_892_531,
    "dc-ae-f128c512-in": 1_120_682_252,
    "dc-ae-f128c512-mix": 1_120_682_252,
    "dc-ae-f32c32-in": 323_356_460,
    "dc-ae-f32c32-mix": 323_356_460,
    "dc-ae-f64c128-in": 676_896_140,
    "dc-ae-f64c128-mix": 676_896_140,
    "dit": 83_653_863,
    "easyanimate": 244_375_507,
    "ernie-image": 84_046_115,
    "ernie-image-turbo": 84_046_115,
    "fibo": 704_688_668,
    "fibo2": 84_046_115,
    "flux1": 83_819_683,
    "flux2": 84_046_115,
    "flux2-klein": 84_046_115,
    "flux2-small-decoder": 62_373_091,
    "flux3": 84_046_115,
    "glm-image": 406_100_643,
    "helios": 126_892_531,
    "hunyuan-image-2.1": 405_575_491,
    "hunyuan-image-refiner": 1_260_634_115,
    "hunyuandit": 83_653_863,
    "hunyuanvideo": 246_478_803,
    "hunyuanvideo-1.5": 1_260_634_115,
    "i2vgen-xl": 83_653_863,
    "ideogram4": 84_046_115,
    "joyimage": 126_892_531,
    "joyimage-edit-plus": 126_892_531,
    "kandinsky2.1": 67_832_495,
    "kandinsky3": 270_669_103,
    "kandinsky5-image": 83_819_683,
    "kandinsky5-video": 246_478_803,
    "kandinsky6": 246_478_803,
    "kandinsky6-sr": 1_738_878_243,
    "kvae-2d": 217_426_723,
    "kvae-3d": 617_982_115,
    "latte": 83_653_863,
    "lcm": 83_653_863,
    "ldm-super-resolution": 55_322_782,
    "ltx": 419_193_649,
    "ltx-0.9.1": 934_976_434,
    "ltx-0.9.5": 1_246_913_522,
    "ltx-0.9.7": 1_246_913_522,
    "ltx-0.9.8": 1_246_913_522,
    "ltx2": 1_222_479_601,
    "ltx2-diffusion-decoder": 417_133_616,
    "ltx2.3": 726_105_969,
    "ltx2.5": 726_105_969,
    "minimax-h3": 2_603_868_984,
    "mochi": 459_748_611,
    "modelscope-t2v": 83_653_863,
    "motif-video": 126_892_531,
    "movq": 67_832_495,
    "pixart-alpha": 83_653_863,
    "playground": 83_653_863,
    "qwen-image": 126_892_531,
    "qwen-image-2.1": 337_740_404,
    "qwen-image-edit": 126_892_531,
    "qwen-image-layered": 126_897_716,
    "rae": 501_638_656,
    "rae-512": 501_638_656,
    "rae-large": 719_722_240,
    "rae-mae": 500_853_760,
    "rae-small": 436_671_616,
    "sana": 312_250_275,
    "sana-1.1": 312_250_275,
    "sana-1.5": 312_250_275,
    "sana-sprint": 312_250_275,
    "sana-video": 126_892_531,
    "sana-video-720p": 1_222_479_601,
    "sana-wm": 1_222_479_601,
    "sd-x4-upscaler": 55_325_927,
    "sd1": 83_653_863,
    "sd2": 83_653_863,
    "sd3": 83_819_683,
    "sdxl": 83_653_863,
    "skyreels-v2": 126_892_531,
    "stable-cascade": 18_406_894,
    "svd": 97_742_847,
    "taecvx": 11_315_539,
    "taecvx-2b": 11_315_539,
    "taef1": 2_458_899,
    "taef2": 2_677_027,
    "taeh3": 11_348_964,
    "taehv": 11_315_539,
    "taehv-kandinsky5": 11_315_539,
    "taehv1.5": 11_372_012,
    "taehv1.5-super": 20_470_572,
    "taeltx2": 11_759_728,
    "taeltx2.3": 11_759_728,
    "taesd": 2_445_063,
    "taesd3": 2_458_899,
    "taesdxl": 2_445_063,
    "taew2.1": 11_315_539,
    "taew2.1-image": 11_315_539,
    "taew2.2": 11_418_108,
    "taew2.2-image": 11_418_108,
    "taew2.2-super": 20_487_996,
    "vidtok": 157_451_663,
    "wan2.1": 126_892_531,
    "wan2.2-5b": 704_688_668,
}
CONSTANTS = {
    "sd1": (0.18215, None),
    "sdxl": (0.13025, None),
    "sd3": (1.5305, 0.0609),
    "flux1": (0.3611, 0.1159),
    "cogview4": (1.0, 0.0),
    "sana": (0.41407, None),
    "dc-ae-f64c128-mix": (0.4538, None),
    "dc-ae-f128c512-in": (0.4883, None),
}

# What users call the models that they use, whatever further names there are.
KNOWN = (
    *("wan2.1", "wan2.2", "qwen-image", "qwen-image-layered", "qwen-image-2.1", "ltx", "ltx2", "minimax-h3"),
    *("hunyuanvideo", "hunyuanvideo1.5", "hunyuan-image", "kandinsky5", "kandinsky5-video", "sana", "svd", "glm-image"),
    *("ideogram4", "ernie-image", "fibo", "fibo2", "cogvideox", "mochi", "allegro", "easyanimate", "cosmos"),
    *("taew2.1", "taehv"),
)


@pytest.mark.parametrize("name", KNOWN)
def test_known_names(name: str) -> None:
    """Each is a model and a recipe, and can be served with random weights at its true architecture."""
    spec = parse_spec(name, random_weights=True)
    assert find_weights(spec) is None
    assert parse_spec(f"mine=./folder,recipe={name}").resolve_recipe() is spec.resolve_recipe()


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names(name: str) -> None:
    """Every name and alias that is promised leads to its row, in any case."""
    for spelling in (name, *PROMISED[name]):
        assert find_model(spelling) is MODELS[name]
        assert find_model(spelling.upper()) is MODELS[name]
        assert find_recipe(spelling) is MODELS[name].recipe


def test_no_name_means_two_things() -> None:
    """An alias is no other row's name, and no two rows share one."""
    spellings = [*MODELS, *(alias for row in MODELS.values() for alias in row.aliases)]
    assert len(spellings) == len(set(spellings))
    assert set(ALIASES.values()) <= set(MODELS)
    assert all(spelling == spelling.lower() for spelling in spellings)


@pytest.mark.parametrize("name", PARAMETERS)
def test_architectures(name: str) -> None:
    """A row's architecture has the parameters of the published model, counted without allocating any."""
    row = MODELS[name]
    with torch.device("meta"):
        module = family_of(row).load_class()(**row.config)
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]


def test_a_class_of_another_module() -> None:
    """A family can name a class that diffusers does not have, by the module that has it."""
    family = Family("Identity", (), module="torch.nn")
    assert family.load_class() is torch.nn.Identity


def test_rows_of_one_recipe_have_weights_of_their_own() -> None:
    """No two rows load the same weights under the same recipe: the second would be an alias of the first."""
    loaded = [(model.recipe.name, model.repository, model.subfolder) for model in MODELS.values()]
    assert len(loaded) == len(set(loaded))


def full_config(model: Model) -> dict[str, object]:
    """A row's config with what its class takes for the rest."""
    defaults = inspect.signature(family_of(model).load_class().__init__).parameters.values()
    return {item.name: item.default for item in defaults} | dict(model.config or {})


NEUTRAL = {"scaling_factor": 1, "shift_factor": 0, "latents_mean": None, "latents_std": None}


def as_constant(value: Any, neutral: object) -> object:
    """A number of a config; what stands in weights alone is neutral here."""
    return neutral if value is None else tuple(value) if isinstance(value, list) else value


def test_every_preview_is_a_model() -> None:
    """What a row names as its preview is a row itself, for latents with as many channels and the same constants."""
    for model in MODELS.values():
        if model.preview is not None:
            preview, config = MODELS[model.preview], full_config(model)
            [literal] = [op.literal for op in preview.recipe.ops if isinstance(op, Affine)]
            if literal is None:  # it takes what the model's own decoder takes
                literal = Constants(preview.config["scaling_factor"])  # type: ignore[index]
            used = {name for op in model.recipe.ops if isinstance(op, Affine) for name in op.uses}
            stated = {name: config.get(name) for name in used}
            in_weights = {name for name, value in stated.items() if value is None}
            if not used:  # its pipelines hand out what the decoder takes
                in_weights = {"latents_mean", "latents_std"}
            for name, neutral in NEUTRAL.items():
                if name in in_weights:
                    continue
                found = getattr(literal, name)
                assert (neutral if found is None else found) == as_constant(stated.get(name), neutral), model.name
            assert preview.recipe.has_frames == model.recipe.has_frames
            assert channels_of(preview.config) == channels_of(config)


def test_every_row_has_a_known_size() -> None:
    """Every row with an architecture is counted above, but the embedded one, whose weights are at hand."""
    assert set(PARAMETERS) == {name for name, model in MODELS.items() if model.config is not None} - {"demo"}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str) -> None:
    """A row's constants are the published ones, so that random weights are scaled as the real ones are."""
    config = MODELS[name].config
    assert (config.get("scaling_factor"), config.get("shift_factor")) == CONSTANTS[name]


def test_a_spec_is_read() -> None:
    """A model's argument gives its name, its source and its options."""
    spec = parse_spec("mine=owner/repo,recipe=sdxl,dtype=float16,revision=abc,subfolder=vae,device=cpu")
    assert spec == ModelSpec(
        "mine", "owner/repo", recipe="sdxl", dtype="float16", revision="abc", subfolder="vae", device="cpu"
    )
    assert spec.resolve_recipe() is find_recipe("sdxl")


def test_a_models_own_options_win() -> None:
    """What is said of one model wins over what is said of all."""
    spec = parse_spec("sd1,dtype=float16,device=cpu", dtype="bfloat16", device="cuda", random_weights=True)
    assert (spec.dtype, spec.device, spec.random_weights) == ("float16", "cpu", True)
    plain = parse_spec("sd1", dtype="bfloat16", device="cuda")
    assert (plain.dtype, plain.device, plain.source, plain.recipe) == ("bfloat16", "cuda", None, None)


@pytest.mark.parametrize("text", ["sd1", "flux=some/where,recipe=flux1,subfolder=vae", "kolors,dtype=float32"])
def test_a_spec_travels(text: str) -> None:
    """A spec that went to another process as JSON values is the same spec."""
    spec = parse_spec(text)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nosuch", "nosuch=SOURCE"),
        ("mine=owner/repo", "recipe=NAME"),
        ("mine=owner/repo,recipe=nosuch", "'nosuch'"),
        ("sd1,dtype=float8", "'float8'"),
        ("sd1,colour=red", "'colour=red'"),
        ("sd1,dtype", "'dtype'"),
        ("sd1,dtype=", "'dtype='"),
        ("sana,dtype=float16", "'sana' overflow in float16; add ,dtype= with float32 or bfloat16"),
    ],
)
def test_a_wrong_spec_is_refused(text: str, named: str) -> None:
    """A spec that cannot be meant is refused, and the refusal quotes what is wrong or shows what is missing."""
    with pytest.raises(ConfigurationError, match=named):
        parse_spec(text)
