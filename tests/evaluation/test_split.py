import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.encoding import embedding
from ivt_jax.evaluation import ranking
from ivt_jax.evaluation import split as evaluation
from ivt_jax.evaluation.protocols import Embeddings, standard


class Colours:
    """Stands for the model: an image's embedding is twice its mean colour, a text's the sum of its tokens' rows."""

    config = SimpleNamespace(vocab_size=4, embedding_width=3, pixel_mean=[0.5] * 3, pixel_deviation=[0.5] * 3)

    def __init__(self):
        self.traces = []

    def apply(self, variables, inputs, mask=None, *, method):
        self.traces.append((method, inputs.shape))
        if method == "embed_image":
            return 2 * inputs.mean((1, 2))
        return (variables["params"]["table"][inputs] * mask[..., None]).sum(1)


TABLE = {"table": np.array([[1e6] * 3, [3, 4, 0], [0, 0, 2], [0, 5, 0]], np.float32)}


def embed_texts(model, params, ids, batch_size):
    """Embeds ids that are padded with 0."""
    return embedding.embed_texts(model, params, ids, ids > 0, batch_size)


def test_embed_images_normalises_twice_and_compiles_once():
    model = Colours()
    red, white, black = (np.broadcast_to(np.uint8(c), (4, 2, 3)) for c in ((255, 0, 0), (255,) * 3, (0,) * 3))
    embedded = embedding.embed_images(model, {}, [np.stack([red, white, red]), black[None]])
    third = 3**-0.5
    expected = [[third, -third, -third], [third] * 3, [third, -third, -third], [-third] * 3]
    np.testing.assert_allclose(embedded, expected, rtol=1e-6)
    assert embedded.dtype == np.float32
    assert model.traces == [("embed_image", (3, 4, 2, 3))]


def test_embed_texts_masks_padding_and_compiles_once():
    model = Colours()
    embedded = embed_texts(model, TABLE, np.array([[1, 0], [2, 0], [1, 3]], np.int32), batch_size=2)
    np.testing.assert_allclose(embedded, [[0.6, 0.8, 0], [0, 0, 1], np.array([3, 9, 0]) / 90**0.5], rtol=1e-6)
    assert model.traces == [("embed_text", (2, 2))]


def test_short_embeddings_have_length_1_too():
    embedded = embed_texts(Colours(), {"table": TABLE["table"] * 1e-6}, np.array([[1]], np.int32), 1)
    np.testing.assert_allclose(embedded, [[0.6, 0.8, 0]], rtol=1e-6)


def test_texts_of_like_length_go_together_and_come_back_in_order(monkeypatch):
    monkeypatch.setattr(embedding, "_MULTIPLE", 2)
    model = Colours()
    rows = [[1, 0, 0, 0, 0], [3, 3, 1, 2, 3], [2, 0, 0, 0, 0], [1, 3, 3, 0, 0], [1, 3, 0, 0, 0], [3, 0, 0, 0, 0]]
    embedded = embed_texts(model, TABLE, np.array(rows, np.int32), batch_size=2)
    sums = np.array([TABLE["table"][[i for i in row if i]].sum(0) for row in rows])
    np.testing.assert_allclose(embedded, sums / np.linalg.norm(sums, axis=1, keepdims=True), rtol=1e-6)
    assert model.traces == [("embed_text", (2, width)) for width in (2, 4, 5)]


