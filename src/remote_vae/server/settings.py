"""Every setting of the server in one place: name, type, default, bounds, description and flag."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from remote_vae.errors import ConfigurationError
from remote_vae.server.keys import Keys


def _keys(value: object) -> object:
    return Keys.parse(value) if isinstance(value, str) else value


def _address(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) <= 65535:
        raise ValueError("it is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _origins(value: object) -> object:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("it is not text with one or more origins")
    origins = tuple(origin for text in texts for origin in text.split())
    for origin in origins:
        parts = urlsplit(origin)  # a browser's extension has a scheme of the browser's
        if origin != "*" and not (parts.scheme and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}"):
            raise ValueError(f"{origin!r} is not an origin; expected *, or scheme and host as in https://host:8443")
    return origins


LIMITS: Final = "Limits"
ACCESS: Final = "Access"


def _row(
    default: Any,
    text: str,
    *,
    panel: str | None = None,
    metavar: str | None = None,
    shown: str = "",
    flags: tuple[str, ...] = (),
    **bounds: Any,
) -> Any:
    """A setting, with the panel and placeholder of its flag; `shown` is said for a default that is no value.

    `flags` replace the flag that has the setting's name.
    """
    flag = {"panel": panel, "metavar": metavar, "shown": shown, "flags": flags}
    return Field(default=default, description=text, json_schema_extra=flag, **bounds)  # type: ignore[arg-type]


def _limit(default: float, text: str, **bounds: Any) -> Any:
    return _row(default, text, panel=LIMITS, **(bounds or {"ge": 1}))


def _seconds(default: float, text: str) -> Any:
    return _row(default, text, panel=LIMITS, gt=0)


class Settings(BaseSettings):
    """Each field is also the environment variable REMOTE_VAE_<FIELD> and a flag of `remote-vae serve`."""

    model_config = SettingsConfigDict(
        env_prefix="REMOTE_VAE_", frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    models: Annotated[tuple[str, ...], NoDecode] = _row(
        ("demo",),
        "Repeat for more; the first is /. SOURCE is a hub id, a folder or a .safetensors file. Keys are recipe, dtype, "
        "revision, subfolder, device, sha256, lazy and pinned.",
        metavar="NAME[=SOURCE][,KEY=VALUE...]",
        shown="demo",
        flags=("--model",),
    )
    host: str = _row("127.0.0.1", "Address to listen on.")
    port: int = _row(8000, "Port; 0 takes a free one.", ge=0, le=65535)
    device: str = _row("auto", "auto, cpu, cuda, cuda:1, mps; cuda:0,cuda:1 for both.")
    replicas: int = _row(1, "Of each model on each device.", ge=1)
    lazy: bool = _row(False, "Load a model when it is first asked for.")
    weights_budget: int | None = _row(
        None, "Bytes for all models' weights; the least recently used are unloaded.", shown="none", ge=1
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = _row(
        None, "float32, float16 or bfloat16.", shown="the model's own"
    )
    random_weights: bool = _row(False, "Seeded weights of the true size, for trials.")
    memory_budget: int | None = _row(
        None, "Bytes for one model, weights and work together.", shown="what the device has free", ge=1
    )
    unknown_parameters: Literal["refuse", "ignore"] = _row("refuse", "refuse or ignore.")
    metrics_address: Annotated[tuple[str, int] | None, PlainValidator(_address), NoDecode] = _row(
        None, "For /metrics alone.", metavar="HOST:PORT", shown="with the rest"
    )
    log_requests: bool = _row(False, "A line of JSON on stderr for each request.")

    # A flag would show the keys to everyone on the machine, in the list of processes.
    keys: Annotated[Keys | None, PlainValidator(_keys), NoDecode] = Field(
        default=None, description="Keys that clients need, with white space between; kept as digests only."
    )
    keys_file: Path | None = _row(None, "Keys that clients need, one a line.", panel=ACCESS)
    allow_anonymous: bool = _row(False, "Serve clients of the network without keys.", panel=ACCESS)
    client_requests_per_second: float | None = _row(None, "For one key, or one address.", panel=ACCESS, gt=0)
    cors_origins: Annotated[tuple[str, ...], PlainValidator(_origins), NoDecode] = _row(
        (),
        "Whose web pages may use the server, as https://host:8443, or the server's own origin behind a proxy; repeat "
        "for more; * for all.",
        metavar="ORIGIN",
        panel=ACCESS,
        shown="none",
        flags=("--allow-origin", "--cors-origins"),
    )
    tls_certificate: Path | None = _row(None, "PEM file of the certificate, with its chain.", panel=ACCESS)
    tls_key: Path | None = _row(None, "PEM file of the certificate's private key.", panel=ACCESS)

    max_body_bytes: int = _limit(2**30, "Of a request's body.")
    max_arriving_bytes: int = _limit(2**31, "Of all bodies that arrive, and of all pictures that are being read.")
    max_reply_bytes: int = _limit(2**31, "Of a reply with a tensor.")
    max_pixels: int = _limit(4096 * 4096, "Of one picture or frame.")
    max_side: int = _limit(8192, "Of a picture or frame, in pixels.")
    max_batch: int = _limit(8, "Latents in a request.")
    max_frames: int = _limit(257, "Of a video, after decoding.")
    max_query_bytes: int = _limit(8192, "Of a URL's query.")
    max_head_bytes: int = _limit(32768, "Of a URL and its headers.", ge=1024)
    max_headers: int = _limit(100, "Of a request.", ge=10)
    max_waiting: int = _limit(64, "Requests that one model has accepted and not finished.")
    max_waiting_pixels: int = _limit(2**28, "Output pixels of these requests.")
    max_client_share: float = _limit(0.5, "Of these requests and pixels, for one key.", gt=0, le=1)
    max_unsent_bytes: int = _limit(2**30, "Of all replies that are not sent yet.")
    head_seconds: float = _seconds(10.0, "For a URL and its headers to arrive.")
    body_seconds: float = _seconds(60.0, "For a request's body to arrive.")
    request_seconds: float = _seconds(300.0, "For an answer; a request can ask for less.")
    reply_seconds: float = _seconds(120.0, "For a client to take a reply.")
    hang_seconds: float = _seconds(100.0, "Without progress of a job, after which its replica is replaced.")
    shutdown_seconds: int = _limit(30, "For accepted work to finish.")

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


def read_settings(values: Mapping[str, Any]) -> Settings:
    """These values, and the environment's for the rest. *Raises* ConfigurationError, which names each wrong one."""
    try:
        return Settings(**values)
    except ValidationError as exc:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in exc.errors()]
        raise ConfigurationError("; ".join(lines)) from exc
