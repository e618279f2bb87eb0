"""Every setting of the server, by flag or environment variable, in one place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from remote_vae.errors import ConfigurationError
from remote_vae.server.keys import Keys


def _keys(given: object) -> object:
    return Keys.parse(given) if isinstance(given, str) else given


def _address(given: object) -> object:
    if not isinstance(given, str):
        return given
    host, _, port = given.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) <= 65535:
        raise ValueError("it is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Settings(BaseSettings):
    """Each field is also the environment variable REMOTE_VAE_<FIELD>; limits are per request."""

    model_config = SettingsConfigDict(
        env_prefix="REMOTE_VAE_", frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("demo",), description="NAME[=SOURCE][,key=value...]; the first is /; ';' between in the environment"
    )
    random_weights: bool = Field(default=False, description="seeded weights of the true size, for trials")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps; several, with a comma between")
    replicas: int = Field(default=1, ge=1, description="of each model on each device")
    lazy: bool = Field(default=False, description="load a model when it is first asked for")
    weights_budget: int | None = Field(
        default=None, ge=1, description="bytes for the weights of all models; the least recently used are unloaded"
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(default=None, description="None: by the registry")
    memory_budget: int | None = Field(default=None, ge=1, description="bytes for one model; None: what is free")
    unknown_parameters: Literal["refuse", "ignore"] = "refuse"

    # No flag sets this one: the list of processes would show it to everyone on the machine.
    keys: Annotated[Keys | None, PlainValidator(_keys), NoDecode] = Field(
        default=None, description="who may come in, white space between; kept as digests only"
    )
    keys_file: Path | None = Field(default=None, description="the same, one a line")
    metrics_address: Annotated[tuple[str, int] | None, PlainValidator(_address), NoDecode] = Field(
        default=None, description="HOST:PORT for /metrics alone; without it they are a path among the others"
    )
    log_requests: bool = Field(default=False, description="a line of JSON for each request on stderr")
    allow_anonymous: bool = Field(default=False, description="serve everyone who reaches the address, without keys")
    client_requests_per_second: float | None = Field(default=None, gt=0, description="for one key, or one address")
    tls_certificate: Path | None = Field(default=None, description="PEM file; with the chain up to the authority")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's private key")

    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    max_reply_bytes: int = Field(default=256 * 2**20, ge=1)
    max_pixels: int = Field(default=4096 * 4096, ge=1, description="of one picture or frame")
    max_side: int = Field(default=8192, ge=1)
    max_batch: int = Field(default=8, ge=1)
    max_frames: int = Field(default=257, ge=1)
    max_query_bytes: int = Field(default=8192, ge=1)
    max_head_bytes: int = Field(default=32768, ge=1024, description="of a URL and its headers")
    max_headers: int = Field(default=100, ge=10)
    max_waiting: int = Field(default=64, ge=1, description="requests that are accepted for one model and not done")
    max_waiting_pixels: int = Field(default=2**28, ge=1, description="that these have in all")
    max_client_share: float = Field(default=0.5, gt=0, le=1, description="of both, for one key")
    max_unsent_bytes: int = Field(default=2**30, ge=1, description="of all replies that are not sent yet")
    head_seconds: float = Field(default=10.0, gt=0, description="for a URL and its headers to arrive")
    body_seconds: float = Field(default=60.0, gt=0, description="for a request's body to arrive")
    request_seconds: float = Field(default=300.0, gt=0, description="for an answer; a request can ask for less")
    reply_seconds: float = Field(default=120.0, gt=0, description="for a client to take a reply")
    hang_seconds: float = Field(
        default=120.0, gt=0, description="for 1024x1024 pixels, after which a replica is replaced; larger ones get more"
    )
    shutdown_seconds: int = Field(default=30, ge=1, description="for accepted work to finish")

    @model_validator(mode="after")
    def _whole_pair(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both or neither")
        return self

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, models: object) -> object:
        return tuple(filter(None, map(str.strip, models.split(";")))) if isinstance(models, str) else models

    @field_validator("models", mode="after")
    @classmethod
    def _at_least_one(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if not models:
            raise ValueError("at least one model is needed")
        return models


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Those given, and the environment's for the rest. *Raises* ConfigurationError naming each that cannot be."""
    try:
        return Settings(**given)
    except ValidationError as exc:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in exc.errors()]
        raise ConfigurationError("; ".join(lines)) from exc
