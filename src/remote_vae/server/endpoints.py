"""What each route does. `Endpoints.post` parses a request, makes a job of it, awaits the engine and renders a reply."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from typing import Final, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from remote_vae.engine.engine import Engine
from remote_vae.engine.job import DecodeJob, Job
from remote_vae.engine.progress import JobProgress
from remote_vae.errors import NotReady, UnsupportedOutput, UriTooLong
from remote_vae.protocol import wire
from remote_vae.protocol.messages import DecodeRequest, Operation, Provenance
from remote_vae.protocol.multipart import FRAMES_HEADER
from remote_vae.protocol.options import DECODE_ROWS, DecodeOptions, complete
from remote_vae.protocol.replies import provenance_headers
from remote_vae.server import openapi
from remote_vae.server.adapt import decode_job, encode_job, fit_decode, picture_terms
from remote_vae.server.body import Bodies, check_length, while_wanted
from remote_vae.server.browser import page_part, wants_page
from remote_vae.server.card import model_info
from remote_vae.server.docs_page import PAGE_HEADERS, page
from remote_vae.server.event_stream import EventStream
from remote_vae.server.jobs import Jobs
from remote_vae.server.metrics import Metrics
from remote_vae.server.pages import wrong_method
from remote_vae.server.payloads import video_terms
from remote_vae.server.readers import Readers
from remote_vae.server.record import record_of
from remote_vae.server.rendering import Call, render, write_and_render
from remote_vae.server.settings import Settings
from remote_vae.server.streams import WHOLE_ONLY, Frames, StreamedResponse, film, parts, whole_film
from remote_vae.server.threads import Threads, Work
from remote_vae.server.tracked_response import TrackedResponse
from remote_vae.server.videos import video_cut
from remote_vae.values import Buffer, Format, Tensor

NO_OPTIONS: Final[DecodeOptions] = complete({}, DECODE_ROWS)  # an encode gives a tensor, which takes none
MOST_JSON_HERE: Final = 1 << 20  # bytes
CLIENT = "remote_vae.client"  # the name in the scope of an opaque id of the client
VERSION = version("remote-vae")

P = ParamSpec("P")
T = TypeVar("T")


class Endpoints:
    """The functions of the routes, for one engine."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, readers: Readers) -> None:
        self._engine, self._readers = engine, readers
        self._metrics = metrics
        self._settings = settings
        self._threads = Threads()
        self._bodies = Bodies(settings, self._threads)
        self._jobs = Jobs()

    async def post(self, request: Request) -> Response:
        """Decodes or encodes, at /, /predict, /<model> and /<model>/decode|encode."""
        call = await self._accept(request)
        run = self._decode if call.head.operation is Operation.DECODE else self._encode
        with ExitStack() as stack:
            job = stack.enter_context(self._jobs.entered(call.record, call.client))
            body = await while_wanted(self._bodies.read(request, call.head), cancelled=job.cancelled)
            reply = await while_wanted(run(call, body, job.progress), cancelled=job.cancelled, request=request)
            if isinstance(reply, StreamedResponse):
                reply.keep(job, stack.pop_all())  # the job lasts as long as the reply
            return reply

    async def _accept(self, request: Request) -> Call:
        """Judges a request before its body is read: its form, its size, and whether the engine would take it now."""
        arrived = time.monotonic()
        record = record_of(request.scope)
        head = self._head(request)
        model = self._engine.find(head.model)
        record.model, record.route = model.name, head.operation.value
        info = await self._engine.info(model)
        pixels = 1
        options = head.decode_options
        if options is not None and head.shape is not None and not head.body_is_json:
            pixels = fit_decode(model, info, head.shape, head.scaling, options, self._settings).pixels
        check_length(request, head, self._settings)
        seconds = min(head.timeout_seconds or self._settings.request_seconds, self._settings.request_seconds)
        client, whole_only = request.scope.get(CLIENT), WHOLE_ONLY in request.scope
        call = Call(model, info, head, record, client, arrived + seconds, whole_only)
        self._engine.check(model, pixels=pixels, client=call.client, seconds=call.seconds)
        return call

    def _head(self, request: Request) -> wire.Head:
        raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
        path = raw.decode("latin-1")
        if request.method != "POST":
            self._engine.find(wire.parse_route(path)[0])
            raise wrong_method(request, ["POST"] if path.strip("/") else ["GET", "HEAD", "POST"])
        query: bytes = request.scope["query_string"]
        if len(query) > self._settings.max_query_bytes:
            limit = self._settings.max_query_bytes
            raise UriTooLong(f"the query has {len(query)} bytes; the limit is {limit}", value=len(query), limit=limit)
        ignore = self._settings.unknown_parameters == "ignore"
        return wire.parse_head(path, query, request.headers, ignore_unknown=ignore)

    async def _decode(self, call: Call, body: Buffer, progress: JobProgress) -> Response:
        transparent, video = call.info.transparent, call.model.recipe.has_frames
        message = await self._parsed(call, body, partial(wire.parse_decode, transparent=transparent, video=video))
        job = decode_job(call.model, call.info, message, self._settings)
        if message.options["stream"]:
            return await self._stream(call, job, message, progress)
        if message.format.is_video:
            return await self._film(call, job, message, progress)
        return await self._run(call, job, message.format, message.options, progress)

    async def _stream(self, call: Call, job: DecodeJob, message: DecodeRequest, progress: JobProgress) -> Response:
        """A reply that begins with the first frames. What fails before them is answered as ever."""
        if call.whole_only:
            who = "Ray's proxy lacks remote-vae's middlewares here, so"
            raise UnsupportedOutput(f"{who} this server sends whole videos only; leave stream out")
        asked, record = message.format, call.record
        with self._engine.admit(call.model, job, client=call.client, seconds=call.seconds) as permit:
            source = self._engine.stream(permit, request_id=record.request_id, progress=progress)
            frames = Frames(await anext(source), source, record)
            if asked.is_tensor:
                body, media = parts(frames)
            else:
                terms = video_terms(call.model, message.options, job.fit)
                body, media = film(frames, asked, terms, self._threads), asked.media_type
            first, name, revision = frames.first, call.model.name, call.info.revision
            record.plan, record.stages = first.plan, first.seconds
            provenance = Provenance(model=name, revision=revision, plan=first.plan, dtype=first.dtype_run)
            head = [("content-type", media), (FRAMES_HEADER, str(job.fit.frames)), *provenance_headers(provenance)]
            return StreamedResponse(head, body, source, record=record, on_sent=permit.release)

    async def _film(self, call: Call, job: DecodeJob, message: DecodeRequest, progress: JobProgress) -> Response:
        """A video's file, which is written while the rest of it is decoded."""
        asked, terms = message.format, video_terms(call.model, message.options, job.fit)
        with self._engine.admit(call.model, job, client=call.client, seconds=call.seconds) as permit:
            source = self._engine.stream(permit, request_id=call.record.request_id, progress=progress)
            outcome, file, seconds = await whole_film(source, asked, terms, self._threads)
            status, headers, body = render(call, job, outcome, asked, file, seconds=seconds)
            return TrackedResponse(body, status, dict(headers), on_sent=permit.release)

    async def _encode(self, call: Call, body: Buffer, progress: JobProgress) -> Response:
        message = await self._parsed(call, body, wire.parse_encode)
        picture = None
        if not isinstance(message.image, Tensor):
            terms = picture_terms(call.model, call.info, message, self._settings)
            cut, who = video_cut(call.model, call.info, message, self._settings), {"client": call.client}
            if cut is None:
                picture = await self._readers.picture(message.image, terms, **who, seconds=call.seconds)
            else:
                picture = await self._readers.video(message.image, terms, cut, **who, seconds=call.seconds)
        job = encode_job(call.model, call.info, message, self._settings, picture)
        return await self._run(call, job, message.format, NO_OPTIONS, progress)

    async def _run(
        self, call: Call, job: Job, asked: Format, options: DecodeOptions, progress: JobProgress
    ) -> Response:
        with self._engine.admit(call.model, job, client=call.client, seconds=call.seconds) as permit:
            outcome = await self._engine.run(permit, request_id=call.record.request_id, progress=progress)
            status, headers, body = await self._rendered(asked, write_and_render, call, job, outcome, asked, options)
            return TrackedResponse(body, status, dict(headers), on_sent=permit.release)

    async def _parsed(self, call: Call, body: Buffer, parse: Callable[[wire.Head, Buffer], T]) -> T:
        """The message of a body. Large JSON waits for its client's turn."""
        head = call.head
        if not head.body_is_json:
            return parse(head, body)
        if len(body) <= MOST_JSON_HERE:
            return await self._threads.run(Work.READ, parse, head, body)
        inputs, given = await self._readers.json(body, client=call.client, seconds=call.seconds)
        return parse(wire.join_json(head, given), inputs)

    async def _rendered(self, asked: Format, render: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `render` gives, written in a thread unless it is a tensor as it is."""
        if asked.name == "binary":
            return render(*args, **kwargs)
        return await self._threads.run(Work.WRITE, render, *args, **kwargs)

    async def home(self, request: Request) -> Response:
        """GET /: what this server is and has; for a browser, the page."""
        if wants_page(request):
            return await page_part(request)
        names = {name: list(model.aliases) for name, model in self._engine.models.items()}
        links = ["/docs", "/openapi.json", "/models", "/health", "/live", "/ready"]
        if self._settings.metrics_address is None:
            links.append("/metrics")
        return JSONResponse(
            {"service": "remote-vae", "version": VERSION, "models": names, "see": links}, headers={"vary": "accept"}
        )

    async def live(self, request: Request) -> Response:
        """GET /live, /health: the server's own process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 if every model that is not lazy is loaded and all its processes live; otherwise 503."""
        if self._engine.draining:
            raise NotReady("the server is shutting down")
        if not self._engine.ready:
            raise NotReady("not every model is loaded")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        body, media = self._metrics.text(request.headers.get("accept", ""))
        return Response(body, media_type=media)

    async def models(self, request: Request) -> Response:
        """GET /models: the cards of the loaded models. `unknown` and `loading` name those that have no card yet.

        `unknown` models are loaded when they are first asked for, `unloaded` ones when they are asked for again.
        *Raises* NotReady while no model has been loaded.
        """
        cards: list[dict[str, object]] = []
        unknown: list[str] = []
        loading: list[str] = []
        places = {each.name: each.places for each in self._engine.loaded()}
        for model in self._engine.models.values():
            if (info := self._engine.known(model)) is not None:
                cards.append(model_info(model, info, places[model.name], self._settings).to_json())
            else:
                (unknown if model.lazy else loading).append(model.name)
        if loading and not cards:
            raise NotReady(f"model {loading[0]!r} is still loading; try again in a moment")
        names = {"unknown": unknown, "loading": loading, "unloaded": self._engine.put_away()}
        return JSONResponse({"default": self._engine.default, "models": cards, **names})

    async def events(self, request: Request) -> Response:
        """GET /jobs/<request id>/events: how far an unfinished request of this client is, as server-sent events."""
        if request.method != "GET":
            raise wrong_method(request, ["GET"])
        client = request.scope.get(CLIENT)
        job = self._jobs.find(client, request.path_params["id"])[-1]
        self._jobs.enter_stream(client)
        return EventStream(job, on_end=partial(self._jobs.leave_stream, client))

    async def cancel(self, request: Request) -> Response:
        """DELETE /jobs/<request id>: ends every unfinished request of this client that has the id."""
        if request.method != "DELETE":
            raise wrong_method(request, ["DELETE"])
        found = self._jobs.find(request.scope.get(CLIENT), request.path_params["id"])
        for job in found:
            job.cancelled.set()
        return JSONResponse({"cancelled": len(found)})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(openapi.document(VERSION, list(self._engine.models)))

    async def docs(self, request: Request) -> Response:
        """GET /docs: the same description for people, as one file that fetches nothing."""
        names = list(self._engine.models)
        return HTMLResponse(page(openapi.document(VERSION, names), names), headers=PAGE_HEADERS)
