"""The nodes, loaded and run as ComfyUI does it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


def load(name: str) -> ModuleType:
    """A folder below custom_nodes, as ComfyUI imports it: under a name with dots and slashes of a path."""
    for known in [known for known in sys.modules if known.startswith(f"{name}.")]:
        del sys.modules[known]  # of an earlier import, which had another environment
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def is_image(value: Any) -> None:
    """[B,H,W,3] of float32 in [0, 1], in main memory."""
    assert value.ndim == 4
    assert value.shape[3] == 3
    assert value.dtype is torch.float32
    assert value.device.type == "cpu"
    assert 0 <= float(value.min()) <= float(value.max()) <= 1


def is_latent(value: Any) -> None:
    assert value["samples"].dtype is torch.float32


CHECKS = {"IMAGE": is_image, "LATENT": is_latent, "VAE": lambda value: value.throw_exception_if_invalid()}


def execute(module: ModuleType, node: str, **inputs: Any) -> tuple[Any, ...]:
    """A node, run as ComfyUI runs it: its inputs are checked against INPUT_TYPES, its outputs against RETURN_TYPES."""
    cls = module.NODE_CLASS_MAPPINGS[node]
    declared = cls.INPUT_TYPES()
    known = {**declared["required"], **declared.get("optional", {})}
    assert set(inputs) <= set(known)
    assert set(declared["required"]) <= set(inputs)
    verdict = cls.VALIDATE_INPUTS(inputs["url"], inputs["model"])
    assert verdict is True, verdict
    found = getattr(cls(), cls.FUNCTION)(**inputs)
    assert isinstance(found, tuple)
    assert len(found) == len(cls.RETURN_TYPES)
    for kind, value in zip(cls.RETURN_TYPES, found, strict=True):
        CHECKS[kind](value)
    return found


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))
