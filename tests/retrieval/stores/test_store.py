"""The contract of `VectorStore`, for Lance and for Qdrant.

Qdrant is its client's local mode, or the server that IVT_QDRANT names:

    IVT_QDRANT=http://localhost:6333 python -m pytest tests/retrieval/stores/test_store.py
"""

import dataclasses
import datetime
import os
import re
import shutil
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import QdrantClient, models

from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.ranking import rank_both_ways
from ivt_jax.retrieval.stores import places, qdrant
from ivt_jax.retrieval.stores.lance import LanceStore
from ivt_jax.retrieval.stores.places import create_store, open_store, snapshot
from ivt_jax.retrieval.stores.qdrant import QdrantStore
from ivt_jax.retrieval.stores.store import About, NoIndexError, Row
from ivt_jax.retrieval.stores.where import OPERATORS, PATH, Comparison, Contains, Joined, Missing, Not, OneOf, parse
from tests.retrieval.memory import holds, meets

FIELDS = {
    "camera": "integer", "speed": "number", "indoors": "boolean", "track": "text", "time": "time",
    'id`s "best".x': "text", "id": "integer",
}  # fmt: skip
TEXTS = ["a", "it's", 'say "no"\n', "back\\slash", "`;--", "\N{ROCKET}", "", "%_*"]
MAY = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
DIMENSION = 8
LANCEDB = Path(__file__).parents[2] / "data/lancedb_0_40.zip"


def about(**changes):
    stated = {"model": "m", "tokenizer": "t", "dimension": DIMENSION, "dtype": "float32", "images": {"height": 24},
              "fields": FIELDS, "workdir": "/run", "root": "/crops"}  # fmt: skip
    return About(**{**stated, **changes})


def make_rows(count, first=0, dtype="float32", fields=FIELDS):
    """Vectors of few distinct directions, so that scores tie; every fifth value of metadata is missing."""
    rng = np.random.default_rng(first)
    vectors = rng.choice([-1.0, 1.0], (count, DIMENSION)).astype(dtype) / np.sqrt(DIMENSION).astype(dtype)
    draw = {
        "integer": lambda: int(rng.integers(-2, 3)),
        "number": lambda: float(rng.integers(-4, 5)) / 4,
        "boolean": lambda: bool(rng.integers(2)),
        "text": lambda: TEXTS[rng.integers(len(TEXTS))],
        "time": lambda: MAY + datetime.timedelta(days=int(rng.integers(-3, 4)), microseconds=int(rng.integers(2))),
    }
    rows = []
    for i in range(count):
        metadata = {name: None if rng.random() < 0.2 else draw[kind]() for name, kind in fields.items()}
        path = f'cam\'s {i % 3}/"{first + i}"\n\N{ROCKET}.jpg'
        rows.append(Row(first + i, path, f"{i:064x}", i * 2**33, i + 2**60, metadata, vectors[i], bytes([i % 256, 0])))
    return rows


@pytest.fixture(params=["lance", "qdrant"])
def create(request, tmp_path):
    """create(about): an empty store, and a function that opens it again."""
    places, server = [], os.environ.get("IVT_QDRANT")
    local = QdrantClient(server or ":memory:") if request.param == "qdrant" else None

    def make(stated):
        places.append(f"test-{uuid.uuid4().hex}")
        name = places[-1]
        if local is None:
            return create_store(tmp_path / name, stated), lambda: open_store(tmp_path / name)
        return QdrantStore.create_in(local, name, stated), lambda: QdrantStore(local, name)

    yield make
    for name in places if local else ():
        local.delete_collection(name)


def same(found, expected, vectors=True, thumbnails=True):
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row[:6] == wanted[:6]
        assert (row.thumbnail == wanted.thumbnail) if thumbnails else row.thumbnail is None
        if vectors:
            assert row.vector.dtype == wanted.vector.dtype
            np.testing.assert_array_equal(row.vector, wanted.vector)
        else:
            assert row.vector is None
    return True


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_added_rows_are_read_back_to_the_bit(create, dtype):
    store, reopen = create(about(dtype=dtype))
    rows = make_rows(30, dtype=dtype) + make_rows(20, first=100, dtype=dtype)
    store.add(rows[:30])
    store.add(rows[30:])
    for opened in (store, reopen()):
        assert opened.about == about(dtype=dtype)
        assert opened.count() == 50
        assert same([*opened.scan(vectors=True, thumbnails=True)], rows)
        assert same([*opened.scan()], rows, vectors=False, thumbnails=False)
        assert same(opened.get([105, 3, 99, 0], thumbnails=True), [rows[35], rows[3], rows[0]], vectors=False)


