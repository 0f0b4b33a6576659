"""The application: the page, and the endpoints over a searcher. /openapi.json describes them."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable
from ivt_jax.pages.render import INTENDED_USE, render
from ivt_jax.retrieval.query import Query, Term
from ivt_jax.retrieval.store import StoreError
from ivt_jax.retrieval.where import Value
from ivt_jax.serve.decoder import Decoder
from ivt_jax.serve.guard import Guard
from ivt_jax.serve.limits import Slots, Tokens, log
from ivt_jax.serve.pictures import draw_heat
from ivt_jax.serve.public import Origin, read_origin
from ivt_jax.serve.schema import (
    AskedPhrases,
    AskedQuery,
    AskedText,
    AskedToken,
    Failure,
    GivenAbout,
    GivenAnswer,
    GivenHeat,
    GivenPhrases,
    Id,
)
from ivt_jax.serve.sessions import Sessions, cookie_name
from ivt_jax.serve.settings import MAX_BODY, MAX_VALUES, SLOT_SECONDS, Settings

if TYPE_CHECKING:
    from ivt_jax.retrieval.searcher import Searcher
    from ivt_jax.retrieval.store import VectorStore

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
READERS = 4  # threads that read thumbnails
ABOUT = f"""Search an index of pictures of persons by sentences and pictures.

Intended use. {INTENDED_USE}

