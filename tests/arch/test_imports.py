"""What may be in memory where."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("remote_vae", ("torch", "diffusers", "starlette")),
        ("remote_vae.client", ("torch", "diffusers", "starlette", "uvicorn", "av")),
        ("remote_vae.cli.main", ("torch", "diffusers", "starlette", "uvicorn")),
        ("remote_vae.server.run", ("torch", "diffusers")),
        ("remote_vae.protocol.wire", ("numpy", "httpx2", "torch")),
    ],
)
def test_import_is_light(module: str, absent: tuple[str, ...]) -> None:
    """Importing a light room brings no heavy library with it, in a fresh interpreter."""
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
