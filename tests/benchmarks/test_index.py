import re

from ivt_jax.benchmarks import index as benchmark
from ivt_jax.retrieval.stores.store import About


def test_measures_every_method_and_leaves_nothing_behind(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "WANTED", 1)
    (tmp_path / "scratch").mkdir()
    # With fewer rows a product takes less than 0.01 ms, the precision of the table.
    flags = ["--rows=1000,3000", "--dimension=32", "--calls=5", f"--scratch={tmp_path}/scratch", f"--workdir={workdir}"]
    assert benchmark.main(flags) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["search", "rows", "ms, p50", "ms, p95", "time / index", ""]
    names = [line[:2] for line in lines[2:] if line[0] != "faiss"]
    assert names == [
        ["a sentence", "1,000"], ["index", "1,000"], ["nearest", "1,000"], ["matrix product", "1,000"],
        ["index", "3,000"], ["nearest", "3,000"], ["matrix product", "3,000"], ["ivf", "3,000"],
    ]  # fmt: skip
    rows = {tuple(line[:2]): line for line in lines[2:]}
    for name, _, median, late, ratio, _ in rows.values():
        assert 0 < float(median) <= float(late)
        assert name not in ("index", "a sentence") or ratio == "1.00"
    assert re.fullmatch(r"made in \d+ s; recall@10 (1\.000|0\.9\d\d)", rows["ivf", "3,000"][5])
    assert rows["a sentence", "1,000"][5] == "vectors of 12"
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_methods_find_the_same(tmp_path):
    vectors = benchmark.draw_vectors(500, 32)
    queries = benchmark.draw_queries(vectors, 3)
    store = benchmark.make_index(tmp_path / "index", About("", "", 32, "float32", {}, {}, "", ""), vectors)
    calls = benchmark.methods(store, vectors)
    expected = [sorted(range(500), key=lambda i, s=vectors @ query: -s[i])[:10] for query in queries]
    for query, ten in zip(queries, expected, strict=True):
        found = [calls[name](query) for name in ("index", "nearest", "matrix product")]
        assert found[0][1].tolist() == found[1][1].tolist() == [ten] and found[2].tolist() == ten
