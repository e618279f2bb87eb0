"""The API's description, from the same table that reads the parameters."""

from typing import Any

from remote_vae.errors import RequestError, ServerError, all_errors
from remote_vae.protocol import options, wire
from remote_vae.protocol.options import Option, Rows
from remote_vae.values import FORMATS, PARTS

Document = dict[str, Any]
BINARY: Document = {"type": "string", "format": "binary"}
BASE64: Document = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "string", "contentEncoding": "base64"},
        "parameters": {"type": "object", "description": "The same names as in the query."},
    },
}
RAW_BODY: Document = {"application/octet-stream": {"schema": BINARY}}
LATENT_BODY: Document = {
    **RAW_BODY,
    "tensor/binary": {"schema": BINARY},
    **{media: {"schema": BASE64} for media in wire.JSON_TYPES},
}
FILE_TYPES = (  # others are read too, because the bytes decide
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "video/mp4",
    "video/quicktime",
    "video/webm",
    "video/x-matroska",
    "application/zip",
)
PICTURE_BODY: Document = {**RAW_BODY, **{media: {"schema": BINARY} for media in FILE_TYPES}}


def document(version: str, models: list[str]) -> Document:
    """The OpenAPI 3.1 description of this server with these models."""
    paths: Document = {
        "/": {"get": _get("What this server is."), "post": _post("Decode or encode", "By content type and query.")}
    }
    of_model = {
        "/{model}/decode": _operation("Latent to picture or video", options.DECODE, LATENT_BODY),
        "/{model}/encode": _operation("Picture or video to latent", options.ENCODE, PICTURE_BODY),
        "/{model}": _post("Decode or encode", "By content type and query."),
    }
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": models}}
    name["description"] = "The name of the model; its aliases work too."
    for path, operation in of_model.items():
        paths[path] = {"post": {**operation, "parameters": [name, *operation["parameters"]]}}
    about = {
        "/health": "The server answers.",
        "/live": "The server answers.",
        "/ready": "Every model is loaded.",
        "/models": "The models with their layouts, factors and limits.",
        "/metrics": "Figures for Prometheus.",
        "/openapi.json": "This description.",
        "/docs": "This description, for people.",
    }
    paths.update({path: {"get": _get(text)} for path, text in about.items()})
    paths["/jobs/{id}/events"] = {"get": _of_job("Server-sent events: how far your unfinished request is.")}
    paths["/jobs/{id}"] = {"delete": _of_job("Cancel your unfinished request.")}
    info = {"title": "remote-vae", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": {"Error": _error_schema()}}}


def _get(text: str) -> Document:
    return {"summary": text, "responses": {"200": {"description": text}}}


def _of_job(text: str) -> Document:
    place = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    row = {**place, "description": "The request's `x-request-id` or `x-call-id`."}
    return {"summary": text, "parameters": [row], "responses": {"200": {"description": text}, **_errors()}}


def _post(summary: str, text: str) -> Document:
    both = {**options.ENCODE, **options.DECODE}
    return {**_operation(summary, both, {**LATENT_BODY, **PICTURE_BODY}), "description": text}


def _operation(summary: str, rows: Rows, body: Document) -> Document:
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "query", "description": row.doc, "schema": _schema(row)} for name, row in rows.items()
        ],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": _ok(), **_errors()},
    }


def _schema(row: Option) -> Document:
    return {**row.kind.schema, **({} if row.default is None else {"default": row.default})}


def _ok() -> Document:
    content = {
        row.media_type: {"schema": BASE64 if row.name == "base64" else BINARY} for row in (*FORMATS.values(), PARTS)
    }
    return {
        "description": "The picture, video or tensor; raw tensors name their shape and dtype in headers. With stream, "
        "the video in chunks that come while it is decoded, or its frames in parts that are tensors.",
        "content": content,
    }


def _errors() -> Document:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    statuses: dict[int, list[str]] = {}
    for cls in (*all_errors(RequestError), *all_errors(ServerError)):
        statuses.setdefault(cls.status, []).append(cls.code)
    return {
        str(status): {"description": ", ".join(codes), "content": schema} for status, codes in sorted(statuses.items())
    }


def _error_schema() -> Document:
    return {
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {
            "error": {"type": "string", "description": "What was wrong, what was expected, what to do."},
            "error_type": {"type": "string"},
            "detail": {"type": "object"},
            "request_id": {"type": ["string", "null"]},
        },
    }