def test_an_empty_index_answers(create):
    store, _ = create(about())
    scores, ids = store.search(np.ones((2, DIMENSION), np.float32), 5)
    assert scores.shape == ids.shape == (2, 0)
    assert store.count() == 0 and [*store.scan()] == [] and store.get([1]) == []


def test_adding_and_deleting_no_rows_changes_nothing(create):
    store, _ = create(about())
    rows = make_rows(3)
    store.add(rows)
    store.add([])
    store.delete([])
    assert same([*store.scan(vectors=True, thumbnails=True)], rows)


def test_deleted_rows_are_gone_and_the_others_stay(create):
    store, reopen = create(about())
    rows = make_rows(40)
    store.add(rows)
    query = rows[7].vector[None]
    store.search(query, 3)
    store.delete([7, 0, 39, 1234])
    left = [row for row in rows if row.id not in (7, 0, 39)]
    for opened in (store, reopen()):
        assert same([*opened.scan(vectors=True, thumbnails=True)], left)
        assert 7 not in opened.search(query, 40)[1] and opened.search(query, 40)[1].shape == (1, 37)
    store.add(make_rows(1, first=40))
    assert [row.id for row in reopen().scan()][-1] == 40


def test_a_path_may_have_two_rows_until_the_older_is_deleted(create):
    """`add` deletes no row of the same path, so a path always has a row while its row is replaced."""
    store, reopen = create(about())
    rows = make_rows(6)
    newer = [row._replace(id=row.id + 10, vector=-row.vector, changed=row.changed + 1) for row in rows]
    store.add(rows)
    store.add(newer)
    for opened in (store, reopen()):
        assert same([*opened.scan(vectors=True, thumbnails=True)], rows + newer)
        assert {*opened.search(rows[0].vector[None], 12)[1][0].tolist()} == {*range(6), *range(10, 16)}
    store.delete([row.id for row in rows])
    assert same([*reopen().scan(vectors=True, thumbnails=True)], newer)


def test_only_an_unfinished_build_states_keys_that_older_versions_do_not_know(create):
    store, reopen = create(about())
    assert "unfinished" not in about().to_json()
    for number in (0, 7, -1):
        store.set_about(about(unfinished=number))
        assert reopen().about == about(unfinished=number)


def test_count_reads_what_another_process_states(create):
    store, reopen = create(about())
    other = reopen()
    assert "planned" not in about().to_json()  # nor in the indexes of older versions, which are complete
    store.set_about(about(planned=20_000))
    assert other.count() == 0 and other.about == about(planned=20_000)
    store.set_about(about())
    assert other.count() == 0 and other.about == about()


@pytest.mark.parametrize(
    ("stated", "rows", "progress"),
    [
        ({}, 0, None),
        ({"planned": 20_000}, 15_360, " (15,360 of 20,000 pictures)"),
        ({"planned": 20_000}, 20_000, None),
        ({"planned": 20_000}, 20_001, None),
        ({"planned": 20_000, "unfinished": 7}, 19_999, ""),
        ({"unfinished": 7}, 5, None),
    ],
)
def test_an_index_is_unfinished_until_all_its_pictures_are_in(stated, rows, progress):
    message = f"the index is unfinished{progress}; wait for its build, or run python -m ivt_jax.index again"
    assert about(**stated).describe_unfinished(rows) == ("" if progress is None else message)


def test_times_of_files_have_64_bits(create):
    store, reopen = create(about())
    ends = (-(2**63), -1, 0, 2**53 + 1, 2**63 - 1)
    rows = [row._replace(changed=changed, size=2**62) for row, changed in zip(make_rows(5), ends, strict=True)]
    store.add(rows)
    assert [(row.changed, row.size) for row in reopen().scan()] == [(changed, 2**62) for changed in ends]


def draw_condition(rng, rows, depth=0):
    kind = rng.integers(8) if depth < 3 else rng.integers(5)
    name = list(FIELDS)[rng.integers(len(FIELDS))]
    known = [row.metadata[name] for row in rows if row.metadata[name] is not None]
    values = [known[i] for i in rng.integers(len(known), size=3)]
    symbols = ["=", "!="] if FIELDS[name] in ("text", "boolean") else list(OPERATORS)
    parts = [draw_condition(rng, rows, depth + 1) for _ in range(2)] if kind > 4 else []
    text = ["rack", 's "', "\n", "%_", "a", "", "cam"][rng.integers(7)]
    return [
        lambda: Comparison(name, symbols[rng.integers(len(symbols))], values[0]),
        lambda: OneOf(name, tuple(values)),
        lambda: Missing(name),
        lambda: Contains((PATH, "track", 'id`s "best".x')[rng.integers(3)], text),
        lambda: Comparison(PATH, "!=", rows[rng.integers(len(rows))].path),
        lambda: Not(parts[0]),
        lambda: Joined("and", tuple(parts)),
        lambda: Joined("or", tuple(parts)),
    ][kind]()


