import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ivt_jax import report as command
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.protocols import Embeddings, standard
from ivt_jax.evaluation.split import summarise, write_results
from ivt_jax.pages import figures, report

LOSSES = [
    {"step": s, "loss": 9 - s / 100, "mla": 8.0, "words": 4.0, "pairs_per_second": 100 + s, "input_wait": s / 2e4}
    for s in (100, 200, 300)
]
MEASURES = ("R1", "R5", "R10", "mAP", "mINP")
SCORES = {"step": 300, "val/t2i/R1": 31.2, "val/t2i/R5": 60.0, "val/t2i/mAP": 30.0, "val/i2t/R1": 33.0}


def write_run(workdir):
    config = {"data": {"name": "pedes_synth"}, "model": {"width": 128}}
    run = {"config": config, "revision": "abc123", "versions": {"jax": "0.10.2"}, "device": "1 x cpu"}
    (workdir / "config.json").write_text(json.dumps(run))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*LOSSES, SCORES]))


def write_split(workdir, root, attributes=True, split="test", **results):
    """Two persons, two images of each. The first caption finds its person at ranks 2 and 3, the second at 1 and 2."""
    (root / "imgs").mkdir(parents=True)
    paths = ["a.png", "b.png", "c.png", "d.png"]
    for path in paths[:3]:
        Image.new("RGB", (4, 8), "red").save(root / "imgs" / path)  # d.png is missing
    if attributes:
        persons = {"1": {"gender": "man", "upper_colour": "red"}, "2": {"gender": "man", "upper_colour": "dark blue"}}
        (root / "attributes.json").write_text(json.dumps({"persons": persons, "oracle": {"test": {"R1": 87.5}}}))
    text = np.array([[0.6, 0.5, 0.7, 0.1], [0.2, 0.1, 0.9, 0.4]], np.float32)
    image, own = np.eye(4, dtype=np.float32), np.array([0, 3])
    embeddings = Embeddings(image, text, np.array([1, 1, 2, 2]), np.array([1, 2]), own, np.ones(4, int))
    captions = [("A man & <b>",), (), (), ("Another man.",)]
    source = SimpleNamespace(
        name="pedes_synth", split=split, root=root, images=root / "imgs", paths=paths, captions=captions,
        pairs=(own, np.array([0, 0])), identities=True,
    )  # fmt: skip
    last = {"step": 300, "t2i": dict.fromkeys(MEASURES, 12.25), "i2t": dict.fromkeys(MEASURES, 13.5)}
    summary = summarise(embeddings, standard(embeddings), source, 200) | {"selected_on": "val", "last": last} | results
    write_results(workdir / split, summary, source, embeddings)


@pytest.fixture
def page(tmp_path):
    write_run(tmp_path)
    write_split(tmp_path, tmp_path / "data")
    path = report.write_report(tmp_path)
    assert path == tmp_path / "report.html"
    return path.read_text()


def test_strips_outline_hits_and_misses(page):
    strips = [re.findall(r'class="crop (hit|miss)"', strip) for strip in page.split("<article")[1:]]
    first, second = ["miss", "hit", "hit", "miss"], ["hit", "hit", "miss", "miss"]
    assert strips == [first, second, first]  # both captions, then the one that fails
    assert page.count("first hit at rank 2") == 2 and page.count("first hit at rank 1") == 1
    assert page.count("A man &amp; &lt;b&gt;") == 2
    # Of each strip, the crop described and four found; d.png is among those found, and described by the second.
    assert (page.count("data:image/jpeg;base64,"), page.count('title="d.png">not readable')) == (11, 4)


def test_headline_stands_beside_the_oracle_and_chance(page):
    assert re.search(r'class="big">50\.0<', page)
    assert "oracle 87.5" in page and "chance 50" in page and "step 200" in page


def test_page_shows_curves_config_and_environment(page):
    for title in ("Total loss", "Alignment (MLA)", "Masked words", "Validation, text to image"):
        assert f">{title}</text>" in page
    assert "Masked patches" not in page
    for name, value in {"model.width": "128", "git revision": "abc123", "jax": "0.10.2"}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "300 (image, caption) pairs per second" in page
    assert "at most 1.0% of the time" in page


