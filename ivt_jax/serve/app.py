"""The application: the page, and the REST endpoints that /openapi.json describes."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable
from ivt_jax.encoding.images import describe_odd
from ivt_jax.pages.render import INTENDED_USE, data_uri, render
from ivt_jax.retrieval.queries.query import MAX_TERMS, MAX_UNLIKE, Query, Term, split_sentence
from ivt_jax.retrieval.stores.store import StoreError
from ivt_jax.serve import limits, schema
from ivt_jax.serve.clients import Slots, log
from ivt_jax.serve.decoder import Decoder
from ivt_jax.serve.guard import Guard
from ivt_jax.serve.logins import Logins, cookie_name
from ivt_jax.serve.metrics import Metrics
from ivt_jax.serve.originals import encode_original
from ivt_jax.serve.settings import Settings, read_origin

if TYPE_CHECKING:
    from ivt_jax.retrieval.searcher import Searcher

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEAT_SIZE, HEAT_QUALITY = (512, 1024), 85  # largest width and height of a picture with a heat map; JPEG quality
ABOUT = f"""Search an index of pictures of persons by sentences and pictures.

Intended use. {INTENDED_USE}

If the server requires a token, send it as `Authorization: Bearer TOKEN`. Errors are answered with
`{{"error": "what is wrong, in one line"}}`."""


def create_app(searcher: "Searcher", settings: Settings) -> ASGIApp:
    """Returns the application behind its guard; `make_server` runs it and adds the security headers."""
    public = settings.public
    servers = [{"url": public.origin.url + public.path}] if public else None
    failures: dict[int | str, Any] = {code: {"model": schema.ErrorResponse} for code in ("4XX", "5XX")}
    more: dict[str, Any] = {"docs_url": None, "redoc_url": None, "responses": failures, "servers": servers}
    app = FastAPI(title="ivt_jax.serve", description=ABOUT, **more)
    for error in (StarletteHTTPException, RequestValidationError, UserError, Exception):
        app.add_exception_handler(error, answer_error)
    logins, page = Logins(settings.token), read_page()
    metrics = Metrics()
    endpoints = Endpoints(searcher, settings, logins, metrics)
    app.get("/api/about")(endpoints.about)
    app.get("/api/values")(endpoints.values)
    app.post("/api/search")(endpoints.search)
    app.post("/api/phrases")(endpoints.phrases)
    app.get("/api/thumbnails/{id}", response_class=Response)(endpoints.thumbnail)
    app.get("/api/originals/{id}", response_class=Response)(endpoints.original)
    app.post("/api/heat/{id}")(endpoints.heat)
    app.post("/login", status_code=204)(endpoints.login)
    app.router.routes += [Route(path, response, methods=["GET"]) for path, response in page.items()]
    hidden: dict[str, Any] = {"include_in_schema": False}  # they are for the operator
    app.get("/health/live", **hidden)(endpoints.live)
    app.get("/health/ready", **hidden)(endpoints.ready)
    app.get("/metrics", **hidden)(endpoints.metrics)
    metrics.paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    return Guard(app, settings, logins, metrics, frozenset(page) | {"/login", "/health/live", "/health/ready"})


class Endpoints:
    """The endpoints' functions. FastAPI reads their annotations and docstrings; the searcher works in threads."""

    def __init__(self, searcher: "Searcher", settings: Settings, logins: Logins, metrics: Metrics):
        self._searcher, self._settings, self._logins, self._metrics = searcher, settings, logins, metrics
        self._fault = ""  # the last fault of the index that was logged
        # One request at a time uses the model, which keeps all cores busy; the others wait in their order.
        self._model, self._readers = CapacityLimiter(1), CapacityLimiter(4)  # threads that read thumbnails
        self._originals = CapacityLimiter(1)  # a large picture takes hundreds of megabytes while it is decoded
        # Another process decodes uploaded images, so that requests without one do not wait for them.
        self._decoder = Decoder(searcher.encoder.size)
        self._decoding = Slots(1, 1, limits.SLOT_SECONDS, "too many images")

    async def about(self) -> schema.AboutResponse:
        """Describes the index and its model."""
        pictures = await to_thread.run_sync(self._searcher.count, limiter=self._readers)
        about = self._searcher.about  # after counting, which reads it again
        unfinished, calibration = about.describe_unfinished(pictures), self._searcher.calibration
        index: dict[str, Any] = {"index": self._settings.index, "pictures": pictures, "unfinished": unfinished}
        fields: dict[str, Any] = {"model": about.model, "fields": dict(about.fields)}
        bounds: dict[str, Any] = {"max_body": limits.MAX_BODY, "max_top": limits.MAX_TOP}
        bounds |= {"max_terms": MAX_TERMS, "max_unlike": MAX_UNLIKE}
        fits = bool(calibration and calibration.nouns)
        known: dict[str, Any] = {"calibrated": calibration is not None, "fits": fits}
        return schema.AboutResponse(**index, **fields, **known, **bounds)

    async def values(self) -> schema.ValuesResponse:
        """Lists the values of each field that has few, with the number of pictures of each."""
        counts = await to_thread.run_sync(self._searcher.value_counts, limits.MAX_VALUES, limiter=self._readers)
        values = {
            name: [{"value": value, "pictures": count} for value, count in known.items()]
            for name, known in counts.items()
        }
        return schema.ValuesResponse.model_validate({"values": values})

    async def search(self, request: Request, asked: schema.SearchRequest) -> schema.SearchResponse:
        """Returns the pictures that fit a query best."""
        image, odd = asked.image, ""
        if image is not None:
            async with self._decoding.taken(request.state.client):
                image, odd = await to_thread.run_sync(self._decoder.decode, image)
        terms = tuple(Term(term.text, term.weight) for term in asked.terms)
        query = Query(terms, image, asked.like, asked.image_weight, asked.where, tuple(asked.unlike))
        if self._settings.log_queries:
            log(f"{request.scope['client'][0]} asks {query._replace(image=asked.image and b'...')}")
        answer = await to_thread.run_sync(answer_query, self._searcher, query, asked, limiter=self._model)
        return answer.model_copy(update={"odd": describe_odd(odd)})  # the searcher has seen the resized image

    async def phrases(self, asked: schema.PhrasesRequest) -> schema.PhrasesResponse:
        """Splits a sentence into phrases, which can be weighted one by one."""
        return schema.PhrasesResponse.model_validate(
            await to_thread.run_sync(split_sentence, asked.text, limiter=self._readers)
        )

    async def thumbnail(self, id: Annotated[schema.Id, PathParameter()]) -> Response:
        """Returns the thumbnail of a row, a JPEG."""
        content = await to_thread.run_sync(self._searcher.thumbnail, id, limiter=self._readers)
        if content is None:
            raise HTTPException(404, "the index has no picture of this id")
        return Response(content, media_type="image/jpeg")

    async def original(self, id: Annotated[schema.Id, PathParameter()]) -> Response:
        """Returns the picture of a row in full size, up to 4096 x 4096 pixels: a JPEG without metadata."""
        content = await to_thread.run_sync(encode_original, self._searcher, id, limiter=self._originals)
        if content is None:
            raise HTTPException(404, "the picture is gone, or is not the one that was indexed; its thumbnail is left")
        return Response(content, media_type="image/jpeg")

    async def heat(self, id: Annotated[schema.Id, PathParameter()], asked: schema.HeatRequest) -> schema.HeatResponse:
        """Shows where in a picture each phrase is seen."""
        images = await to_thread.run_sync(draw_heat, self._searcher, id, asked.phrases, limiter=self._model)
        return schema.HeatResponse(images=images)

    async def login(self, asked: schema.LoginRequest, request: Request) -> Response:
        """Checks the token and sets the cookie of a new session."""
        if not self._logins.is_right(asked.token):
            raise self._logins.count_wrong(request.scope["client"][0], time.monotonic())
        path, public = "/", self._settings.public
        origin = read_origin(request.headers.get("origin", ""))  # of the page; None for a program
        if public and origin in (None, public.origin):  # not from the page at the server's own address
            origin, path = public.origin, f"{public.path}/"
        https = origin is not None and origin.scheme == "https"  # between the browser and the proxy, if there is one
        name, session, response = cookie_name(request.headers), self._logins.open(time.monotonic()), Response(None, 204)
        response.set_cookie(name, session, path=path, httponly=True, samesite="strict", secure=https)
        return response

    async def live(self) -> dict[str, str]:
        """Answers that the process runs."""
        return {"status": "live"}

    async def ready(self) -> dict[str, str]:
        """Answers whether the index can be searched: 200, or 503."""
        if await to_thread.run_sync(self._count, limiter=self._readers) is None:
            raise HTTPException(503, "the index cannot be searched; the server's log says why")
        return {"status": "ready"}

    async def metrics(self) -> Response:
        """Returns the metrics in the text format of Prometheus."""
        pictures = await to_thread.run_sync(self._count, limiter=self._readers)
        self._metrics.ready.set(pictures is not None)
        self._metrics.pictures.set(math.nan if pictures is None else pictures)
        self._metrics.waiting.set(self._model.statistics().tasks_waiting)
        return self._metrics.answer()

    def _count(self) -> int | None:
        """Returns the number of pictures, None if the index cannot be searched. Logs each change of that."""
        pictures, fault = None, ""
        try:
            pictures = self._searcher.count()
            self._searcher.rows([0])  # the count does not read the rows, which may be gone
        except UserError as error:
            pictures, fault = None, str(error)
        if fault != self._fault:
            log(f"error: {fault}" if fault else "the index can be searched again")
            self._fault = fault
        return pictures