def test_search_equals_brute_force_under_any_filter(create):
    store, _ = create(about())
    rows, rng = make_rows(150), np.random.default_rng(1)
    store.add(rows)
    queries = rng.normal(size=(2, DIMENSION)).astype(np.float32)
    products = queries.astype(float) @ np.array([row.vector for row in rows], float).T
    sizes = set()
    for condition in [None, *(draw_condition(rng, rows) for _ in range(80))]:
        chosen = [row.id for row in rows if meets(condition, row)]
        assert store.count(condition) == len(chosen), condition
        scores, ids = store.search(queries, 200, condition, exact=True)
        assert scores.dtype == np.float32 and ids.dtype == np.int64
        for query in range(2):
            assert sorted(ids[query]) == chosen
            np.testing.assert_allclose(scores[query], products[query][ids[query]], atol=1e-6)
            assert np.all(scores[query][1:] <= scores[query][:-1])
        sizes.add(len(chosen))
    assert len(sizes) > 20


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("path = 'gate 3/a.jpg'", [0]),
        ("path contains 'gate'", [0, 2]),  # in the middle of a word as well
        ("path contains 'Gate'", []),
        ("path contains '%' or path contains '_'", [1]),
        ("path in ('hall/b_%.jpg', 'x') or path > 'navi'", [1, 2]),
        ("track contains '1'", [1]),  # row 0 has no track, row 2 is empty
        ("not track contains '1'", [0, 2]),
        ("track contains '' and not path contains 'x'", [1, 2]),
        ("camera between 3 and 4", [0, 1]),
        ("not camera between 3 and 4", [2]),
        ("time between '2024-05-01' and '2024-05-02'", [0, 1]),  # both ends count
        ("camera between 4 and 4 and time between '2024-05-02' and '2024-05-02'", [1]),
    ],
)
def test_paths_parts_of_texts_and_ranges_are_found(create, text, ids):
    """Three pictures; the third is of 2 May, one microsecond after midnight, so outside of the range."""
    fields = {"camera": "integer", "track": "text", "time": "time"}
    store, _ = create(about(fields=fields))
    paths, tracks = ["gate 3/a.jpg", "hall/b_%.jpg", "navigate/c.jpg"], [None, "t1", ""]
    times = [MAY, MAY + datetime.timedelta(days=1), MAY + datetime.timedelta(days=1, microseconds=1)]
    metadata = [
        {"camera": 3 + i, "track": track, "time": time}
        for i, (track, time) in enumerate(zip(tracks, times, strict=True))
    ]
    rows = make_rows(3, fields=fields)
    store.add([row._replace(path=path, metadata=known) for row, path, known in zip(rows, paths, metadata, strict=True)])
    condition = parse(text, fields)
    if "path >" in text and isinstance(store, QdrantStore):
        with pytest.raises(UserError, match=r"^path >: Qdrant cannot order text; use =, != or in$"):
            store.count(condition)
        return
    assert store.count(condition) == len(ids)
    assert sorted(store.search(np.ones((1, DIMENSION), np.float32), 5, condition, exact=True)[1][0].tolist()) == ids


def test_times_of_any_year_are_compared(create):
    store, _ = create(about(fields={"time": "time"}))
    ends = datetime.datetime.min, datetime.datetime(1969, 12, 31, 23, 59, 59, 999999), datetime.datetime.max
    times = [None, *(time.replace(tzinfo=datetime.UTC) for time in ends)]
    rows = [row._replace(metadata={"time": time}) for row, time in zip(make_rows(4), times, strict=True)]
    store.add(rows)
    assert [row.metadata["time"] for row in store.scan()] == times
    for symbol in OPERATORS:
        for time in times[1:]:
            condition = Comparison("time", symbol, time)
            assert store.count(condition) == sum(holds(condition, row.metadata) for row in rows), condition
    assert store.count(OneOf("time", (times[1], times[3]))) == 2


@pytest.mark.parametrize("parts", [(slice(30, 60), slice(30)), (slice(10), slice(40, 60), slice(10, 40))])
def test_of_equal_scores_the_smaller_id_is_first(create, parts):
    store, _ = create(about())
    rows = make_rows(60)
    for part in parts:
        store.add(rows[part])
    query = rows[0].vector
    _, ids = store.search(query[None], 60)
    products = np.array([row.vector for row in rows], float) @ query.astype(float)
    assert ids[0].tolist() == sorted(range(60), key=lambda i: (-round(products[i], 5), i))


