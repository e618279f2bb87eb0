"""The default clips of current models are within the default limits, in every form of a reply."""

from typing import Any

import pytest

from remote_vae.client.retry import Bounds
from remote_vae.core.recipe import Constants
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.admission import Admission, Limits
from remote_vae.engine.pool import Served
from remote_vae.models.families import find_model
from remote_vae.protocol.messages import DecodeRequest
from remote_vae.protocol.negotiate import decode_format
from remote_vae.protocol.options import DECODE_ROWS, complete
from remote_vae.server.adapt import decode_job
from remote_vae.server.settings import Settings
from remote_vae.values import VIDEO_FORMATS, Frames, Scaling, Tensor, tensor_bytes

CLIPS = {  # the latents of the defaults of the pipelines
    "wan2.1": ((1, 16, 21, 90, 160), 8, Frames(group=4)),
    "hunyuanvideo": ((1, 16, 33, 90, 160), 8, Frames(group=4)),
    "ltx2": ((1, 128, 16, 16, 24), 32, Frames(group=8)),
}
FORMS: dict[str, dict[str, Any]] = {
    "raw floats": {"output_type": "pt"},
    "levels": {"output_type": "pt", "partial_postprocess": True},
    "floats in [0, 1]": {"output_type": "pil"},
    **{name: {"output_type": name} for name in VIDEO_FORMATS},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CLIPS)
def test_default_clips(name: str, form: str) -> None:
    """Wan's 81 frames, HunyuanVideo's 129 and LTX-2's 121 are accepted, and the client takes the reply."""
    shape, ratio, frames = CLIPS[name]
    model = find_model(name)
    assert model is not None
    info = VAEInfo(shape[1], ratio, frames, Constants(), "float16", deterministic=False)
    options = complete(FORMS[form], DECODE_ROWS)
    accept = "tensor/binary" if options["output_type"] in ("pt", "pil") else ""
    latent = Tensor("float16", shape, bytes(tensor_bytes("float16", shape)))
    request = DecodeRequest(name, latent, Scaling(), options, decode_format(accept, options, video=True))
    settings = Settings()
    job = decode_job(Served(name, (), model.recipe, ()), info, request, settings)
    assert job.reply_bytes <= Bounds().max_reply_bytes
    limits = Limits(settings.max_waiting, settings.max_waiting_pixels, settings.max_unsent_bytes)
    with Admission(limits).enter(name, job, client="someone") as permit:
        permit.release()
