"""What importing the client costs."""

import subprocess
import sys


def test_client_imports_neither_torch_nor_a_server():
    """A fresh interpreter that imports and uses the client has loaded no heavy or server-side package."""
    code = (
        "import sys, numpy\n"
        "from remote_vae.client import AsyncClient, Client, remote_decode, remote_encode\n"
        "from remote_vae.client.calls import decode_request\n"
        "decode_request(numpy.zeros((1, 4, 8, 8), 'float16'))\n"
        "Client('http://127.0.0.1:1').close()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'starlette', 'uvicorn', 'av', 'einops', 'requests'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