def test_fields_come_and_go(create):
    store, reopen = create(about())
    rows = make_rows(10)
    store.add(rows)
    fields = {"track": "text", "camera": "text", "new": "time", "id": "integer"}  # camera was an integer
    store.set_about(about(fields=fields, root="/moved"))
    for opened in (store, reopen()):
        assert opened.about == about(fields=fields, root="/moved")
        kept = [{"track": row.metadata["track"], "camera": None, "new": None, "id": row.metadata["id"]} for row in rows]
        assert [row.metadata for row in opened.scan()] == kept
    later = make_rows(5, first=20, fields=fields)
    store.add(later)
    assert same(reopen().get(range(20, 25), vectors=True, thumbnails=True), later)
    assert store.count(Missing("new")) == 10 + sum(row.metadata["new"] is None for row in later)


def test_more_rows_than_are_read_together_are_all_found(create, monkeypatch):
    for kind in ("lance", "qdrant"):
        monkeypatch.setattr(f"ivt_jax.retrieval.stores.{kind}._AT_ONCE", 7)
    store, _ = create(about())
    rows = make_rows(100)
    store.add(rows)
    assert same([*store.scan(vectors=True, thumbnails=True)], rows)
    assert store.ids().tolist() == [*range(100)]
    assert same(store.get(range(99, -1, -1), vectors=True, thumbnails=True), rows[::-1])
    assert sorted(store.search(rows[0].vector[None], 100)[1][0].tolist()) == [*range(100)]
    assert [*store.value_counts("camera", 5)] == [-2, -1, 0, 1, 2]
    store.delete(range(3, 97))
    assert same([*store.scan(vectors=True, thumbnails=True)], rows[:3] + rows[97:])


def test_the_values_of_a_field_are_counted_if_they_are_few(create):
    store, _ = create(about())
    assert store.value_counts("track", 5) == {}
    rows = make_rows(150)
    store.add(rows)
    for field in ("camera", "indoors", "track", 'id`s "best".x'):
        values = [row.metadata[field] for row in rows if row.metadata[field] is not None]
        expected = [(value, values.count(value)) for value in sorted({*values})]
        assert [*store.value_counts(field, len(expected)).items()] == expected and len(expected) > 1
        assert store.value_counts(field, len(expected) - 1) is None


def test_an_optimised_index_holds_the_same(create):
    store, reopen = create(about())
    rows = make_rows(60)
    for start in range(0, 60, 6):
        store.add(rows[start : start + 6])
    store.delete(range(0, 60, 7))
    store.optimize()
    left = [row for row in rows if row.id % 7]
    for opened in (store, reopen()):
        assert same([*opened.scan(vectors=True, thumbnails=True)], left)
    assert store.count(Comparison("camera", "=", 1)) == sum(row.metadata["camera"] == 1 for row in left)


def test_a_snapshot_goes_from_either_store_to_the_other_and_back(create, tmp_path, monkeypatch):
    store, _ = create(about())
    rows = make_rows(25)
    store.add(rows)
    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "optimize", lambda store: pytest.fail("it is stopped"))
        with pytest.raises(pytest.fail.Exception):
            snapshot(store, tmp_path / "unfinished", rows_at_once=10)
    assert open_store(tmp_path / "unfinished").about.model == "of a copy that is not finished"
    first = snapshot(store, tmp_path / "copy", rows_at_once=10)
    client = QdrantClient(":memory:")
    monkeypatch.setattr(places, "create_store", lambda place, stated: QdrantStore.create_in(client, place, stated))
    second = snapshot(first, "again")
    store.delete([0])
    for copy in (first, second):
        assert copy.about.made and dataclasses.replace(copy.about, made="") == about()
        assert same([*copy.scan(vectors=True, thumbnails=True)], rows)


def test_a_ranking_equals_that_of_the_evaluation(create):
    rng = np.random.default_rng(3)
    gallery, texts = (rng.normal(size=(n, DIMENSION)).astype(np.float32) for n in (40, 12))
    gallery, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (gallery, texts))
    store, _ = create(about(fields={}))
    store.add([Row(i, f"{i}", "", 0, 0, {}, vector, b"") for i, vector in enumerate(gallery)])
    _, ids = store.search(texts, 40)
    persons = np.arange(40)  # each query looks for the picture of its own number
    first = rank_both_ways(texts, gallery, np.arange(12), persons)[0].first
    assert [1 + ids[q].tolist().index(q) for q in range(12)] == first.tolist()


