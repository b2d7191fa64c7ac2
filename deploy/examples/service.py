"""A web service around one bundle.

    pip install "edgetl[cpu,serve]"
    python service.py BUNDLE --port 8000
    curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" "localhost:8000/predict?top=3"
    curl -F image=@photo.jpg localhost:8000/predict

    POST /predict   label, score and the best labels of one image: the body itself, or a multipart form with one file
    GET  /healthz   200 while the process lives
    GET  /readyz    200 while the model answers; asks it, so use it every few seconds rather than every few milliseconds
    GET  /metrics   counts, durations and scores in Prometheus' text format
    GET  /drift     statistics of the scores, and whether they are still what they were at export
    GET  /info      which variant runs on which backend, and why

Requests that wait at the same time go through the graph together. Whatever goes wrong is answered as
{"error": "one sentence", "hint": "what to do"}. One process serves one model; it has no TLS and no passwords: put it
behind a proxy that has, and start several processes for several models.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgetl.errors import EdgetlError, InputError, Overloaded
from edgetl.runtime import Batching, Classifier, Drift, load, open_bundle
from edgetl.runtime.drift import prometheus

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What requests may cost."""

    body_bytes: int = 10 * 2**20
    megapixels: float = 25.0
    upload_s: float = 30.0  # a body that takes longer to arrive is given up
    at_once: int = 32  # requests held in memory; further ones are told to come back


class Metrics:
    """What /metrics shows besides the scores; a registry of its own, so that several services fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("edgetl_requests", "Requests to /predict", ["code"], registry=self.registry)
        self.rejected = Counter("edgetl_rejected", "Answers below the bundle's reject_below", registry=self.registry)
        self.seconds = Histogram("edgetl_predict_seconds", "From the whole body to the answer", buckets=SECONDS,
                                 registry=self.registry)
        self.at_once = Gauge("edgetl_requests_at_once", "Requests in hand", registry=self.registry)


def open_classifier(bundle: str, limits: Limits, *, backend: str = "auto", variant: str = "auto",
                    threads: int = 0) -> tuple[Classifier, Drift]:
    """A classifier that keeps to the limits, and the statistics of its scores; raises what `load` raises."""
    drift = Drift(len(open_bundle(bundle).manifest.labels))
    return load(bundle, backend, variant, threads, max_megapixels=limits.megapixels, drift=drift,
                batching=Batching(max_waiting=limits.at_once)), drift


def create_app(classifier: Classifier, drift: Drift, limits: Limits | None = None) -> FastAPI:
    """The application; it closes the classifier when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with classifier:
            await run_in_threadpool(classifier.warmup)
            yield

    app = FastAPI(title="edgetl", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.classifier, app.state.drift = classifier, drift
    app.state.limits = limits or Limits()
    app.state.metrics = Metrics()
    app.add_api_route("/predict", predict, methods=["POST"], response_model=None)
    for answer in (healthz, readyz, metrics, drift_of, info):
        app.add_api_route("/" + answer.__name__.removesuffix("_of"), answer, response_model=None)
    app.add_middleware(Gate, counts=app.state.metrics, at_once=app.state.limits.at_once)
    app.exception_handler(EdgetlError)(tell_failure)
    app.exception_handler(StarletteHTTPException)(tell_http)
    app.exception_handler(RequestValidationError)(tell_invalid)
    app.exception_handler(ClientDisconnect)(tell_nobody)
    return app


async def predict(request: Request, top: Annotated[int, Query(ge=1)] = 5) -> dict[str, Any]:
    """The prediction of the image in the request."""
    state = request.app.state
    try:
        async with asyncio.timeout(state.limits.upload_s):
            image = await read_image(request, state.limits.body_bytes)
    except TimeoutError as problem:
        raise HTTPException(408, f"The image did not arrive within {state.limits.upload_s:g} seconds.") from problem
    with state.metrics.seconds.time():
        found = await state.classifier.predict_async(image, top=top)
    state.metrics.rejected.inc(found.rejected)
    return dataclasses.asdict(found)


async def healthz() -> dict[str, str]:
    """That the process lives."""
    return {"status": "alive"}


async def readyz(request: Request) -> dict[str, str]:
    """That the model answers: it is asked for a black image."""
    await run_in_threadpool(request.app.state.classifier.warmup, 1)
    return {"status": "ready"}


async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    state = request.app.state
    scores = prometheus(state.drift.snapshot(), state.classifier.labels)
    return Response(generate_latest(state.metrics.registry).decode() + scores, media_type=CONTENT_TYPE_LATEST)


async def drift_of(request: Request) -> dict[str, Any]:
    """What was counted, and the comparison with the time of export where the bundle tells of it."""
    state = request.app.state
    reference = state.classifier.manifest.drift_reference
    verdict = None if reference is None else state.drift.compare(reference).to_json()
    return {"snapshot": state.drift.snapshot(), "verdict": verdict}


async def info(request: Request) -> dict[str, Any]:
    """What runs, and why."""
    told: dict[str, Any] = request.app.state.classifier.info()
    return told


# --------------------------------------------------------------------------------------------------- reading a body


async def read_image(request: Request, limit: int) -> bytes:
    """The bytes of the image: the body, or the one file of a multipart form; never more than `limit` in memory."""
    body = await read_body(request, limit)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        return body

    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, again).form(max_files=1, max_fields=8) as form:
        files = [part for part in form.values() if not isinstance(part, str)]
        if not files:
            raise HTTPException(400, "The form has no file; expected one image.")
        return await files[0].read()


