"""Every setting of the server in one place: name, type, default, bounds, description and flag."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from remote_vae.errors import ConfigurationError
from remote_vae.server.keys import Keys
from remote_vae.server.sizes import Bytes, Size


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
SIZE: Final = "SIZE"  # the placeholder of a flag that takes 12GB, 12GiB or 80%


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


def _bytes(default: int, text: str, *, least: int = 1) -> Any:
    """A limit that people write as 2GiB; its flag takes text."""
    shown = f"{default >> 30}GiB" if default >= 2**30 else f"{default >> 10}KiB"
    return _row(default, text, panel=LIMITS, metavar=SIZE, shown=shown, ge=least)


def _seconds(default: float, text: str) -> Any:
    return _row(default, text, panel=LIMITS, gt=0)


class Settings(BaseSettings):
    """Each field is also the environment variable REMOTE_VAE_<FIELD> and a flag of `remote-vae serve`."""

    model_config = SettingsConfigDict(
        env_prefix="REMOTE_VAE_", frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    models: Annotated[tuple[str, ...], NoDecode] = _row(
        ("demo",),
        "The model to serve; repeat the option for more. The first one is at /, each one at /NAME. SOURCE is a hub id, "
        "a folder or a .safetensors file. KEY is recipe, dtype, revision, subfolder, device, sha256, lazy or pinned.",
        metavar="NAME[=SOURCE][,KEY=VALUE...]",
        shown="demo",
        flags=("--model",),
    )
    host: str = _row("127.0.0.1", "The address to listen on; 0.0.0.0 lets other machines in, and needs keys.")
    port: int = _row(8000, "The port to listen on; 0 takes a free one.", ge=0, le=65535)
    device: str = _row("auto", "The device to run on: auto, cpu, cuda, cuda:1 or mps; cuda:0,cuda:1 takes both.")
    replicas: int = _row(1, "The number of processes for each model on each device.", ge=1)
    lazy: bool = _row(False, "Load each model when it is first asked for.")
    weights_budget: Size | None = _row(
        None,
        "The memory for the weights of all models, as 12GB or 80%; above it, the least recently used one is unloaded.",
        shown="no bound",
        metavar=SIZE,
    )
    idle_seconds: float | None = _row(
        None, "The seconds without a request after which a model is unloaded, as 60.", shown="never", gt=0
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = _row(
        None, "The precision to run in: float32, float16 or bfloat16.", shown="the model's own"
    )
    random_weights: bool = _row(False, "Take seeded weights of the true size instead of a download, for trials.")
    memory_budget: Size | None = _row(
        None,
        "The memory (VRAM on a GPU) for one model, weights and work together, as 12GB, 12GiB or 80%.",
        shown="what the device has free",
        metavar=SIZE,
    )
    unknown_parameters: Literal["refuse", "ignore"] = _row(
        "refuse", "What to do with a parameter that nobody knows: refuse or ignore."
    )
    metrics_address: Annotated[tuple[str, int] | None, PlainValidator(_address), NoDecode] = _row(
        None, "An address of its own for /metrics.", metavar="HOST:PORT", shown="with the rest"
    )
    log_requests: bool = _row(False, "Write a line of JSON to stderr for each request.")

    # A flag would show the keys to everyone on the machine, in the list of processes.
    keys: Annotated[Keys | None, PlainValidator(_keys), NoDecode] = Field(
        default=None, description="API keys that clients need, with white space between; kept as digests only."
    )
    keys_file: Path | None = _row(None, "A file with the API keys that clients need, one a line.", panel=ACCESS)
    allow_anonymous: bool = _row(False, "Serve clients of the network without API keys.", panel=ACCESS)
    client_requests_per_second: float | None = _row(
        None, "The rate limit for each key, or for each address without keys.", panel=ACCESS, shown="none", gt=0
    )
    cors_origins: Annotated[tuple[str, ...], PlainValidator(_origins), NoDecode] = _row(
        (),
        "A web site whose pages may use the server (CORS), as https://host:8443, or the server's own address behind a "
        "reverse proxy; repeat the option for more; * allows all.",
        metavar="ORIGIN",
        panel=ACCESS,
        shown="none",
        flags=("--allow-origin", "--cors-origins"),
    )
    tls_certificate: Path | None = _row(None, "A PEM file with the certificate and its chain.", panel=ACCESS)
    tls_key: Path | None = _row(None, "A PEM file with the certificate's private key.", panel=ACCESS)

    max_body_bytes: Bytes = _bytes(2**30, "The largest body that a request may have.")
    max_arriving_bytes: Bytes = _bytes(2**31, "The most bytes of all bodies that arrive and pictures that are read.")
    max_reply_bytes: Bytes = _bytes(2**31, "The largest reply with a tensor.")
    max_pixels: int = _limit(4096 * 4096, "The most pixels of one picture or frame.")
    max_side: int = _limit(8192, "The longest side of a picture or frame, in pixels.")
    max_batch: int = _limit(8, "The most latents in one request.")
    max_frames: int = _limit(257, "The most frames of a video, after decoding.")
    max_query_bytes: Bytes = _bytes(8192, "The longest query of a URL.")
    max_head_bytes: Bytes = _bytes(32768, "The longest URL and headers together.", least=1024)
    max_headers: int = _limit(100, "The most headers of a request.", ge=10)
    max_waiting: int = _limit(64, "The most requests that one model has accepted and not finished.")
    max_waiting_pixels: int = _limit(2**28, "The most output pixels of these requests.")
    max_client_share: float = _limit(0.5, "The share of these requests and pixels that one key may have.", gt=0, le=1)
    max_unsent_bytes: Bytes = _bytes(2**30, "The most bytes of all replies that are not sent yet.")
    head_seconds: float = _seconds(10.0, "The time for a URL and its headers to arrive.")
    body_seconds: float = _seconds(60.0, "The time for a request's body to arrive.")
    request_seconds: float = _seconds(300.0, "The time for an answer; a request can ask for less.")
    reply_seconds: float = _seconds(120.0, "The time for a client to take a reply.")
    hang_seconds: float = _seconds(100.0, "The time without progress of a job after which its process is replaced.")
    shutdown_seconds: int = _limit(30, "The seconds for accepted work to finish after Ctrl-C or SIGTERM.")

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