def test_qdrant_refuses_to_order_text():
    store = QdrantStore.create_in(QdrantClient(":memory:"), "x", about())
    with pytest.raises(UserError, match="Qdrant cannot order text; use =, != or in"):
        store.count(Comparison("track", "<", "b"))


def test_lance_compares_text_by_its_code_points(tmp_path):
    store = create_store(tmp_path / "index", about(fields={"track": "text"}))
    texts = [*TEXTS, "\uffff", "\N{LATIN SMALL LETTER E WITH ACUTE}", "A", None]
    rows = [row._replace(metadata={"track": text}) for row, text in zip(make_rows(12), texts, strict=True)]
    store.add(rows)
    for symbol in OPERATORS:
        for text in texts[:-1]:
            condition = Comparison("track", symbol, text)
            assert store.count(condition) == sum(holds(condition, row.metadata) for row in rows), condition


def test_qdrant_answers_while_rows_are_deleted(monkeypatch):
    client = QdrantClient(":memory:")
    store = QdrantStore.create_in(client, "x", about())
    store.add(make_rows(6))
    monkeypatch.setattr(store, "count", lambda where: 6)
    store.delete([0, 3])
    scores, ids = store.search(np.ones((2, DIMENSION), np.float32), 10)
    assert scores.shape == (2, 4) and [sorted(line) for line in ids.tolist()] == [[1, 2, 4, 5]] * 2


def test_qdrant_waits_for_its_writes(monkeypatch):
    client, waits = QdrantClient(":memory:"), []
    writes = ("upsert", "delete", "delete_payload", "create_payload_index")

    def watched(name, write):
        return lambda *args, **options: waits.append((name, options.get("wait"))) or write(*args, **options)

    for name in writes:
        monkeypatch.setattr(client, name, watched(name, getattr(client, name)))
    store = QdrantStore.create_in(client, "x", about(fields={"track": "text", "camera": "integer"}))
    store.add(make_rows(2, fields=store.about.fields))
    store.delete([0])
    store.set_about(about(fields={"track": "text"}))
    assert {*waits} == {(name, True) for name in writes}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_qdrant_has_dot_products_in_the_dtype_and_an_exact_search(monkeypatch, dtype):
    client, asked = QdrantClient(":memory:"), []
    store = QdrantStore.create_in(client, "x", about(dtype=dtype))
    stated = client.get_collection("x").config.params.vectors
    assert (stated.size, stated.distance.value, stated.datatype.value) == (DIMENSION, "Dot", dtype)
    store.add(make_rows(3, dtype=dtype))
    query_points = client.query_points
    monkeypatch.setattr(
        client, "query_points", lambda *args, **options: asked.append(options) or query_points(*args, **options)
    )
    for exact in (True, False, None):
        store.search(np.ones((1, DIMENSION), np.float32), 2, exact=exact)
    assert [bool(options["search_params"] and options["search_params"].exact) for options in asked] == [1, 0, 0]


def test_the_key_of_a_qdrant_server_comes_from_the_environment(monkeypatch):
    monkeypatch.setattr("ivt_jax.retrieval.stores.qdrant.QdrantClient", lambda **options: options)
    for key, given in (("secret", "secret"), ("", None)):
        monkeypatch.setenv("QDRANT_API_KEY", key)
        options, name = qdrant._connect("https://host.example:6333/people.v2/")
        assert (options["url"], options["api_key"], name) == ("https://host.example:6333", given, "people.v2")