def test_page_is_self_contained(page):
    assert not re.search(r"""((src|href)\s*=|url\()\s*["']?(https?:)?//|@import|<script|<link""", page)


def test_attributes_of_the_first_crop(page):
    """The first caption, of person 1, finds person 2; the second finds its own."""
    assert page.index(">gender<") < page.index(">upper colour<")
    assert 'title="red → dark blue: 100.0 % of 1"' in page and 'title="red → red: 0.0 % of 1"' in page
    assert 'title="dark blue → dark blue: 100.0 % of 1"' in page
    sections = report.attribute_sections(
        {"1": {"hat": "cap"}, "2": {"hat": "none"}, "3": {"hat": "none"}},
        true_ids=np.array([1, 2, 2, 3]), found_ids=np.array([1, 3, 1, 1]), gallery_ids=np.array([1, 2, 2, 3, 3]),
    )  # fmt: skip
    # Shared by the first two. A random crop has a cap with 1/5: (1/5 + 3 * 4/5) / 4 = 65 %.
    assert sections["attributes"] == [{"name": "hat", "share": 50.0, "chance": pytest.approx(65)}]
    assert sections["confusions"] == []


def test_without_attributes_and_without_test_results(tmp_path):
    write_run(tmp_path)
    curves = report.write_report(tmp_path).read_text()
    assert "no test results yet" in curves and "Masked words" in curves and "Test R@1" not in curves
    write_split(tmp_path, tmp_path / "data", attributes=False)
    page = report.write_report(tmp_path).read_text()
    assert "Test R@1" in page and "oracle" not in page and "Attributes of the first crop" not in page


def test_without_a_test_split_the_page_shows_validation_and_says_so(tmp_path):
    write_run(tmp_path)
    write_split(tmp_path, tmp_path / "data", attributes=False, split="val", calibration={"threshold": 0.5})
    assert report.reported_split(tmp_path)[0] == "val"
    page = report.write_report(tmp_path).read_text()
    assert "There is no test split. These are scores of validation, which also chose the checkpoint" in page
    assert "Validation R@1, text to image" in page and "Here 2 validation captions search 4 crops" in page
    assert "Results of 2 validation captions" in page and "test captions" not in page and "Test R@1" not in page
    write_split(tmp_path, tmp_path / "more", attributes=False)
    assert report.reported_split(tmp_path)[0] == "test"
    assert "no test split" not in report.write_report(tmp_path).read_text()


def test_attributes_of_own_data_are_not_those_of_pedes_synth(tmp_path):
    """A file attributes.json may lie beside a table by chance."""
    write_run(tmp_path)
    write_split(tmp_path, tmp_path / "data", attributes=False)
    (tmp_path / "data/attributes.json").write_text('["mine"]')
    assert "Attributes of the first crop" not in report.write_report(tmp_path).read_text()


def test_metrics_cut_short_by_a_crash(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LOSSES[0]) + "\n" + json.dumps(SCORES) + '\n{"step": 2')
    assert report.read_metrics(path) == ([LOSSES[0]], [SCORES])


