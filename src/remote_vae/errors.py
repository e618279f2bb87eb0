"""Every error of the project, as one tree; each class has a stable code and an HTTP status.

RemoteVAEError
├── RequestError                 the request is at fault; repeating it unchanged cannot help
│   ├── MalformedRequest         400  text or body that cannot be parsed
│   │   ├── UnknownParameter     400  a query name nobody knows, so perhaps a typo
│   │   └── WrongByteCount       400  body length is not product(shape) x item size
│   ├── Unauthorized             401  no key, or none that is known
│   ├── ForeignOrigin            403  a web page of an origin that the operator has not named
│   ├── UnknownRoute             404
│   │   └── UnknownModel         404
│   ├── MethodNotAllowed         405
│   ├── NotAcceptable            406  the Accept header asks for what the output type cannot give
│   ├── RequestTimeout           408  the body did not arrive in time
│   ├── TooLarge                 413  above one of the server's limits
│   ├── UriTooLong               414
│   ├── UnsupportedMediaType     415
│   ├── UnknownHost              421  a name that may belong to a web site and not to this server
│   ├── TooManyRequests          429  this client's share is used up; retry later
│   ├── HeadTooLarge             431  URL and headers together, or the number of headers
│   ├── UnknownMethod            501  a method that HTTP does not have
│   ├── UnsupportedVersion       505  a version of HTTP other than 1.1 and 1.0
│   └── Unprocessable            422  parsed, but impossible
│       ├── InvalidValue         422  a parameter's value is outside what it may be
│       ├── LatentMismatch       422  the latent does not fit the model
│       ├── NonFiniteInput       422  NaN or infinity sent
│       ├── NonFiniteOutput      422  NaN or infinity produced, in every dtype tried
│       ├── InvalidImage         422  not an image, or a broken one
│       └── UnsupportedOutput    422  the model cannot give this output
├── ServerError                  the server is at fault
│   ├── InternalError            500
│   │   └── PoisonRequest        500  two processes died over it; it is not tried again
│   ├── NotReady                 503  loading or shutting down; retry later
│   ├── Overloaded               503  the queue is full; retry later
│   ├── ReplicaFailed            503  the process that decoded died; retry later
│   └── DeadlineExceeded         504
├── ClientError                  raised by our client, never sent
│   ├── ConnectionFailed              no answer, or it broke off
│   ├── ClientTimeout                 no answer within the time-out
│   └── InvalidReply                  an answer that breaks the wire's rules
└── SetupError                   raised while starting, never sent
    ├── ModelLoadError                weights missing, corrupt or of another architecture
    └── ConfigurationError            settings that contradict each other

The same class is raised by the server, rendered to JSON, and raised again by the client.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar


class RemoteVAEError(Exception):
    """Base of all; `detail` holds the numbers that the message names, as JSON values."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 0  # of the reply; 0 for what is never sent
    retry_after: int | None = None  # seconds, for the Retry-After header

    def __init__(
        self, message: str, *, request_id: str | None = None, retry_after: int | None = None, **detail: object
    ) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after
        self.message = message
        self.detail: Mapping[str, object] = detail
        self.request_id = request_id


class RequestError(RemoteVAEError):
    code, status = "request_error", 400


class MalformedRequest(RequestError):
    code, status = "malformed_request", 400


class UnknownParameter(MalformedRequest):
    code = "unknown_parameter"


class WrongByteCount(MalformedRequest):
    code = "wrong_byte_count"


class Unauthorized(RequestError):
    code, status = "unauthorized", 401


class ForeignOrigin(RequestError):
    code, status = "foreign_origin", 403


class UnknownRoute(RequestError):
    code, status = "unknown_route", 404


class UnknownModel(UnknownRoute):
    code = "unknown_model"


class UnknownJob(UnknownRoute):
    code = "unknown_job"


class MethodNotAllowed(RequestError):
    code, status = "method_not_allowed", 405


class NotAcceptable(RequestError):
    code, status = "not_acceptable", 406


class RequestTimeout(RequestError):
    code, status = "request_timeout", 408


class JobCancelled(RequestError):
    code, status = "job_cancelled", 409


class TooLarge(RequestError):
    code, status = "too_large", 413


class UriTooLong(RequestError):
    code, status = "uri_too_long", 414


class UnsupportedMediaType(RequestError):
    code, status = "unsupported_media_type", 415


class UnknownHost(RequestError):
    code, status = "unknown_host", 421


class TooManyRequests(RequestError):
    code, status, retry_after = "too_many_requests", 429, 1


class HeadTooLarge(RequestError):
    code, status = "head_too_large", 431


class UnknownMethod(RequestError):
    code, status = "unknown_method", 501


class UnsupportedVersion(RequestError):
    code, status = "unsupported_version", 505


class Unprocessable(RequestError):
    code, status = "unprocessable", 422


class InvalidValue(Unprocessable):
    code = "invalid_value"


class LatentMismatch(Unprocessable):
    code = "latent_mismatch"


class NonFiniteInput(Unprocessable):
    code = "non_finite_input"


class NonFiniteOutput(Unprocessable):
    code = "non_finite_output"


class InvalidImage(Unprocessable):
    code = "invalid_image"


class UnsupportedOutput(Unprocessable):
    code = "unsupported_output"


class ServerError(RemoteVAEError):
    code, status = "server_error", 500


class InternalError(ServerError):
    code = "internal_error"


class PoisonRequest(InternalError):
    code = "poison_request"


class NotReady(ServerError):
    code, status, retry_after = "not_ready", 503, 2


class Overloaded(ServerError):
    code, status, retry_after = "overloaded", 503, 1


class ReplicaFailed(ServerError):
    code, status, retry_after = "replica_failed", 503, 2


class DeadlineExceeded(ServerError):
    code, status = "deadline_exceeded", 504


class ClientError(RemoteVAEError):
    code, status = "client_error", 0


class ConnectionFailed(ClientError):
    code = "connection_failed"


class ClientTimeout(ClientError):
    code = "client_timeout"


class InvalidReply(ClientError):
    code = "invalid_reply"


class SetupError(RemoteVAEError):
    code, status = "setup_error", 0


class ModelLoadError(SetupError):
    code = "model_load_error"


class ConfigurationError(SetupError):
    code = "configuration_error"


def all_errors(root: type[RemoteVAEError] = RemoteVAEError) -> Iterator[type[RemoteVAEError]]:
    """Every class of the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def to_json(error: RemoteVAEError) -> dict[str, object]:
    """The wire form of an error; `error` is text because diffusers' client prints the whole object."""
    return {
        "error": error.message,
        "error_type": error.code,
        "detail": dict(error.detail),
        "request_id": error.request_id,
    }


def from_json(body: Mapping[str, object], *, status: int) -> RemoteVAEError:
    """The error that `to_json` wrote; an unknown code becomes the nearest class by status.

    `status` 0 is for errors that never crossed HTTP, such as a replica's.
    """
    classes = {cls.code: cls for cls in all_errors() if cls.status or not status}
    found = classes.get(str(body.get("error_type"))) or _by_status(status)
    message, request_id, detail = body.get("error"), body.get("request_id"), body.get("detail")
    error = found(
        str(message) if message else f"the server answered {status} without saying why",
        request_id=str(request_id) if request_id else None,
    )
    error.detail = dict(detail) if isinstance(detail, Mapping) else {}
    return error


def _by_status(status: int) -> type[RemoteVAEError]:
    """The most general class that has this status, below the root."""
    branch = RequestError if 400 <= status < 500 else ServerError
    return next((cls for cls in all_errors(branch) if cls.status == status), branch)
