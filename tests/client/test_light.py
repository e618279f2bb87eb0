"""What importing the client costs."""

import subprocess
import sys


def test_client_imports_neither_torch_nor_a_server():
    """A fresh interpreter that imports and uses the client has loaded no heavy or server-side package."""
    code = (
        "import sys, numpy\n"
        "from remote_vae.client import AsyncClient, Client, DecodeQueue, preview_callback, remote_decode\n"
        "from remote_vae.client.calls import decode_request\n"
        "decode_request(numpy.zeros((1, 4, 8, 8), 'float16'), {})\n"
        "Client('http://127.0.0.1:1').close()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'starlette', 'uvicorn', 'av', 'einops', 'requests'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_what_remote_vae_needs():
    """Without diffusers, asking for RemoteVAE says what to install; everything else goes on."""
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import remote_vae; remote_vae.Client\n"
        "try: remote_vae.RemoteVAE\n"
        "except ImportError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "RemoteVAE needs torch and diffusers" in found.stdout
    assert "pip install torch diffusers" in found.stdout