async def read_body(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it is known to be larger than `limit`."""
    too_large = HTTPException(413, f"The body is larger than the limit of {limit} bytes; send a smaller image.")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    return bytes(body)


# ------------------------------------------------------------------------------------------- answers, good and bad


class Gate:
    """Counts the answers to /predict, and refuses more requests at once than memory is meant for."""

    def __init__(self, app: ASGIApp, counts: Metrics, at_once: int) -> None:
        self.app, self.counts, self.at_once, self.now = app, counts, at_once, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 503 itself."""
        if scope["type"] != "http" or scope["path"] != "/predict":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.counts.requests.labels(str(message["status"])).inc()
            await send(message)

        if self.now >= self.at_once:
            return await busy()(scope, receive, counted)
        self.now += 1
        try:
            with self.counts.at_once.track_inprogress():
                await self.app(scope, receive, counted)
        finally:
            self.now -= 1


async def tell_failure(request: Request, problem: Exception) -> Response:
    """An image that cannot be used is the client's matter (422), all else ours (503)."""
    assert isinstance(problem, EdgetlError)
    if isinstance(problem, Overloaded):
        return busy()
    return error(422 if isinstance(problem, InputError) else 503, problem.message, problem.hint)


async def tell_http(request: Request, problem: Exception) -> Response:
    """The sentence of an HTTPException."""
    assert isinstance(problem, StarletteHTTPException)
    return error(problem.status_code, str(problem.detail), None, problem.headers)


async def tell_invalid(request: Request, problem: Exception) -> Response:
    """What is wrong with the query."""
    assert isinstance(problem, RequestValidationError)
    found = problem.errors()[0]
    return error(400, f"'{found['loc'][-1]}' is {found['input']!r}: {found['msg']}.")


async def tell_nobody(request: Request, problem: Exception) -> Response:
    """The client has gone; the code is what proxies write into their logs for that."""
    return Response(status_code=499)


def busy() -> JSONResponse:
    """What is said to more requests than memory is meant for."""
    return error(503, "The service is busy.", "Try again in a second.", {"Retry-After": "1"})


def error(code: int, message: str, hint: str | None = None, headers: Any = None) -> JSONResponse:
    """The form that all errors have."""
    return JSONResponse({"error": message, "hint": hint}, code, headers)


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C; requests in hand are finished first. 1 if the bundle cannot be opened."""
    import uvicorn

    limits = Limits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-body-bytes", type=int, default=limits.body_bytes)
    parser.add_argument("--max-megapixels", type=float, default=limits.megapixels)
    parser.add_argument("--max-at-once", type=int, default=limits.at_once)
    given = parser.parse_args(argv)
    limits = Limits(given.max_body_bytes, given.max_megapixels, at_once=given.max_at_once)
    try:
        classifier, drift = open_classifier(given.bundle, limits, backend=given.backend, variant=given.variant,
                                            threads=given.threads)
    except EdgetlError as problem:
        print(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code
    uvicorn.run(create_app(classifier, drift, limits), host=given.host, port=given.port, server_header=False,
                timeout_graceful_shutdown=30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