def split(monkeypatch, root=Path()):
    """Three images of two persons, the second image with two captions: a model, a source, a tokenizer, a config."""
    colours = np.array([(255, 255, 0), (0, 0, 255), (0, 255, 0)], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (3, 4, 2, 3))
    pipeline = SimpleNamespace(image_batches=lambda source, size, batch_size: iter([images[:2], images[2:]]))
    monkeypatch.setitem(sys.modules, "input_pipeline.pipeline", pipeline)
    source = SimpleNamespace(
        split="test", root=root, images=root / "imgs", persons=np.array([10, 20]), person_ids=np.array([0, 1, 0]),
        paths=["a.jpg", "b.jpg", "c.jpg"],
        captions=[("one",), ("two", "three"), ("one",)], copies=np.array([1, 1, 1]), name="cuhk_pedes",
        pairs=(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 0])), identities=True,
    )  # fmt: skip
    ids = {"one": 1, "two": 2, "three": 3}
    tokenizer = SimpleNamespace(
        encode=lambda texts, length: np.array([[ids[t]] * length for t in texts], np.int32), mask=lambda ids: ids > 0
    )
    config = SimpleNamespace(
        model=SimpleNamespace(image_size=[4, 2]), runtime=SimpleNamespace(eval_batch_size=2),
        text=SimpleNamespace(length={"sentence": 2}),
    )  # fmt: skip
    return Colours(), source, tokenizer, config


def summarise(embeddings, source, step):
    return evaluation.summarise(embeddings, standard(embeddings), source, step)


def test_the_summary_ranks_in_both_directions(monkeypatch):
    model, source, tokenizer, config = split(monkeypatch)
    summary = summarise(evaluation.embed_split(model, TABLE, source, tokenizer, config), source, 300)
    # Cosines with the images yellow (1,1,-1), blue (-1,-1,1), green (-1,1,-1), times sqrt 3:
    # "one" (.6,.8,0): 1.4, -1.4, 0.2; "two" (0,0,1): -1, 1, -1; "three" (0,1,0): 1, -1, 1.
    # "one", twice, finds yellow and green of its person first; "two" finds blue first, "three" finds it last.
    t2i, i2t = summary["t2i"], summary["i2t"]
    assert t2i == pytest.approx(
        {"R1": 75, "R5": 100, "R10": 100, "mAP": 25 * (3 + 1 / 3), "mINP": 25 * (3 + 1 / 3)}, abs=1e-9
    )
    # Yellow finds both "one" first; green finds "three" first, then both "one"; blue finds "two", then "three" ahead
    # of both "one".
    expected = {"R1": 200 / 3, "R5": 100, "R10": 100, "mAP": (1 + 1 + (1 / 2 + 2 / 3) / 2) / 0.03,
                "mINP": (1 + 1 + 2 / 3) / 0.03}  # fmt: skip
    assert i2t == pytest.approx(expected, abs=1e-9)
    assert {key: summary[key] for key in ("queries", "gallery", "persons")} == {
        "queries": 4, "gallery": 3, "persons": 2,
    }  # fmt: skip
    assert summary["interval"]["t2i"]["R5"] == (100.0, 100.0)
    assert summary["protocols"]["standard"] == t2i


def test_intervals_of_both_directions_draw_persons():
    """Person 1 has one image and one caption, which fail; person 2 has 40 of each, which all succeed.

    A quarter of the draws holds person 1 twice and a quarter person 2 twice, so the interval is 0 to 100. If images
    or captions were drawn, its lower end would lie above 90.
    """
    right, wrong = np.tile(np.float32([1, 0]), (40, 1)), np.float32([[0.6, 0.8]])
    persons = np.array([1] + [2] * 40)
    # All captions and images of person 2 are (1, 0); those of person 1 are nearer to that than to each other.
    split = Embeddings(
        image=np.concatenate([wrong, right]), text=np.concatenate([wrong * [1, -1], right]).astype(np.float32),
        image_person=persons, text_person=persons, text_image=np.arange(41), image_copies=np.ones(41, int),
    )  # fmt: skip
    source = SimpleNamespace(name="cuhk_pedes", root=Path("nowhere"), identities=True)
    summary = summarise(split, source, 1)
    for way in ("t2i", "i2t"):
        assert summary[way]["R1"] == pytest.approx(100 * 40 / 41)
        assert summary["interval"][way]["R1"] == (0.0, 100.0)