def clustered(count, dimension=32):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count // 20, dimension))
    vectors = centres[rng.integers(len(centres), size=count)] + 0.4 * rng.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def lance_of(tmp_path, vectors, cameras=1):
    """Returns a LanceStore of the vectors (N, 32); row i has camera i % cameras."""
    stated = about(dimension=32, dtype=vectors.dtype.name, fields={"camera": "integer"})
    store = create_store(tmp_path / "index", stated)
    store.add([Row(i, f"{i}", "", 0, 0, {"camera": i % cameras}, vector, b"") for i, vector in enumerate(vectors)])
    return store


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lances_own_index_finds_nearly_all_and_scores_them_truly(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("ivt_jax.retrieval.stores.lance._READ_THROUGH", 0)
    vectors, queries = clustered(3000).astype(dtype), clustered(3000)[::300]
    store = lance_of(tmp_path, vectors, cameras=2)
    assert isinstance(store, LanceStore)
    store.build_index()
    assert store.recall(queries, 10) >= 0.9
    scores, ids = store.search(queries, 10, Comparison("camera", "=", 1), exact=False)
    assert np.all(ids % 2 == 1)
    for query, own, found in zip(queries, scores, ids, strict=True):
        np.testing.assert_allclose(own, vectors[found].astype(float) @ query.astype(float), atol=1e-6)


@pytest.mark.parametrize(("k", "expected"), [(10, 10), (40, 40), (100, 40)])
def test_of_few_rows_that_meet_a_condition_an_approximate_search_misses_none(tmp_path, k, expected):
    vectors, queries = clustered(4000), clustered(4000)[:2]
    store = lance_of(tmp_path, vectors, cameras=100)
    store.build_index()
    scores, ids = store.search(queries, k, Comparison("camera", "=", 7), exact=False)
    products = queries.astype(float) @ vectors[7::100].T.astype(float)
    order = np.argsort(-products, axis=1)[:, :expected]
    np.testing.assert_array_equal(ids, 100 * order + 7)
    np.testing.assert_allclose(scores, np.take_along_axis(products, order, axis=1), atol=1e-6)
    assert store.search(queries, 10**9, exact=False)[1].shape == (2, 4000)  # more than the index could be asked for


def test_above_the_bound_lances_own_index_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("ivt_jax.retrieval.stores.lance.EXACT_ROWS", 999)
    store = lance_of(tmp_path, clustered(1000))
    monkeypatch.setattr(store, "_read_vectors", lambda: pytest.fail("all vectors are read"))
    message = r"searched approximately: recall@10 (1\.000|0\.9\d\d), of 100 of its own vectors"
    assert re.fullmatch(message, store.optimize())
    assert store.optimize() == ""  # nothing has changed
    store.add([Row(1000, "new", "", 0, 0, {"camera": 0}, clustered(1000)[0], b"")])
    assert {*store.search(clustered(1000)[:1], 2)[1][0].tolist()} == {0, 1000}  # one indexed, one not yet
    assert store.optimize().endswith(", of 91 of its own vectors")  # every 11th of 1001


def test_at_the_bound_all_rows_are_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("ivt_jax.retrieval.stores.lance.EXACT_ROWS", 300)
    store = lance_of(tmp_path, clustered(300))
    assert store.optimize() == ""
    store.build_index()
    monkeypatch.setattr(store, "_search_index", lambda *args: pytest.fail("Lance's index is asked"))
    assert store.search(clustered(300)[7:8], 1)[1] == [[7]]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(tmp_path, value):
    store = create_store(tmp_path / "index", about())
    rows = [*make_rows(2), Row(2, "a.png", "", 0, 0, {}, np.float32([0] * (DIMENSION - 1) + [value]), b"")]
    with pytest.raises(UserError, match=r"index: the vector of 'a\.png' is not finite; leave the picture out"):
        store.add(rows)
    assert store.count() == 0


def test_an_index_of_lancedb_is_read_searched_and_updated(tmp_path, monkeypatch):
    """Of 300 unit vectors, one per 1.2 degrees; the last ten were added after the approximate index, 0 and 1 deleted.

    LanceDB 0.40, which this project used before, wrote the files; the column "place" was added last.
    """
    shutil.unpack_archive(LANCEDB, tmp_path)
    store, east = open_store(tmp_path), np.float32([[1, 0]])
    angle = 2 * np.pi * np.arange(301) / 300
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
    fields = {"camera": "integer", "place": "text"}
    rows = [
        Row(i, f"{i}.png", f"{i:x}", i, 0, {"camera": i % 3, "place": None}, vectors[i], bytes([i % 256]))
        for i in range(301)
    ]
    assert store.about == about(dimension=2, dtype="float16", fields=fields, made="then")
    assert same([*store.scan(vectors=True, thumbnails=True)], rows[2:300])
    # Otherwise the approximate index is not asked.
    monkeypatch.setattr("ivt_jax.retrieval.stores.lance._READ_THROUGH", 0)
    for exact in (True, False):
        assert store.search(east, 4, exact=exact)[1].tolist() == [[299, 2, 298, 3]]
        assert store.search(east, 3, Comparison("camera", "=", 1), exact=exact)[1].tolist() == [[298, 4, 295]]
    store.add(rows[300:])
    store.delete([2])
    store.set_about(about(dimension=2, dtype="float16", fields={"camera": "integer"}))
    monkeypatch.setattr("ivt_jax.retrieval.stores.lance.EXACT_ROWS", 100)
    assert store.optimize().startswith("searched approximately: recall@10 ")
    left = [row._replace(metadata={"camera": row.id % 3}) for row in rows[3:]]
    for opened in (store, open_store(tmp_path)):
        assert same([*opened.scan(vectors=True, thumbnails=True)], left)
        assert opened.search(east, 4)[1].tolist() == [[299, 300, 298, 3]]  # float16 makes 299 equal


def test_whether_a_picture_is_odd_is_kept_and_not_known_in_an_older_index(create, tmp_path):
    store, reopen = create(about())
    marks = ["", "wider than high, as a full frame is", None]
    store.add([row._replace(odd=mark) for row, mark in zip(make_rows(3), marks, strict=True)])
    assert [row.odd for row in reopen().scan()] == [row.odd for row in reopen().get([0, 1, 2])] == marks
    shutil.unpack_archive(LANCEDB, tmp_path)
    older = open_store(tmp_path)
    assert {row.odd for row in older.scan()} == {None}
    fields = {"camera": 1, "place": None}
    older.add([Row(300, "new.png", "", 0, 0, fields, np.float16([1, 0]), b"", "too small")])
    older.set_about(older.about)
    assert [row.odd for row in open_store(tmp_path).get([2, 299, 300])] == [None, None, "too small"]


def test_a_scan_goes_to_its_end_while_another_puts_the_index_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("ivt_jax.retrieval.stores.lance._AT_ONCE", 10)
    store = create_store(tmp_path / "index", about())
    rows = make_rows(40)
    for start in range(0, 40, 10):
        store.add(rows[start : start + 10])
    scan = store.scan(vectors=True, thumbnails=True)
    begun = [next(scan)]
    other = open_store(tmp_path / "index")
    other.delete(range(25))
    other.optimize()
    assert same([*begun, *scan], rows) and store.count() == 15


def test_threads_share_a_store_while_it_changes(tmp_path):
    """Readers see whole additions of ten rows, whatever the writers do."""
    store = create_store(tmp_path / "index", about())
    store.add(make_rows(10))
    reads = (
        lambda: len(store.search(np.ones((1, DIMENSION), np.float32), 1000)[1][0]),
        lambda: len([*store.scan(vectors=True)]),
        store.count,
    )

    def read(what):
        counts = [0]
        while counts[-1] < 200:
            counts.append(what())
        return counts

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read, what) for what in reads]
        for first in range(10, 200, 10):
            store.add(make_rows(10, first=first))
            store.set_about(about(planned=first))
        for reader in readers:
            counts = reader.result(timeout=60)
            assert counts == sorted(counts) and all(count % 10 == 0 for count in counts)


