"""What a replica imports: no more of diffusers than its VAEs, in a process that can still import the rest."""

import subprocess
import sys

PROGRAM = """
import sys
from remote_vae.models.lean import UNUSED, open_model
from remote_vae.models.spec import ModelSpec
for name in ("demo", "taesd"):
    vae, _ = open_model(ModelSpec(name, device="cpu", random_weights=name != "demo").to_json())
print([name for name in UNUSED if name in sys.modules])
import scipy, transformers
print("imported")
"""


def test_nothing_that_no_vae_needs() -> None:
    """Opening models imports neither transformers nor SciPy, though both are there, and hides them no longer."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == ["[]", "imported"], ended.stderr
