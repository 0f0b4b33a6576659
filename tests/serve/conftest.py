"""A searcher that needs no model, over a dozen drawn persons, and a server of it on a free port."""

import contextlib
import datetime
import hashlib
import io
import socket
import tempfile
import threading
import time
import types
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval.basis import Basis
from ivt_jax.retrieval.queries.query import Term, check, phrases_of
from ivt_jax.retrieval.searcher import Answer, Phrase, Result, Searcher
from ivt_jax.retrieval.stores.store import About, Row
from ivt_jax.serve.app import create_app
from ivt_jax.serve.server import make_server
from ivt_jax.serve.settings import Settings
from tests.retrieval.memory import MemoryStore, holds

COLOURS = {"red": "#c8322f", "green": "#2f8f5b", "blue": "#2f5fc8", "black": "#24262b"}
TOP, LOWER = ("coat", "shirt", "jacket"), ("trousers", "jeans", "skirt")
FIELDS = {"camera": "integer", "zone": "text", "seen": "time"}
NOON = "2024-05-01T12:00:00+00:00"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


def draw_person(top, lower):
    """A crop: grey ground, head, coat and trousers in plain colours."""
    image = Image.new("RGB", (64, 128), "#b9bec7")
    pen = ImageDraw.Draw(image)
    pen.ellipse((24, 8, 40, 28), "#e0b899")
    pen.rounded_rectangle((16, 30, 48, 74), 8, COLOURS[top])
    pen.rectangle((20, 72, 31, 118), COLOURS[lower])
    pen.rectangle((33, 72, 44, 118), COLOURS[lower])
    return image


def jpeg(image, **more):
    file = io.BytesIO()
    image.save(file, "JPEG", **more)
    return file.getvalue()


class Person:
    def __init__(self, id, top, lower):
        self.id, self.top, self.lower = id, top, lower
        self.path = f"{top}/{lower}_{id}.jpg"
        seen = None if id % 4 else datetime.datetime(2024, 5, 1 + id % 28, 12, 30, tzinfo=datetime.UTC)
        self.metadata = {"camera": id % 3, "zone": "gate" if id % 2 else None, "seen": seen}
        self.image = draw_person(top, lower)

    def fit(self, phrase):
        """1 where colour and garment are this person's, 0.5 where the garment is not known, else 0."""
        words = phrase.lower().split()
        worn = {**dict.fromkeys(TOP, self.top), **dict.fromkeys(LOWER, self.lower)}
        return next((float(worn[word] in words) for word in words if word in worn), 0.5)

    def row(self):
        """The row of an index, after the file was written; persons who wear the same have one vector."""
        file = Path(ROOT.name) / self.path
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(jpeg(self.image.resize((128, 256)), exif=b"Exif\0\0secret"))
        worn = [colour == self.top for colour in COLOURS] + [colour == self.lower for colour in COLOURS]
        digest, vector = hashlib.sha256(file.read_bytes()).hexdigest(), np.float32(worn) / np.float32(2**0.5)
        return Row(self.id, self.path, digest, 1, 1, self.metadata, vector, jpeg(self.image))


ROOT = tempfile.TemporaryDirectory(prefix="ivt_jax-persons-")
WORN = [(top, lower) for top in COLOURS for lower in COLOURS if top != lower]
PERSONS = [Person(id, *worn) for id, worn in enumerate(WORN)]


class StandInAbout(About):
    def describe_unfinished(self, rows):
        return StandIn.unfinished