def test_rows_that_another_process_adds_are_found(tmp_path):
    store = create_store(tmp_path / "index", about(dimension=2, fields={}))
    store.add([Row(0, "a", "", 0, 0, {}, np.float32([1, 0]), b"")])
    query = np.float32([[0, 1]])
    assert store.search(query, 1)[1] == [[0]]
    code = (
        "import sys, numpy as np\n"
        "from ivt_jax.retrieval.stores.places import open_store\nfrom ivt_jax.retrieval.stores.store import Row\n"
        "open_store(sys.argv[1]).add([Row(1, 'b', '', 0, 0, {}, np.float32([0, 1]), b'')])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], check=True)
    assert store.search(query, 1)[1] == [[1]] and store.count() == 2 and [row.id for row in store.scan()] == [0, 1]


def test_fields_that_another_process_drops_and_adds_are_no_fault(tmp_path):
    store = create_store(tmp_path / "index", about())
    store.add(make_rows(3))
    assert len(store.get([0, 1])) == 2
    open_store(tmp_path / "index").set_about(about(fields={"track": "text", "new": "integer"}))
    for rows in (store.get([0, 1, 2]), list(store.scan())):
        assert [row.metadata for row in rows] == [{"track": row.metadata["track"], "new": None} for row in make_rows(3)]
    assert store.about.fields == {"track": "text", "new": "integer"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("LanceError(IO): No space left on device (os error 28), /a.rs:1", "No space left on device"),
        ("Invalid user input: no such column, /build/a.rs:12:3, /b.rs:4:5", "Invalid user input: no such column"),
        ("LanceError(IO): Generic S3 error: Not Found, location: x.rs:1:2\nBacktrace", "Generic S3 error: Not Found"),
        ("External error: LanceError(IO): the end is missing", "the end is missing"),
        ("LanceError(IO): ", "OSError"),
    ],
)
def test_an_error_of_lance_is_one_line_without_its_code(tmp_path, monkeypatch, error, reason):
    store = create_store(tmp_path / "index", about())

    def fail(*arguments, **options):
        raise OSError(error)

    monkeypatch.setattr(lance, "write_dataset", fail)
    with pytest.raises(UserError) as raised:
        store.add(make_rows(1))
    assert str(raised.value) == f"{tmp_path}/index: {reason}"


