"""What a replica imports: no more of diffusers than its VAEs, in a process that can still import the rest."""

import subprocess
import sys

PROGRAM = """
import sys, torch
from remote_vae.models.fast_import import UNUSED, open_model
from remote_vae.models.spec import ModelSpec
for name in ("demo", "taesd"):
    vae, _ = open_model(ModelSpec(name, device="cpu", random_weights=name != "demo").to_json())
    vae.decode(vae.encode(torch.zeros(1, 3, 16, 16))[:, :vae.info.latent_channels])
    assert vae.decoders[-1].peak_bytes((1, vae.info.latent_channels, 8, 8), vae.dtype, 0)
print([name for name in UNUSED if name in sys.modules])
import scipy, transformers
assert torch.compile(torch.nn.Identity(), backend="eager")(1) == 1
print("imported")
"""


def test_nothing_that_no_vae_needs() -> None:
    """Models are opened and run without transformers, SciPy and torch's compiler, which are there for others to use."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == ["[]", "imported"], ended.stderr


NEEDED = """
import sys
class Needed:
    def find_spec(self, name, *_):
        if name == "remote_vae.models.loader" and sys.modules.get("scipy", 0) is None:
            raise ImportError("needs scipy")
sys.meta_path.insert(0, Needed())
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec
vae, _ = open_model(ModelSpec("demo", device="cpu").to_json())
print(vae.info.source, "scipy" in sys.modules)
"""


def test_a_diffusers_that_needs_them() -> None:
    """What cannot be imported without them is imported with them."""
    ended = subprocess.run([sys.executable, "-c", NEEDED], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["embedded", "True"], ended.stderr
