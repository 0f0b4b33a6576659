"""What is found, in what order and with what scores, beside the formulas in float64 and figures worked out by hand."""

import dataclasses
import hashlib
import io
import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.images import load_image
from ivt_jax.retrieval import explain, searcher
from ivt_jax.retrieval.queries.composition import TYPICAL
from ivt_jax.retrieval.queries.query import Query, Term
from ivt_jax.retrieval.searcher import Phrase, Searcher
from ivt_jax.retrieval.stores.store import About, Row
from ivt_jax.run.workdir import folder_tokenizer
from tests.gallery.conftest import picture
from tests.retrieval.memory import MemoryStore

DIMENSION = 6
FIELDS = {"camera": "integer", "track": "text"}
COLOURS = ["red", "blue", "green", "black", "white", "brown"]  # each is an axis; other words say nothing
CLS, SEP, OTHER, FIRST = 1, 2, 3, 4


class Words:
    """Stands for the tokenizer."""

    digest = "words"

    def encode(self, texts, length):
        rows = np.zeros((len(texts), length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            words = text.lower().replace(",", " ").split()
            ids = [FIRST + COLOURS.index(word) if word in COLOURS else OTHER for word in words][: length - 2]
            row[: len(ids) + 2] = [CLS, *ids, SEP]
        return rows

    def mask(self, ids):
        return ids > 0

    def room(self, length):
        return length - 2

    def words(self, ids):
        return np.cumsum(ids >= OTHER, 1) * (ids >= OTHER)

    def unread(self, text, length):
        words = text.split()
        unknown = [word for word in words[: length - 2] if not word.isascii()]
        return unknown, " ".join(words[length - 2 :]), len(unknown) == min(len(words), length - 2)


class SumOfColours:
    """Stands for the model: a text's embedding is the sum of its colours."""

    config = types.SimpleNamespace(vocab_size=FIRST + DIMENSION)

    def apply(self, variables, ids, mask, *, method):
        assert method == "embed_text"
        return (variables["params"]["words"][ids] * mask[..., None]).sum(1)


class Encoder:
    """Stands for the model: an image's embedding is its mean colour, on the first three axes and the last."""

    about = {"model": "colours", "dimension": DIMENSION, "images": {}}  # noqa: RUF012
    config = types.SimpleNamespace(text=types.SimpleNamespace(length={"sentence": 24}))
    size = (4, 2)

    def __init__(self):
        self.model = SumOfColours()
        self.params = {"words": jnp.concatenate([jnp.zeros((FIRST, DIMENSION)), jnp.eye(DIMENSION)])}

    def embed(self, batches):
        means = np.concatenate([batch.mean((1, 2)) for batch in batches])
        vectors = np.hstack([means, means]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_store(vectors, metadata=None, thumbnails=None, **about):
    """An index in memory of these vectors, all with one thumbnail by default; about: what differs from the usual."""
    known = {"model": "colours", "tokenizer": "words", "dtype": "float32", "root": "/pictures", "workdir": "gone"}
    metadata = metadata or [{}] * len(vectors)
    fields = {name: FIELDS[name] for name in (metadata[0] if metadata else {})}
    store = MemoryStore(About(dimension=DIMENSION, images={}, fields=fields, **{**known, **about}))
    vectors = np.asarray(vectors, store.about.dtype)
    rows = enumerate(zip(vectors, metadata, thumbnails or [picture(0)] * len(vectors), strict=True))
    store.add([Row(i, f"{i}.jpg", str(i), 0, 0, known, vector, small) for i, (vector, known, small) in rows])
    return store


@pytest.fixture
def folder(tmp_path):
    """The folder of the model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"config": {}}')
    return tmp_path / "model"


@pytest.fixture
def opened(folder, monkeypatch):
    """opened(vectors, metadata, ...): a searcher of such an index."""
    monkeypatch.setattr(searcher, "folder_tokenizer", lambda workdir, config: Words())
    return lambda *args, **about: Searcher(make_store(*args, **about), folder, Encoder())


def draw(count, seed=0):
    """Random unit vectors, as float32."""
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION))
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def text_vector(*colours):
    vector = np.zeros(DIMENSION)
    for colour in colours:
        vector[COLOURS.index(colour)] += 1
    return vector / np.linalg.norm(vector)


def by_formula(vectors, parts, shares):
    """The scores of all rows, in float64."""
    query = sum(share * part for part, share in zip(parts, shares, strict=True)) / sum(map(abs, shares))
    return vectors.astype(float) @ query


def ratio_of(vectors, picture):
    """The spread of a picture's similarities, divided by that of usual sentences."""
    typical = [text_vector(*(colour for colour in COLOURS if colour in text.split())) for text in TYPICAL]
    spread = np.std(vectors.astype(float) @ np.transpose([picture, *typical]), axis=0)
    return spread[0] / spread[1:].mean()


def assert_found(answer, scores, count=10):
    expected = np.argsort(-scores, kind="stable")[:count]
    assert [result.id for result in answer.results] == expected.tolist()
    np.testing.assert_allclose([result.score for result in answer.results], scores[expected], atol=1e-6)


def ids_of(answer):
    return [result.id for result in answer.results]


def test_a_path_with_two_rows_is_shown_once(opened):
    """While an index is updated, a path has two rows: the newer one is added before the older one is deleted."""
    vectors = draw(20)
    found = opened(vectors, [{"camera": i % 3} for i in range(20)])
    rows = found.store.get([*range(20)], vectors=True, thumbnails=True)
    found.store.add([row._replace(id=row.id + 20, vector=np.roll(row.vector, 1)) for row in rows])
    queries = [Query((Term("red"),)), Query((Term("red"),), where="camera = 1"), Query(like=3), Query(like=23)]
    for query, count in zip(queries, (20, 7, 19, 19), strict=True):
        paths = [result.path for result in found.search(query, top=40).results]
        assert len(paths) == len({*paths}) == count
        assert "3.jpg" not in paths or query.like is None
    assert len({result.path for result in found.search("red", top=5).results}) == 5
    assert len(found.search("red", top=5, group="camera").results) == 3


# ---- scores


def test_the_score_of_a_sentence_is_its_cosine_similarity(opened):
    vectors = draw(200)
    answer = opened(vectors).search("a man in a red hat, with a blue bag")
    assert_found(answer, vectors.astype(float) @ text_vector("red", "blue"))
    assert answer.searched == 200
    first = answer.results[0]
    assert (first.path, first.probability, first.metadata) == (f"{first.id}.jpg", None, {})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_several_sentences_and_an_image_count_by_weight_and_phrases(opened, tmp_path, dtype):
    """Shares by hand, before they are divided by their sum: 1 for the hat; 2 times two phrases for hat and bag; for the
    shoes, which are unwanted, half of a third of the 5 that are wanted; with the image, 0.7 times two thirds of 5, the
    wanted are 22 / 3."""
    vectors = draw(200).astype(dtype)
    Image.new("RGB", (8, 16), (200, 30, 60)).save(tmp_path / "crop.png")
    parts = [text_vector("red"), text_vector("blue", "green"), text_vector("black")]
    terms = (Term("red hat"), Term("blue hat and green bag", 2.0), Term("black shoes", -0.5))
    image = np.array([200, 30, 60] * 2) / math.sqrt(2 * (200**2 + 30**2 + 60**2))
    found = opened(vectors, dtype=dtype)
    assert_found(found.search(Query(terms)), by_formula(vectors, parts, [1, 4, -5 / 6]))
    shares = [1, 4, -0.5 * 22 / 9, 7 / 3 / ratio_of(vectors, image)]
    both = Query(terms, tmp_path / "crop.png", image_weight=0.7)
    assert_found(found.search(both), by_formula(vectors, [*parts, image], shares))
    content = (tmp_path / "crop.png").read_bytes()
    assert_found(found.search(Query(image=content, image_weight=3.0), top=200), vectors.astype(float) @ image, 200)
    assert_found(found.search(Query((Term("red", -2.0),))), -vectors.astype(float) @ text_vector("red"))


def test_what_a_sentence_negates_is_an_unwanted_term(opened):
    """A third of the two phrases that are wanted."""
    vectors = draw(200)
    answer = opened(vectors).search("a red hat and a blue bag, without black shoes")
    assert answer.terms == (Term("a red hat and a blue bag"), Term("black shoes", -1.0))
    assert_found(answer, by_formula(vectors, [text_vector("red", "blue"), text_vector("black")], [2, -2 / 3]))
    assert [(phrase.text, phrase.wanted) for phrase in answer.results[0].phrases] == [
        ("red hat", True), ("blue bag", True), ("black shoes", False),
    ]  # fmt: skip


def test_a_word_that_no_caption_has_gets_a_suggestion_and_is_searched_as_it_is(opened):
    answer = opened(draw(5)).search(Query((Term("a wmoan in a rde coat"), Term("red hat"))))
    assert answer.suggestions == {"a wmoan in a rde coat": "a woman in a red coat"}
    assert answer.terms == (Term("a wmoan in a rde coat"), Term("red hat"))


def test_more_like_a_row_leaves_that_row_out(opened):
    vectors = draw(50)
    found = opened(vectors)
    scores = vectors.astype(float) @ vectors[17].astype(float)
    scores[17] = -2
    assert_found(found.search(Query(like=17), top=49), scores, 49)
    assert len(found.search(Query(like=17), top=50).results) == 49
    row = vectors[17].astype(float)
    mixed = by_formula(vectors, [text_vector("red"), row], [1, 1 / 3 / ratio_of(vectors, row)])
    mixed[17] = -2
    assert_found(found.search(Query((Term("red hat"),), like=17, image_weight=0.5)), mixed)
    with pytest.raises(UserError, match="no picture with the id 50"):
        found.search(Query(like=50))


def test_rejected_pictures_are_left_out_and_similar_ones_score_lower(opened, folder):
    calibrate(folder)
    vectors = draw(50)
    found = opened(vectors)
    marked = ids_of(found.search("red hat", top=3))
    query = text_vector("red") - 0.25 * vectors[marked].astype(float).mean(0)
    scores = vectors.astype(float) @ query
    scores[marked] = -2
    answer = found.search(Query((Term("red hat"),), unlike=tuple(marked)))
    assert_found(answer, scores)
    assert answer.verdict.startswith("No confidence estimate: calibration covers single sentences")
    gone = (*marked, 50)  # an id that an update has deleted
    assert ids_of(found.search(Query((Term("red hat"),), unlike=gone))) == ids_of(answer)
    nothing = found.search(Query((Term("red hat"),), unlike=tuple(range(50))))
    assert nothing.results == [] and nothing.good is None
    assert nothing.verdict == "No confidence estimate: all 50 pictures are the query's own or were rejected"
    with pytest.raises(UserError, match="rejects 101 pictures; the limit is 100"):
        found.search(Query((Term("red hat"),), unlike=(1,) * 101))


def test_the_sample_is_evenly_spaced_and_small(opened, folder, monkeypatch):
    """Of rows 0, 3, 6 and 9 the share of a row that fits less well is a multiple of an eighth."""
    calibrate(folder)
    monkeypatch.setattr(searcher, "_SAMPLE_ROWS", 4)
    vectors = draw(10)
    found = opened(vectors)
    np.testing.assert_array_equal(found._sample, vectors[[0, 3, 6, 9]])
    answer = found.search(Query((Term("red hat"), Term("blue bag"))))
    shares = {phrase.score * 8 for result in answer.results for phrase in result.phrases}
    assert shares <= set(range(9)) and len(shares) > 2


def test_pictures_that_are_all_alike_have_scores_too(opened, folder):
    calibrate(folder)
    same = text_vector("red", "blue")
    answer = opened([same] * 3).search(Query((Term("red hat"), Term("blue bag"), Term("green shoes"))))
    assert ids_of(answer) == [0, 1, 2]
    assert answer.results[0].score == pytest.approx(2 / 3 * math.sqrt(0.5))
    assert answer.results[2].phrases == (Phrase("red hat", 0.5), Phrase("blue bag", 0.5), Phrase("green shoes", 0.5))


def test_a_phrase_has_the_share_of_pictures_that_fit_it_less_well(opened, folder):
    calibrate(folder)
    # Red: 1, 0.6, 0.6, 0. Blue: 0, 0.8, -0.8, 1. One that is equal, as each is to itself, counts half.
    vectors = np.array([(1, 0), (0.6, 0.8), (0.6, -0.8), (0, 1)]) @ np.eye(2, DIMENSION)
    answer = opened(vectors).search(Query((Term("A red hat and a blue bag."), Term("blue bag", -1.0))))
    phrases = {result.id: result.phrases for result in answer.results}
    red, blue = [0.875, 0.5, 0.5, 0.125], [0.375, 0.625, 0.125, 0.875]
    expected = {i: (Phrase("red hat", red[i]), Phrase("blue bag", blue[i])) for i in range(4)}
    assert phrases == expected


def test_phrases_that_the_model_cannot_tell_have_no_fit(opened, folder):
    """Of hats validation shows enough, of bags too little, of shoes too few, and of coats nothing."""
    calibrate(folder, nouns={"hat": [0.7, 5], "bag": [0.69, 50], "shoe": [0.9, 4]})
    (first, *_) = opened(draw(5)).search("red hat, blue bag, green shoes, black coat").results
    assert [phrase.score is None for phrase in first.phrases] == [False, True, True, True]


def test_products_that_differ_by_rounding_alone_are_equal(opened, folder):
    calibrate(folder)
    vectors = np.full((2, DIMENSION), 0.5, np.float32)
    vectors[1, 0] = np.nextafter(np.float32(0.5), np.float32(1))  # 6e-8 redder
    answer = opened(vectors).search("red hat")
    assert [result.phrases[0].score for result in answer.results] == [0.5, 0.5]


def test_few_shapes_of_texts_are_compiled(opened, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        "ivt_jax.retrieval.queries.encoder.encode_texts",
        lambda model, params, ids, mask: shapes.append(ids.shape) or np.ones((len(ids), DIMENSION)),
    )
    found = opened(draw(5))
    for count in range(1, 8):
        found.search(", ".join(f"{colour} hat" for colour in COLOURS[:count]) + " on a man" * count)
    # One call a query, of the sentence and its phrases; a sentence has up to 24 tokens, the length of the model's.
    assert len(shapes) == 7
    assert {rows for rows, _ in shapes} == {4, 8} and {tokens for _, tokens in shapes} == {8, 16, 24}


# ---- which are shown


ANGLES = np.arange(150) * 0.01
FAN = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) @ np.eye(2, DIMENSION)  # the less red, the larger the id
TRACKS = ["a"] * 50 + ["b"] * 50 + [None] * 2 + ["c"] * 48
FANNED = [{"camera": i % 2, "track": track} for i, track in enumerate(TRACKS)]


def test_a_filter_holds_for_what_is_found_and_counted(opened):
    answer = opened(FAN, FANNED).search(Query((Term("red hat"),), where="track = 'b' and camera = 1"), top=3)
    assert (ids_of(answer), answer.searched) == ([51, 53, 55], 25)
    assert answer.results[0].metadata == {"camera": 1, "track": "b"}


def test_group_keeps_the_best_of_each_value_and_rows_without_a_value(opened):
    found = opened(FAN, FANNED)
    assert ids_of(found.search("red hat", top=10, group="track")) == [0, 50, 100, 101, 102]
    assert len(found.store.asked) <= 4
    assert ids_of(found.search("red hat", top=2, group="track")) == [0, 50]
    asked = Query((Term("red hat"),), where="not track = 'a'")
    assert ids_of(found.search(asked, top=3, group="track")) == [50, 100, 101]
    assert ids_of(found.search(asked, top=3, group="camera")) == [50, 51]
    asked = Query((Term("red hat"),), where="not track in ('a', 'b')")
    assert ids_of(found.search(asked, top=10, group="track")) == [100, 101, 102]  # found again, and not shown again


def test_near_duplicates_of_what_is_shown_are_left_out(opened):
    found = opened(FAN, FANNED)
    tenth = math.cos(0.105)  # of two whose ids differ by eleven, the cosine similarity is lower
    assert ids_of(found.search("red hat", top=4, distinct=tenth)) == [0, 11, 22, 33]
    assert ids_of(found.search("red hat", top=100, distinct=tenth)) == list(range(0, 150, 11))
    assert ids_of(found.search(Query(like=0), top=3, distinct=tenth)) == [1, 12, 23]
    # 0 of a, 60 of b, which is 0.6 away from it, then those of no track and of c.
    assert ids_of(found.search("red hat", top=9, group="track", distinct=math.cos(0.595))) == [0, 60, 120]


def test_folded_results_name_the_better_one_that_they_repeat(opened):
    """By a slow rule: the first of its track, otherwise the most similar of the better ones that repeat none."""
    found, tenth = opened(FAN, FANNED), math.cos(0.105)
    for group, distinct in (("", tenth), ("track", None), ("track", tenth), ("", None)):
        expected, shown, tracks = {}, [], {}
        for id in range(150):
            track = FANNED[id]["track"] if group else None
            similarities = {other: float(FAN[id] @ FAN[other]) for other in shown}
            nearest = max(similarities, key=similarities.get, default=None)
            expected[id] = tracks.get(track)
            if expected[id] is None and distinct and nearest is not None and similarities[nearest] > distinct:
                expected[id] = nearest
            if expected[id] is None:
                shown.append(id)
                tracks |= {} if track is None else {track: id}
        for top in (5, 40, 150):  # a longer list begins with the shorter one
            answer = found.search("red hat", top, group, distinct, fold=True)
            assert {result.id: result.folded_under for result in answer.results} == {i: expected[i] for i in range(top)}


def test_a_picture_is_folded_only_under_one_that_looks_the_same(opened):
    """The model has one vector for all five; the second is the first at another size and as JPEG."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).resize((14, 22)).save(smaller, "JPEG")
    found = opened([RED_AXIS] * 5, thumbnails=[picture(1), smaller.getvalue(), picture(2), picture(1), picture(2)])
    results = found.search("red hat", distinct=0.98, fold=True).results
    assert {result.id: result.folded_under for result in results} == {0: None, 1: 0, 2: None, 3: 0, 4: 2}
    black = io.BytesIO()
    Image.new("RGB", (14, 22)).save(black, "JPEG")  # which is not even like itself
    found = opened([RED_AXIS] * 3, thumbnails=[black.getvalue()] * 3)
    found.store.rows[2] = found.store.rows[2]._replace(digest="0")
    results = found.search("red hat", distinct=0.98, fold=True).results
    assert {result.id: result.folded_under for result in results} == {0: None, 1: None, 2: 0}


def test_pictures_as_similar_as_distinct_allows_are_all_shown(opened):
    assert ids_of(opened([RED_AXIS] * 3).search("red hat", distinct=1.0)) == [0, 1, 2]


def test_the_search_for_distinct_pictures_ends(opened, monkeypatch):
    monkeypatch.setattr(searcher, "_DISTINCT_ROWS", 40)
    found = opened(FAN, FANNED)
    assert ids_of(found.search("red hat", top=5, distinct=0.01)) == [0]
    assert found.store.asked == [(10, None), (20, None), (40, None)]


def test_a_plain_search_asks_the_store_once(opened):
    found = opened(FAN, FANNED)
    assert ids_of(found.search("red hat", top=3, exact=True)) == [0, 1, 2]
    assert found.store.asked == [(3, True)]


@pytest.mark.parametrize(
    ("query", "options", "told"),
    [
        ("  ", {}, "the sentence is empty"),
        ("\u200b", {}, "the sentence has no word: describe a person"),
        (Query((Term("red"),), where="colour = 1"), {}, "colour"),
        ("red", {"group": "person"}, 'no field "person"'),
        ("red", {"distinct": 2.0}, "at most 1"),
        (Query(image=b"no picture"), {}, "the image: not a readable image"),
    ],
)
def test_what_cannot_be_asked_is_refused(opened, query, options, told):
    found = opened(FAN, FANNED)
    with pytest.raises(UserError, match=told):
        found.search(query, **options)


def test_heat_is_of_what_can_be_read(opened):
    found = opened(FAN, FANNED)
    found.queries.tokenizer = Words()
    found.queries.tokenizer.encode = lambda texts, length: np.array([[CLS, SEP, 0]] * len(texts))
    with pytest.raises(UserError, match="the sentence has no word that can be read: describe a person"):
        found.heat_maps(0, ["\u200b"])


# ---- what validation says

LEARNED = {
    "slope": 10.0, "offset": -4.0, "threshold": 0.3, "miss": 0.05, "caught": 0.4, "gallery": 1200,
    "nouns": {"hat": [0.9, 20], "coat": [0.9, 9], "red": [0.9, 9], "bag": [0.8, 10], "shoe": [0.75, 12]},
}  # fmt: skip
HALF_RED = [np.array([0.5, math.sqrt(0.75)]) @ np.eye(2, DIMENSION), text_vector("green")]  # of red 0.5 and 0


def calibrate(folder, **changes):
    (folder / "val").mkdir()
    (folder / "val/summary.json").write_text(json.dumps({"calibration": {**LEARNED, **changes}}))


def test_validation_says_how_likely_the_first_is_right(opened, folder):
    calibrate(folder)
    answer = opened(HALF_RED).search("red hat")
    # sigmoid(10 * 0.5 - 4) = 1 / (1 + 1/e) = 73.1 %
    assert answer.results[0].probability == pytest.approx(0.731059, abs=1e-6)
    assert answer.results[1].probability is None
    verdict = "73% likely that the first picture is right, if the person is in the index "
    verdict += "(from validation, with 1,200 pictures)"
    assert (answer.verdict, answer.good) == (verdict, True)


def test_of_a_far_larger_index_validation_says_no_more_than_that_nobody_fits(opened, folder):
    calibrate(folder, gallery=2)
    many = [*HALF_RED, *(text_vector("green") for _ in range(18))]
    assert opened(many).search("red hat").results[0].probability is not None  # ten times as many
    answer = opened([*many, many[-1]]).search("red hat")
    told = "No confidence estimate: calibration with 2 pictures does not cover 21"
    assert (answer.verdict, answer.good, answer.results[0].probability) == (told, None, None)
    assert opened([*many, many[-1]]).search("white hat").good is False


def test_unread_words_are_named(opened):
    found = opened(FAN, FANNED)
    assert found.search("red hat").unread == ""
    assert found.search("rôt red röt rôt hat").unread == 'not read: "rôt röt" (unknown to the model)'
    long = "green " * 22 + "blue " + "white " * 20
    told = f'"blue {"white " * 8}white …" (beyond the 22 tokens that the model reads; split the sentence)'
    both = found.search(Query((Term("red hüt"), Term(long, -1.0))))
    assert both.unread == f'not read: "hüt" (unknown to the model); {told}'
    partly = found.search(Query((Term("red"), Term("hüt"))))
    assert (partly.unread, partly.terms) == ('not read: "hüt" (unknown to the model)', (Term("red"),))
    with pytest.raises(UserError, match='the sentence has no word that the model knows: "hüt"'):
        found.search(Query((Term("hüt"), Term("röt", -1.0))))


def test_what_was_read_in_part_has_no_probability(opened, folder):
    calibrate(folder)
    answer = opened(HALF_RED).search("red hüt")
    told = "No confidence estimate: the model does not read the whole sentence"
    assert (answer.verdict, answer.good, answer.results[0].probability) == (told, None, None)


def test_below_the_threshold_there_is_no_good_match(opened, folder):
    calibrate(folder, threshold=0.51)
    answer = opened(HALF_RED).search("red hat")
    told = "no good match: the best score lies below 0.5100 (from validation, with 1,200 pictures)"
    assert (answer.verdict, answer.good, ids_of(answer)) == (told, False, [0, 1])


def test_a_score_at_the_threshold_is_a_good_match(opened, folder):
    calibrate(folder, threshold=0.5)  # the score of HALF_RED's first
    assert opened(HALF_RED).search("red hat").good is True


def test_damaged_validation_results_are_one_line(opened, folder):
    (folder / "val").mkdir()
    for content in ("{", json.dumps({"calibration": {**LEARNED, "another": 1}}), json.dumps({"calibration": 3})):
        (folder / "val/summary.json").write_text(content)
        with pytest.raises(UserError, match=r"val/summary.json is damaged: evaluate the run again, --mode=evaluate$"):
            opened(HALF_RED)


@pytest.mark.parametrize(
    ("query", "has"),
    [
        (Query((Term("red hat"), Term("blue bag"))), "2 sentences"),
        (Query((Term("red hat", -1.0),)), "an unwanted part"),
        (Query((Term("red hat and no bag"),)), "an unwanted part"),
        (Query((Term("red hat"),), like=1), "a picture"),
        (Query((Term("red hat"),), image=picture(3)), "a picture"),
        (Query(like=1), "a picture"),
        (Query((Term("red hat"),), unlike=(1,)), "rejected pictures"),
        (Query((Term("red hat"),), where="camera = 0"), "a filter"),
    ],
)
def test_calibration_does_not_cover_other_queries(opened, folder, query, has):
    calibrate(folder)
    answer = opened(HALF_RED, [{"camera": 0}, {"camera": 1}]).search(query)
    none = "No confidence estimate: calibration covers single sentences without filters"
    assert (answer.verdict, answer.good) == (f"{none}; this query has {has}", None)
    assert answer.results[0].probability is None


def test_an_export_carries_what_validation_said_and_others_say_nothing(opened, folder):
    answer = opened(HALF_RED).search("red hat")
    assert (answer.verdict, answer.good, answer.results[0].probability) == ("", None, None)
    exported = {"config": {}, "scores": {"val": {"calibration": LEARNED}}}
    (folder / "config.json").write_text(json.dumps(exported))
    assert opened(HALF_RED).search("red hat").good is True


def test_where_nothing_meets_the_filter_there_is_no_good_match(opened, folder):
    calibrate(folder)
    found = opened(HALF_RED, [{"camera": 0}, {"camera": 1}])
    answer = found.search(Query((Term("red hat"),), where="camera = 2"))
    assert answer[:2] == ([], 0)
    assert answer[3:7] == ("no good match: there is no such picture", False, "", "")


@pytest.mark.parametrize("known", [False, True])
def test_an_unfinished_index_says_so_and_gives_no_probability(opened, folder, known):
    if known:
        calibrate(folder)
    told = "the index is unfinished (2 of 20,000 pictures); wait for its build, or run python -m ivt_jax.index again"
    found = opened(HALF_RED, [{"camera": 0}, {"camera": 1}], planned=20_000)
    for query in (
        "red hat",
        Query((Term("red hat"), Term("blue bag"))),
        Query((Term("white hat"),), where="camera = 0"),
    ):
        answer = found.search(query)
        assert (answer.verdict, answer.good, answer.unfinished) == (f"No confidence estimate: {told}", None, told)
        assert [result.probability for result in answer.results] == [None] * len(answer.results) != []
    answer = found.search(Query((Term("red hat"),), where="camera = 2"))
    assert answer[:2] == ([], 0) and answer[3:7] == (f"No such picture yet: {told}", None, "", told)


def test_the_index_is_as_it_was_when_it_was_counted(opened, folder, monkeypatch):
    """A build that ends during a search does not lend it a probability."""
    calibrate(folder)
    found = opened(HALF_RED, planned=3)
    search = found.store.search

    def finish(*arguments):
        found.store.about = dataclasses.replace(found.store.about, planned=0)
        return search(*arguments)

    monkeypatch.setattr(found.store, "search", finish)
    assert "unfinished (2 of 3 pictures)" in found.search("red hat").verdict
    answer = found.search("red hat")
    assert answer.unfinished == "" and answer.results[0].probability == pytest.approx(0.731059, abs=1e-6)


# ---- opening


def test_another_model_or_tokenizer_is_refused_with_the_remedy(opened, folder):
    for about in ({"model": "a" * 64}, {"tokenizer": "a" * 64}):
        (name,) = about
        with pytest.raises(UserError) as refused:
            opened(HALF_RED, **about)
        assert f"made with {name} aaaaaaaaaaaa, {folder} has" in str(refused.value)
        assert "--workdir" in str(refused.value)


def test_the_tokenizer_is_that_of_the_folder_that_is_named(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(searcher, "folder_tokenizer", lambda *args: asked.append(args) or Words())
    Searcher(make_store(HALF_RED), folder, Encoder())
    assert asked == [(folder, Encoder.config)]


def test_a_model_that_moved_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr(searcher, "folder_tokenizer", lambda workdir, config: Words())
    with pytest.raises(UserError, match="the model of the index is not in gone any more: name its folder with --workd"):
        Searcher(make_store(HALF_RED), encoder=Encoder())
    assert Searcher(make_store(HALF_RED, workdir=str(folder)), encoder=Encoder()).about.dimension == DIMENSION


def test_a_sample_grows_with_the_index(opened, folder):
    calibrate(folder)
    found = opened([RED_AXIS, BLUE_AXIS])
    assert found.search("red", top=1).results[0].phrases[0].score == 0.75  # one fits less well, itself counts half
    store = found.store
    store.add([Row(i, f"{i}.jpg", "", 0, 0, {}, np.float32(BLUE_AXIS), b"") for i in range(2, 12)])
    fit = found.search("red coat", top=1).results[0].phrases[0]
    assert fit.score == (11 + 0.5) / 12  # eleven fit less well, itself counts half


def test_the_sample_is_read_again_when_the_rows_are_more_than_a_tenth_more_or_fewer(opened, folder):
    """One red row among n - 1 blue ones: n - 1 of the sample fit "red" less well, and the row itself counts half."""
    calibrate(folder)
    found = opened([RED_AXIS, *[BLUE_AXIS] * 19])

    def share():
        return found.search("red coat", top=1).results[0].phrases[0].score

    def add(ids):
        found.store.add([Row(i, f"{i}.jpg", "", 0, 0, {}, np.float32(BLUE_AXIS), b"") for i in ids])

    assert share() == 19.5 / 20
    add([20, 21])  # a tenth of 20, and no more
    assert share() == 19.5 / 20
    add([22])
    assert share() == 22.5 / 23
    found.store.delete([20, 21])
    assert share() == 22.5 / 23
    found.store.delete([22])
    assert share() == 19.5 / 20


def test_an_index_made_anew_has_to_be_opened_again(opened):
    found = opened([RED_AXIS, BLUE_AXIS], made="first")
    found.store.about = dataclasses.replace(found.store.about, made="second")
    with pytest.raises(UserError, match="another index has replaced the one that is open: open it again"):
        found.search("red")


def test_an_index_that_is_replaced_during_a_search_gives_no_answer(opened, monkeypatch):
    found = opened([RED_AXIS, BLUE_AXIS], made="first")
    encode = found.queries.encode

    def replaced(*arguments):
        found.store.about = dataclasses.replace(found.store.about, made="second")
        return encode(*arguments)

    monkeypatch.setattr(found.queries, "encode", replaced)
    with pytest.raises(UserError, match="another index has replaced the one that is open"):
        found.search("red")


def test_top_below_one_is_refused(opened):
    for top in (-1, 0):
        with pytest.raises(UserError, match=f"1 or more, not {top}"):
            opened([RED_AXIS]).search("red", top=top)


RED_AXIS, BLUE_AXIS = np.eye(DIMENSION)[:2]


def test_an_empty_index_is_refused(opened):
    with pytest.raises(UserError, match="the index has no pictures: add some with python -m ivt_jax"):
        opened([])


# ---- pictures, with the model itself


@pytest.fixture
def shown(workdir, encoder, tmp_path):
    """A searcher of one picture."""
    (tmp_path / "a.png").write_bytes(picture(3))
    small = io.BytesIO()
    Image.open(tmp_path / "a.png").resize((10, 15)).save(small, "PNG")
    config = encoder.config
    store = make_store(
        [np.ones(DIMENSION)], model=encoder.about["model"], tokenizer=folder_tokenizer(workdir, config).digest,
        root=str(tmp_path),
    )  # fmt: skip
    digest = hashlib.sha256(picture(3)).hexdigest()
    store.rows[0] = store.rows[0]._replace(path="a.png", digest=digest, thumbnail=small.getvalue())
    return Searcher(store, workdir, encoder)


def test_heat_is_that_of_the_phrase_over_the_picture(shown, encoder, tmp_path):
    image, heat = shown.heat_maps(0, ["red hat", "long black hair"])
    assert image.size == (20, 30)
    rows, columns = encoder.model.config.grid
    assert heat.shape == (2, rows, columns) and heat.dtype == np.float32 and heat.max() == 1 and heat.min() == 0
    pixels = load_image(tmp_path / "a.png", encoder.size)
    single = shown.queries.embed_texts(["long black hair"])
    np.testing.assert_allclose(heat[1:], explain.heat_maps(encoder, pixels, single), atol=1e-4)
    assert np.abs(heat[0] - heat[1]).max() > 0.01


def test_a_picture_that_is_gone_is_shown_by_its_thumbnail(shown, tmp_path):
    assert hashlib.sha256(shown.thumbnail(0)).digest() == hashlib.sha256(shown.store.rows[0].thumbnail).digest()
    assert shown.thumbnail(1) is None
    assert shown.file("a.png") == tmp_path / "a.png"
    (tmp_path / "a.png").unlink()
    image, heat = shown.heat_maps(0, ["red hat"])
    assert image.size == (10, 15) and heat.max() == 1
    (tmp_path / "a.png").write_bytes(picture(1))  # another one
    assert shown.heat_maps(0, ["red hat"])[0].size == (10, 15)
    with pytest.raises(UserError, match="no picture with the id 1"):
        shown.heat_maps(1, ["red hat"])


def test_no_index_has_files_shown_that_lie_outside_its_folder(shown, tmp_path):
    (tmp_path.parent / "secret.png").write_bytes(picture(3))
    shown.store.rows[0] = shown.store.rows[0]._replace(path="../secret.png")
    assert shown.heat_maps(0, ["red hat"])[0].size == (10, 15)