def answer_query(searcher: "Searcher", query: Query, asked: schema.SearchRequest) -> schema.SearchResponse:
    """Searches and returns the answer as it is sent."""
    answer = searcher.search(query, asked.top, asked.group, asked.distinct, fold=asked.fold)
    return schema.SearchResponse.model_validate(answer)


def draw_heat(searcher: "Searcher", id: int, phrases: list[str]) -> list[str]:
    """Draws a heat map for each phrase over the picture of a row; returns JPEGs as data URIs."""
    from ivt_jax.retrieval.explain import overlay

    picture, maps = searcher.heat_maps(id, phrases)
    picture.thumbnail(HEAT_SIZE)
    return [data_uri(overlay(picture, heat), HEAT_QUALITY) for heat in maps]


def read_page() -> dict[str, Response]:
    """Returns the page's files by URL path, read once: no path from a client reaches the disk."""
    files = sorted(file for file in PAGE.iterdir() if file.suffix in TYPES and file.name != "index.html")
    page = {f"/{file.name}": Response(file.read_bytes(), media_type=TYPES[file.suffix]) for file in files}
    return {**page, "/": Response(render(PAGE / "index.html"), media_type="text/html")}


async def answer_error(request: Request, error: Any) -> JSONResponse:
    """Answers an exception with its status and one line, which has no path of this machine and no part of a query."""
    match error:
        case StarletteHTTPException():
            status, line = error.status_code, error.detail
        case RequestValidationError():
            status, line = 422, printable(schema.describe_fault(error.errors()[0]))
        case StoreError():
            log(f"error: {error}")
            status, line = 503, "the index cannot be read; the server's log says why"
        case UserError():
            status, line = 422, str(error)
        case _:
            status, line = 500, "the server has failed; its log says where"
    return JSONResponse({"error": line}, status, getattr(error, "headers", None))