Where the server demands a token, send it as `Authorization: Bearer TOKEN`. A mistake is answered with
`{{"error": "what is wrong, in one line"}}`."""


def create_app(searcher: "Searcher", settings: Settings) -> ASGIApp:
    """The application with its guard; a server runs it without `lifespan`."""
    failures: dict[int | str, dict[str, Any]] = {"4XX": {"model": Failure}, "5XX": {"model": Failure}}
    public = settings.public
    servers = [{"url": public.origin.url + public.path}] if public else None
    more: dict[str, Any] = {"docs_url": None, "redoc_url": None, "responses": failures, "servers": servers}
    app = FastAPI(title="ivt_jax.serve", description=ABOUT, **more)
    sessions, tokens, page = Sessions(), Tokens(settings.token), read_page()
    endpoints = Endpoints(searcher, settings, sessions, tokens)
    app.get("/api/about")(endpoints.about)
    app.post("/api/search")(endpoints.search)
    app.post("/api/phrases")(endpoints.phrases)
    app.get("/api/thumbnails/{id}", response_class=Response)(endpoints.thumbnail)
    app.post("/api/heat/{id}")(endpoints.heat)
    app.post("/login", status_code=204)(endpoints.login)
    for path, response in page.items():
        app.get(path, include_in_schema=False)(functools.partial(_same, response))
    app.add_exception_handler(StoreError, _failure(_say_broken))
    app.add_exception_handler(UserError, _failure(lambda error: (422, str(error))))
    app.add_exception_handler(RequestValidationError, _failure(_say_invalid))
    app.add_exception_handler(StarletteHTTPException, _failure(lambda error: (error.status_code, error.detail)))
    app.add_exception_handler(
        Exception, _failure(lambda error: (500, "the server has failed: its terminal says where"))
    )
    return Guard(app, settings, sessions, tokens, open=frozenset(page) | {"/login"})


class Endpoints:
    """Methods that FastAPI calls, each with what its annotations say; the searcher works in threads."""

    def __init__(self, searcher: "Searcher", settings: Settings, sessions: Sessions, tokens: Tokens):
        self._searcher, self._settings, self._sessions, self._tokens = searcher, settings, sessions, tokens
        # One at a time works with the model, which keeps all cores busy; the others wait in their order.
        self._model, self._readers = CapacityLimiter(1), CapacityLimiter(READERS)
        # Uploaded images are decoded in another process, so that requests without one do not wait for them.
        self._decoder, self._decoding = Decoder(searcher.encoder.size), Slots(1, 1, SLOT_SECONDS, "too many images")

    async def about(self) -> GivenAbout:
        """What is served, and with which model."""
        store = self._searcher.store
        pictures, values = await to_thread.run_sync(lambda: (store.count(), list_values(store)), limiter=self._readers)
        return GivenAbout(
            index=self._settings.index,
            pictures=pictures,
            unfinished=store.about.describe_unfinished(pictures),
            model=store.about.model,
            fields=dict(store.about.fields),
            values=values,
            calibrated=self._searcher.calibration is not None,
            max_body=MAX_BODY,
        )

    async def search(self, request: Request, asked: AskedQuery) -> GivenAnswer:
        """The pictures that fit a query best."""
        image = asked.image
        if image is not None:
            async with self._decoding.taken(request.state.client):
                image = await to_thread.run_sync(self._decoder.decode, image)
        terms = tuple(Term(term.text, term.weight) for term in asked.terms)
        query = Query(terms, image, asked.like, asked.image_weight, asked.where)
        if self._settings.log_queries:
            log(f"{request.scope['client'][0]} asks {query._replace(image=asked.image and b'...')}")
        chosen = asked.top, asked.group, asked.distinct
        answer = await to_thread.run_sync(self._searcher.search, query, *chosen, limiter=self._model)
        return GivenAnswer.model_validate(answer)

    async def phrases(self, asked: AskedText) -> GivenPhrases:
        """The phrases of a sentence, to be weighted one by one."""
        phrases = await to_thread.run_sync(self._searcher.phrases, asked.text, limiter=self._readers)
        return GivenPhrases(phrases=phrases)

    async def thumbnail(self, id: Annotated[Id, PathParameter()]) -> Response:
        """The small JPEG of a row, as the index has it."""
        content = await to_thread.run_sync(self._searcher.thumbnail, id, limiter=self._readers)
        if content is None:
            raise HTTPException(404, "the index has no picture of this id")
        return Response(content, media_type="image/jpeg")

    async def heat(self, id: Annotated[Id, PathParameter()], asked: AskedPhrases) -> GivenHeat:
        """Where in a picture each phrase is seen."""
        images = await to_thread.run_sync(self._draw_heat, id, asked.phrases, limiter=self._model)
        return GivenHeat(images=images)

    async def login(self, asked: AskedToken, request: Request) -> Response:
        """Takes the token, and gives a cookie in its place."""
        if not self._tokens.is_right(asked.token):
            raise self._tokens.count_wrong(request.scope["client"][0], time.monotonic())
        response = Response(status_code=204)
        path, https = self._cookie_scope(read_origin(request.headers.get("origin", "")))
        name, session = cookie_name(request.headers), self._sessions.open(time.monotonic())
        response.set_cookie(name, session, path=path, httponly=True, samesite="strict", secure=https)
        return response

    def _cookie_scope(self, origin: Origin | None) -> tuple[str, bool]:
        """Returns the cookie's path, and whether the browser connects by HTTPS (to the proxy, if there is one).

        origin: of the page that logs in; None for a program.
        """
        path, public = "/", self._settings.public
        if public and origin in (None, public.origin):  # not from the page at the server's own address
            origin, path = public.origin, f"{public.path}/"
        return path, origin is not None and origin.scheme == "https"

    def _draw_heat(self, id: int, phrases: list[str]) -> list[str]:
        return draw_heat(*self._searcher.heat_maps(id, phrases))


def list_values(store: "VectorStore") -> dict[str, list[Value]]:
    """Those of the fields that hold few, for the page to offer."""
    fields = [name for name, kind in store.about.fields.items() if kind in ("integer", "boolean", "text")]
    values = {name: store.values(name, MAX_VALUES) for name in fields}
    return {name: known for name, known in values.items() if known}


def read_page() -> dict[str, Response]:
    """The page's files by the paths they are asked for with. No path that a client names touches the disk."""
    files = sorted(file for file in PAGE.iterdir() if file.suffix in TYPES and file.name != "index.html")
    page = {f"/{file.name}": Response(file.read_bytes(), media_type=TYPES[file.suffix]) for file in files}
    return {**page, "/": Response(render(PAGE / "index.html"), media_type="text/html")}


async def _same(response: Response) -> Response:
    return response


def _say_broken(error: StoreError) -> tuple[int, str]:
    """To clients no path of this machine; the terminal has the rest."""
    log(f"error: {error}")
    return 503, "the index cannot be read: the server's terminal says why"


def _say_invalid(error: Any) -> tuple[int, str]:
    """The first of pydantic's complaints, without the value: it may be what somebody looks for, or ten megabytes."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return 422, printable(f"{place or 'the request'}: {first['msg']}")


def _failure(explain: Callable[[Any], tuple[int, str]]) -> Callable[[Request, Any], JSONResponse]:
    """An exception handler that answers with the status and the line that `explain` gives."""

    def handle(request: Request, error: Any) -> JSONResponse:
        status, line = explain(error)
        return JSONResponse({"error": line}, status, getattr(error, "headers", None))

    return handle