class StandIn:
    """What `ivt_jax.retrieval.searcher.Searcher` gives, of persons; an image is like those with the same pixels."""

    unfinished = ""  # what an index says that is unfinished
    calibration = types.SimpleNamespace(nouns={"coat": (0.9, 9)})
    encoder = types.SimpleNamespace(size=(128, 64))

    def __init__(self, persons=PERSONS):
        self.persons = persons
        model, folder = "3fa9c1d2e8b4" + 52 * "0", ROOT.name
        about = StandInAbout(model, "", 8, "float32", {}, FIELDS, folder, folder, made="today")
        self.store = MemoryStore(about)
        self.store.add([person.row() for person in persons])

    @property
    def about(self):
        return self.store.about

    def file(self, path):
        return Path(self.about.root) / path

    count, read, rows, thumbnail = Searcher.count, Searcher.read, Searcher.rows, Searcher.thumbnail
    value_counts = Searcher.value_counts
    _made, _refuse_replaced = "today", Searcher._refuse_replaced

    def search(self, query, top=10, group="", distinct=None, fold=False):
        phrases = phrases_of(query.terms)
        found = sorted(
            self._filter(query, group, distinct), key=lambda person: (-self._score(person, query), person.id)
        )
        results = [
            Result(
                person.id, person.path, self._score(person, query), 0.9 if rank == 0 else None,
                tuple(
                    Phrase(text, None if text == "glasses" else person.fit(text), wanted)
                    for text, wanted in phrases.items()
                ),
                person.metadata, "more than 6 times as high as wide" if person.id == 1 else "",
                self._better(found[:rank], person, group, distinct) if fold else None,
            )
            for rank, person in enumerate(found[:top])
        ]  # fmt: skip
        good = bool(results) and results[0].score > 0.4
        verdict = (
            "90% likely that the first picture is right, if the person is in the index"
            if good
            else "no good match: nobody fits"
        )
        unread = 'not read: "grün" (unknown to the model)' if "grün" in str(query.terms) else ""
        if self.unfinished:
            results = [result._replace(probability=None) for result in results]
            verdict, good = f"No confidence estimate: {self.unfinished}", None
        terms = {term.text for term in query.terms}
        without_fit = "this model cannot tell: glasses" if "glasses" in phrases else ""
        suggestions = {"a rde coat": "a red coat"} if "a rde coat" in terms else {}
        left = {"hidden": 2}, {"the folder is missing": 3}
        basis = Basis("today", NOON, "the list has changed since", *left, 1, self.about.model, NOON)
        more = unread, self.unfinished, query.terms, without_fit, "", suggestions
        searched = len(self._meet(query, group, distinct))
        return Answer(results, searched, basis, verdict, good, *more)

    def _better(self, better, person, group, distinct):
        """The id of the first of `better` with the same value of the field, otherwise in the same clothes."""
        value = person.metadata.get(group)
        same = [other.id for other in better if value is not None and other.metadata[group] == value]
        same += [other.id for other in better if distinct and (other.top, other.lower) == (person.top, person.lower)]
        return same[0] if same else None

    def _filter(self, query, group, distinct):
        kept = self._meet(query, group, distinct)
        return [person for person in kept if person.id not in (query.like, *query.unlike)]

    def _meet(self, query, group, distinct):
        condition = check(query, FIELDS, group, distinct)
        return [person for person in self.persons if condition is None or holds(condition, person.metadata)]

    def _score(self, person, query):
        parts = [
            (term.weight, np.mean([person.fit(phrase) for phrase in self.phrases(term.text)])) for term in query.terms
        ]
        if query.like is not None:
            parts.append((query.image_weight, float(self.persons[query.like].top == person.top)))
        if query.image is not None:
            seen = Image.open(io.BytesIO(query.image)).convert("RGB").getpixel((32, 50))
            own = person.image.getpixel((32, 50))
            parts.append((query.image_weight, float(max(abs(a - b) for a, b in zip(seen, own, strict=True)) < 16)))
        return float(sum(weight * fit for weight, fit in parts) / sum(abs(weight) for weight, _ in parts))

    def phrases(self, text):
        return list(phrases_of([Term(text)]))

    def heat_maps(self, id, phrases):
        if id >= len(self.persons):
            raise UserError(f"the index has no picture with the id {id}")
        maps = np.zeros((len(phrases), 8, 4), np.float32)
        for phrase, heat in zip(phrases, maps, strict=True):
            heat[slice(2, 4) if set(phrase.split()) & set(TOP) else slice(5, 7), 1:3] = 1
        return self.persons[id].image, maps


@contextlib.contextmanager
def served(searcher, **settings):
    """A server in a thread, for as long as the block lasts; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = {"index": "people.index", "hosts": LOOPBACK, **settings}
    settings = Settings(**settings)
    server = make_server(create_app(searcher, settings), settings.proxies)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:  # a test that fails leaves no server beside the next one
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def address():
    with served(StandIn()) as address:
        yield address


@pytest.fixture(scope="session")
def client(address):
    with httpx.Client(base_url=address) as client:
        yield client
