"""The benchmark measures a split like a trained model's, here a small one."""

import numpy as np

from ivt_jax.benchmarks import ranking as benchmark
from ivt_jax.evaluation.protocols import standard
from ivt_jax.evaluation.ranking import mean_scores, query_scores


def test_a_drawn_split_has_unit_vectors_and_is_neither_hopeless_nor_perfect():
    split = benchmark.draw_split(queries=90, gallery=60, persons=20, width=32)
    for vectors in (split.image, split.text):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.bincount(split.image_person), np.full(20, 3))
    np.testing.assert_array_equal(split.text_person, split.image_person[split.text_image])
    assert 10 < mean_scores(query_scores(standard(split)["t2i"]))["R1"] < 95  # by chance 5


def test_every_piece_is_measured(capsys):
    benchmark.main(["--queries=30", "--gallery=20", "--persons=5", "--width=8", "--rerank"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["seconds", "peak,", "MiB"] and lines[1].startswith("embeddings ")
    pieces = ["scores, intervals, protocols", "queries.jsonl", "calibration", "re-ranking"]
    for line, piece in zip(lines[2:], pieces, strict=True):
        assert line.startswith(piece)
        seconds, peak = map(float, line.removeprefix(piece).split())
        assert seconds >= 0 and 10 < peak < 100_000  # MiB: neither kB nor GB