def test_the_interval_of_image_to_text_counts_an_image_once_for_each_of_its_records():
    split = Embeddings(
        image=np.eye(2, dtype=np.float32), text=np.float32([[1, 0], [1, 0]]), image_person=np.array([1, 2]),
        text_person=np.array([1, 2]), text_image=np.arange(2), image_copies=np.array([3, 1]),
    )  # fmt: skip
    summary = summarise(split, SimpleNamespace(name="cuhk_pedes", root=Path("nowhere"), identities=True), 1)
    # Both captions fit image 0 alone: for its three records a wrong one ties with the right one, and for image 1, too.
    assert summary["gallery"] == 4 and summary["persons"] == 2 and summary["queries"] == 2
    assert summary["i2t"]["R1"] == 0 and summary["interval"]["i2t"]["R1"] == (0.0, 0.0)


def test_re_ranking_is_a_protocol_of_its_own_where_it_is_asked_for(monkeypatch):
    model, source, tokenizer, config = split(monkeypatch)
    embeddings = evaluation.embed_split(model, TABLE, source, tokenizer, config)
    ranks = standard(embeddings)
    plain, more = (evaluation.summarise(embeddings, ranks, source, 1, rerank)["protocols"] for rerank in (False, True))
    assert set(more) - set(plain) == {"standard, re-ranked"}
    assert set(evaluation.summarise(embeddings, ranks, source, 1)["protocols"]) == set(plain)
    assert set(more["standard, re-ranked"]) == {"R1", "R5", "R10", "mAP", "mINP"}


def test_embeddings_in_half_precision_and_of_length_0_become_float32_vectors():
    class Half(Colours):
        def apply(self, *args, **kwargs):
            return super().apply(*args, **kwargs).astype(jnp.bfloat16)

    grey = np.full((4, 2, 3), 51, np.uint8)  # 2 * (51 / 255 - 0.5) / 0.5 = -1.2, in bfloat16 -1.203125
    embedded = embedding.embed_images(Half(), {}, [grey[None]])
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, [[-(3**-0.5)] * 3], rtol=1e-6)  # bfloat16 would be off by 1e-3
    texts = embed_texts(Half(), {"table": np.zeros((4, 3), np.float32)}, np.array([[1, 2]], np.int32), 1)
    assert texts.dtype == np.float32
    np.testing.assert_array_equal(texts, [[0, 0, 0]])


def test_queries_beyond_the_first_chunk_are_described_by_their_own(monkeypatch):
    model, source, tokenizer, config = split(monkeypatch)
    embeddings = evaluation.embed_split(model, TABLE, source, tokenizer, config)
    arguments = embeddings, source.paths, evaluation.split_captions(source)
    whole = list(evaluation.query_lines(*arguments))
    monkeypatch.setattr(ranking, "_CHUNK", 3)
    assert list(evaluation.query_lines(*arguments)) == whole and len(whole) == 4


def test_a_query_without_a_match_has_no_figures(monkeypatch):
    model, source, tokenizer, config = split(monkeypatch)
    embeddings = evaluation.embed_split(model, TABLE, source, tokenizer, config)
    strange = embeddings._replace(text_person=np.array([10, 99, 20, 10]))
    lines = list(evaluation.query_lines(strange, source.paths, evaluation.split_captions(source)))
    figures = [(line["rank"], line["average_precision"], line["inverse_penalty"]) for line in lines]
    assert figures[1] == (None, None, None) and not any(found["hit"] for found in lines[1]["top"])
    assert figures[0] == figures[3] == (1, 1, 1)