def test_an_index_that_is_made_anew_in_the_same_place_is_another(tmp_path):
    for made, direction in (("first", [1, 0]), ("second", [0, 1])):
        store = create_store(tmp_path / made, about(dimension=2, fields={}, made=made))
        store.add([Row(0, "a", "", 0, 0, {}, np.float32(direction), b"")])
    opened, query = open_store(tmp_path / "first"), np.float32([[1, 0]])
    assert opened.search(query, 1)[0] == [[1]]
    shutil.rmtree(tmp_path / "first")
    shutil.copytree(tmp_path / "second", tmp_path / "first")
    assert opened.search(query, 1)[0] == [[0]] and opened.about.made == "second"


def test_a_place_without_an_index_is_one_line(tmp_path):
    with pytest.raises(NoIndexError, match=r"nowhere is not an index: make it with python -m ivt_jax\.index"):
        open_store(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty/pictures.lance").mkdir(parents=True)
    with pytest.raises(NoIndexError, match="empty is not an index"):
        open_store(tmp_path / "empty")
    create_store(tmp_path / "empty", about())
    with pytest.raises(UserError, match="already exists"):
        create_store(tmp_path / "empty", about())
    with pytest.raises(NoIndexError, match="x is not a collection of the server"):
        QdrantStore(QdrantClient(":memory:"), "x")
    with pytest.raises(UserError, match="names no collection of a Qdrant server; expected http://HOST:6333/NAME"):
        open_store("http://localhost:6333")
    with pytest.raises(UserError, match="Qdrant, collection x: "):
        open_store("http://127.0.0.1:1/x")


def test_a_folder_of_vectors_is_no_index_and_the_error_says_how_to_make_one(tmp_path):
    (tmp_path / "gallery.json").write_text("{}")
    with pytest.raises(UserError) as error:
        open_store(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds vectors of python -m ivt_jax.embed, which are no index: make one with python -m "
        f"ivt_jax.index --vectors={tmp_path} --images=FOLDER --workdir=RUN --index=DIR"
    )
    assert [*tmp_path.iterdir()] == [tmp_path / "gallery.json"]


@pytest.mark.parametrize("stated", [None, "{", '{"model": "m"}', "[]"])
def test_tables_and_collections_of_others_are_refused(tmp_path, stated):
    metadata = {"ivt_jax": stated} if stated else None
    schema = pa.schema([pa.field("id", pa.int64(), metadata=metadata)])
    lance.write_dataset(schema.empty_table(), tmp_path / "foreign/pictures.lance")
    with pytest.raises(UserError, match=r"foreign was not written by ivt_jax.index: name another --index$"):
        open_store(tmp_path / "foreign")
    lance.write_dataset(pa.table({"x": [0]}), tmp_path / "no_ids/pictures.lance")
    with pytest.raises(UserError, match=r"no_ids was not written by ivt_jax.index: name another --index$"):
        open_store(tmp_path / "no_ids")
    client, size = QdrantClient(":memory:"), models.VectorParams(size=2, distance=models.Distance.DOT)
    client.create_collection("x", vectors_config=size, metadata=metadata)
    with pytest.raises(UserError, match=r"^the collection x was not written by ivt_jax.index: name another --index$"):
        QdrantStore(client, "x")


def test_without_its_client_qdrant_is_refused_in_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "ivt_jax.retrieval.stores.qdrant")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    message = r"^Qdrant's client is not installed: pip install -e '\.\[qdrant\]' in the clone of this project$"
    with pytest.raises(UserError, match=message):
        open_store("http://localhost:6333/x")


def test_a_later_format_is_refused(tmp_path):
    create_store(tmp_path / "index", dataclasses.replace(about(), format=2))
    with pytest.raises(UserError, match="has format 2, this ivt_jax reads format 1 and older: update ivt_jax"):
        open_store(tmp_path / "index")


@pytest.mark.parametrize("damage", [lambda content: content[:50], lambda content: b"\xff" * 40 + content[40:]])
@pytest.mark.parametrize("folder", ["data", "_versions"])  # Rust panics at some faults of the latter
def test_a_file_that_is_damaged_is_one_line(tmp_path, folder, damage):
    store = create_store(tmp_path / "index", about())
    store.add(make_rows(20))
    for file in (tmp_path / "index/pictures.lance" / folder).iterdir():
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError) as error:
        open_store(tmp_path / "index").search(np.ones((1, DIMENSION), np.float32), 1)
    assert re.match(rf"{tmp_path / 'index'}(: | is damaged: )", str(error.value)) and "\n" not in str(error.value)
