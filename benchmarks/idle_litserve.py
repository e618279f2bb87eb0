"""LitServe, which reads raw bodies as JSON and fails on them: a file in a form is the leanest that it takes."""

import litserve as ls
from fastapi import Request, Response
from replies import TYPE, reply_to


class Idle(ls.LitAPI):
    """Reads the file, does nothing, answers."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: Request) -> bytes:  # a Request in name only: it is the form
        return request["latent"].file.read()

    def predict(self, body: bytes) -> bytes:
        return reply_to(body)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type=TYPE)


def run(port: int, *, fast_queue: bool) -> None:
    server = ls.LitServer(Idle(api_path="/predict"), accelerator="cpu", fast_queue=fast_queue)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False, access_log=False)