@pytest.mark.parametrize(
    ("stated", "identities", "oracle"), [(61.5, True, 61.5), (None, True, None), (61.5, False, None)]
)
def test_write_results(tmp_path, monkeypatch, stated, identities, oracle):
    """The oracle finds persons; without identities, single images are to be found."""
    root = tmp_path / "data"
    model, source, tokenizer, config = split(monkeypatch, root)
    embeddings = evaluation.embed_split(model, TABLE, source, tokenizer, config)
    np.testing.assert_array_equal(embeddings.text_person, [10, 20, 20, 10])
    root.mkdir()
    source.identities = identities
    if stated:
        (root / "attributes.json").write_text(json.dumps({"oracle": {"val": {"R1": 1}, "test": {"R1": stated}}}))
    summary = summarise(embeddings, source, 300)
    for _ in range(2):  # an evaluation may be repeated
        evaluation.write_results(tmp_path / "test", summary, source, embeddings)
    folder = tmp_path / "test"
    assert sorted(path.name for path in folder.iterdir()) == [
        "embeddings.npz",
        "items.json",
        "queries.jsonl",
        "summary.json",
    ]
    lines = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines] == ["one", "two", "three", "one"]
    # "three" (0,1,0) is as near to yellow as to green, 1/sqrt 3, and finds its own blue last.
    assert lines[2] == {
        "caption": "three", "image": "b.jpg", "person": 20, "rank": 3, "average_precision": pytest.approx(1 / 3),
        "inverse_penalty": pytest.approx(1 / 3),
        "top": [{"image": name, "score": pytest.approx(score, abs=1e-5), "hit": name == "b.jpg"}
                for name, score in (("a.jpg", 3**-0.5), ("c.jpg", 3**-0.5), ("b.jpg", -(3**-0.5)))],
    }  # fmt: skip
    assert summary["step"] == 300 and summary["oracle_R1"] == oracle
    written = json.loads((folder / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert json.loads((folder / "items.json").read_text()) == {
        "root": str(root), "images": str(root / "imgs"), "paths": ["a.jpg", "b.jpg", "c.jpg"],
        "captions": ["one", "two", "three", "one"],
    }  # fmt: skip
    with np.load(folder / "embeddings.npz") as arrays:
        for name, value in embeddings._asdict().items():
            np.testing.assert_array_equal(arrays[name], value)


def test_a_query_lists_the_first_ten_of_the_gallery():
    """Twelve images at growing angles from the caption, which is image 3's."""
    angles = np.arange(12) / 10
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    split = Embeddings(
        image=images, text=images[:1], image_person=np.arange(12), text_person=np.array([3]), text_image=np.array([3]),
        image_copies=np.ones(12, int),
    )  # fmt: skip
    (line,) = evaluation.query_lines(split, [f"{i}.jpg" for i in range(12)], ["a caption"])
    assert [found["image"] for found in line["top"]] == [f"{i}.jpg" for i in range(10)]
    assert [found["hit"] for found in line["top"]] == [i == 3 for i in range(10)]
    assert (line["image"], line["rank"], line["average_precision"]) == ("3.jpg", 4, 0.25)


@pytest.mark.filterwarnings("ignore:.*no match")
def test_persons_are_those_of_the_gallery():
    """Two persons have a caption, and a third an image alone."""
    split = Embeddings(
        image=np.eye(3, dtype=np.float32), text=np.eye(3, dtype=np.float32)[:2], image_person=np.arange(3),
        text_person=np.arange(2), text_image=np.arange(2), image_copies=np.array([1, 1, 2]),
    )  # fmt: skip
    summary = summarise(split, SimpleNamespace(name="cuhk_pedes", root=Path("nowhere"), identities=True), 1)
    assert (summary["persons"], summary["gallery"], summary["queries"]) == (3, 4, 2)


def test_a_split_is_embedded_at_the_size_of_the_model_and_the_length_of_sentences(monkeypatch):
    model, source, tokenizer, config = split(monkeypatch)
    config.text.length.update({"phrase": 7, "word": 8})
    config.runtime.batch_size = 9
    batches, encode, asked = sys.modules["input_pipeline.pipeline"].image_batches, tokenizer.encode, []
    monkeypatch.setattr(
        sys.modules["input_pipeline.pipeline"], "image_batches", lambda *args: asked.append(args[1:]) or batches(*args)
    )
    monkeypatch.setattr(tokenizer, "encode", lambda texts, length: asked.append(length) or encode(texts, length))
    source.copies = np.array([2, 1, 3])
    found = evaluation.embed_split(model, TABLE, source, tokenizer, config)
    assert asked == [((4, 2), 2), 2]
    assert (found.text_image.tolist(), found.image_copies.tolist()) == ([0, 1, 1, 2], [2, 1, 3])
    assert (found.image_person.tolist(), found.text_person.tolist()) == ([10, 20, 10], [10, 20, 20, 10])
