"""The server against its own OpenAPI description, by a tool that knows neither."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from remote_vae.server.openapi import FILE_TYPES

for media in ("tensor/binary", *FILE_TYPES):

    @schemathesis.serializer(media)
    def as_it_is(ctx: Any, value: Any) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode()


schemathesis.serializer.alias("tensor/base64", "application/json")


# That a body must be as long as shape and dtype say, or be a picture, is more than a schema can tell.
BEYOND_A_SCHEMA = [positive_data_acceptance]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_described(live: Any, mode: GenerationMode) -> None:
    """Whatever is sent, by the description or against it, the answer is one that the description has, and no 5xx."""
    api = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    for operation in (found.ok() for found in api.get_all_operations()):
        if mode is GenerationMode.NEGATIVE and operation.method in ("get", "delete"):
            continue  # pages take nothing that could be wrong, and any text may be the id of a job

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def ask(case: Any) -> None:
            case.call_and_validate(timeout=10, excluded_checks=BEYOND_A_SCHEMA)

        ask()