def test_a_line_of_metrics_may_hold_other_line_breaks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{**LOSSES[0], "note": "a\u2028b\x85c"}, SCORES]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    assert report.read_metrics(path) == (lines[:1], [SCORES])


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert command.main([f"--workdir={tmp_path / 'none'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "metrics.jsonl" in error
    with pytest.raises(UserError):
        report.write_report(tmp_path)


def test_hardest_queries_are_one_of_each_person():
    first = np.array([3, 9, 7, np.nan, 1, 8])
    assert report.hardest_queries(first, np.array([1, 2, 3, 4, 5, 2])) == [1, 2, 0]


def test_sampled_queries_have_a_match_and_do_not_change():
    first = np.where(np.arange(100) % 2, np.nan, 1.0)
    sample = report.sample_queries(first)
    assert len(set(sample.tolist())) == report.QUERIES and not (sample % 2).any()
    np.testing.assert_array_equal(sample, report.sample_queries(first))


def test_chance():
    # The first query has 1 of 4 items, the second 3 of 4, the third none and does not count.
    assert report.chance(np.array([1, 2, 9]), np.array([1, 2, 2, 2])) == pytest.approx(50)


def test_long_curves_are_averaged(monkeypatch):
    monkeypatch.setattr(figures, "_POINTS", 2)
    np.testing.assert_array_equal(figures.thinned([(1, 10), (2, 20), (3, 60), (4, 80)]), [[1.5, 3.5], [15, 70]])


def test_every_protocol_has_its_row(page):
    rows = re.findall(r"<tr><td>(standard|standard-dedup|release)</td>(.*?)</tr>", page)
    figures = {name: [float(x) for x in re.findall(r"<td>([\d.]+)</td>", cells)] for name, cells in rows}
    # The first caption finds its person at ranks 2 and 3 of four, the second at 1 and 2. For the release only the first
    # caption's image is in the gallery, and the second caption has no match there.
    assert figures["standard"] == figures["standard-dedup"] == [50, 100, 100, 79.17, 83.33]
    assert figures["release"][0] == 50


def test_the_last_checkpoint_stands_beside_the_best(page):
    assert re.search(r"Text to image, last step \(300\)</td><td>12\.25</td>", page)
    assert re.search(r"Image to text, last step \(300\)</td><td>13\.50</td>", page)
    assert "chosen without the test split" in page and 'class="warning"' not in page


def test_a_checkpoint_chosen_on_test_has_a_red_warning(tmp_path):
    write_run(tmp_path)
    write_split(tmp_path, tmp_path / "data", selected_on="test")
    page = report.write_report(tmp_path).read_text()
    assert re.search(r'class="warning" role="alert">The checkpoint was chosen on the test split', page)
    assert re.search(r"\.warning \{ color: var\(--bad\)", page) and "--bad: #d8524d" in page
    assert "chosen without the test split" not in page


def test_curves_of_a_split_that_chose(tmp_path):
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 300, "test/t2i/R1": 31.2}) + "\n")
    page = report.write_report(tmp_path).read_text()
    assert ">Test, used for selection, text to image</text>" in page and "Validation" not in page


def test_perturbed_captions_have_their_rows(tmp_path):
    write_run(tmp_path)
    row = {"R1": 40.0, "change": -10.0, "interval": (-12.25, -7.75), "example": "A mna & <b>"}
    write_split(tmp_path, tmp_path / "data", robustness={"typos": row})
    page = report.write_report(tmp_path).read_text()
    cells = "<td>typos</td><td>40.00</td><td>-10.00</td><td>-12.2 to -7.8</td>"
    assert cells in page and "A mna &amp; &lt;b&gt;</td>" in page


def test_absence_is_shown_by_its_curve_and_figures(tmp_path):
    write_run(tmp_path)
    curve = {"false_alarm": [0.0, 0.25, 1.0], "caught": [0.0, 0.75, 1.0]}
    figures = {"threshold": 0.3125, "gallery": 1200, "caught": 0.75, "false_alarm": 0.25, "auc": 0.8125, "ece": 0.0625}
    write_split(tmp_path, tmp_path / "data", calibration=figures | {"roc": curve})
    page = report.write_report(tmp_path).read_text()
    assert "0.312, for galleries of about 1,200 pictures" in page and "<dd>75.0%</dd>" in page
    assert "<dd>0.812</dd>" in page and ">present persons called absent, %</text>" in page


def test_the_matrix_of_datasets_and_its_warning(tmp_path):
    write_run(tmp_path)

    def cell(run, trained_on, tested_on, score, warning=""):
        scores = {"R1": score, "mAP": score / 2}
        return {"run": run, "trained_on": trained_on, "tested_on": tested_on, "t2i": scores, "warning": warning}

    cells = [
        cell("a", "icfg_pedes", "icfg_pedes", 50.0),
        cell("a", "icfg_pedes", "rstp_reid", 40.0, "They may share persons"),
        cell("b", "cuhk_pedes", "icfg_pedes", 30.0),
        cell("b", "cuhk_pedes", "rstp_reid", 20.0),
    ]
    (tmp_path / "cross_domain.json").write_text(json.dumps(cells))
    page = report.write_report(tmp_path).read_text()
    assert "<th>ICFG-PEDES</th><th>RSTPReid</th>" in page
    assert ">a</span></td><td>50.00 / 25.00</td><td>40.00 / 20.00 *</td>" in page
    assert ">b</span></td><td>30.00 / 15.00</td><td>20.00 / 10.00</td>" in page
    assert page.count("They may share persons") == 1
