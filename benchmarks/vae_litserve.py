"""LitServe around the demo VAE; a module of its own, because its worker process imports it."""

import litserve as ls
import torch
from demo_vae import decode, load, read, write
from fastapi import Request, Response

MOST_TOGETHER, WAIT_SECONDS = 8, 0.005


class Decoder(ls.LitAPI):
    """Decodes those of a batch that have one size together."""

    def setup(self, device: str) -> None:
        self.module = load()

    def decode_request(self, request: Request) -> torch.Tensor:  # a Request in name only: it is the form
        return read(request["latent"].file.read())

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return inputs

    def predict(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for shape in {latent.shape for latent in inputs}:
            places = [place for place, latent in enumerate(inputs) if latent.shape == shape]
            pixels = decode(self.module, torch.cat([inputs[place] for place in places]))
            found.update(zip(places, pixels, strict=True))
        return [found[place] for place in range(len(inputs))]

    def unbatch(self, output: list[torch.Tensor]) -> list[torch.Tensor]:
        return output

    def encode_response(self, output: torch.Tensor) -> Response:
        return Response(write(output), media_type="image/jpeg")


def run(port: int) -> None:
    api = Decoder(max_batch_size=MOST_TOGETHER, batch_timeout=WAIT_SECONDS, api_path="/predict")
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False, access_log=False)
