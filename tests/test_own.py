"""A table of own data from training to the report, the model card, the matrix and an index."""

import csv
import json
import shutil

import pytest

from configs import own
from input_pipeline import opening, prepare
from input_pipeline.datasets import parse_datasets
from input_pipeline.joint import JointSource
from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import say_once
from ivt_jax.evaluation import cross_domain
from ivt_jax.export.run import export
from ivt_jax.pages.report import write_report
from ivt_jax.retrieval.indexing.sources import read_list
from ivt_jax.training import loop, validation
from ivt_jax.training.config_check import check_config
from tests.input_pipeline.test_doctor import encoded, scene
from tests.test_configs import SIZES, flatten


def test_the_config_of_own_data_needs_no_download_except_for_pretrained_models():
    for variant in ("", "release", "smoke", "small"):
        config = own.get_config(variant)
        assert (config.data.name, config.text.tokenizer, config.model.vocab_size) == ("own", "", 2726)
        check_config(config)
    assert own.get_config("vlmo").text.tokenizer == "bert-base-uncased"
    whole, smoke = flatten(own.get_config()), flatten(own.get_config("smoke"))
    assert {key for key in whole if whole[key] != smoke[key]} == SIZES - {"text.tokenizer", "model.vocab_size"}
    with pytest.raises(ValueError, match=r"no variant :large; it has \(none\), :release, .*, :vlmo, :small$"):
        own.get_config("large")


def write_table(folder, pedes_root):
    """A table of the persons of `pedes_root`, with a caption, a person and a camera in each row."""
    records = json.loads((pedes_root / "reid_raw.json").read_text())
    shutil.copytree(pedes_root / "imgs", folder / "crops")
    with (folder / "my shop.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "person", "camera"])
        for record in records:
            name = f"person {record['id']}"
            writer.writerow([f"crops/{record['file_path']}", record["captions"][0], name, 3])
    return folder / "my shop.csv"


@pytest.fixture(scope="module")
def run(pedes_root, tmp_path_factory):
    """The table, and the workdir of a run on it of two steps."""
    folder = tmp_path_factory.mktemp("own data")
    path = write_table(folder, pedes_root)
    config = own.get_config("smoke")
    config.data.root, config.train.steps = str(path), 2
    config.mla.levels, config.mla.views = ("sentence",), 1  # less to compile
    config.bmm.update({"word_weight": 0.0, "patch_weight": 0.0, "align": "off"})
    loop.train_and_evaluate(config, folder / "run")
    return path, folder / "run", config


def test_a_run_divides_the_persons_and_writes_the_division(run):
    _, workdir, config = run
    lines = list(csv.DictReader((workdir / "splits.csv").open()))
    assert len(lines) == 30 and lines[0].keys() == {"image", "person", "split"}
    split_of = {line["person"]: line["split"] for line in lines}
    assert sorted(split_of.values()) == ["test", *["train"] * 8, "val"]
    for split in ("train", "val", "test"):
        paths = opening.open_split(config, split).paths
        assert paths == [line["image"] for line in lines if line["split"] == split]
    summary = json.loads((workdir / "test/summary.json").read_text())
    assert (summary["queries"], summary["persons"], summary["last"]["step"]) == (3, 1, 2)


def test_report_and_model_card_have_the_name_of_the_table(run):
    _, workdir, _ = run
    assert "<h1>IVT on my shop</h1>" in (workdir / "report.html").read_text()
    text = (export(workdir, ["safetensors"]) / "README.md").read_text()
    assert "# IVT, trained on my shop" in text and "my shop, test, protocol `standard`: 3 captions, 3 images" in text
    assert "consent" in text and "PEDES-Synth" not in text and "Published sizes" not in text
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["data"]["title"] = "The shop"
    (workdir / "config.json").write_text(json.dumps(record))
    assert "<h1>IVT on The shop</h1>" in write_report(workdir).read_text()


def test_the_matrix_takes_several_tables(run, pedes_root, tmp_path):
    path, workdir, config = run
    with (tmp_path / "other.csv").open("w") as file:  # without a test split
        file.write("image,caption,split\na.jpg,x,train\n")
    given = [f"own:{path}", f"cuhk:{pedes_root}", f"own:{tmp_path / 'other.csv'}"]
    datasets = parse_datasets(given, "--datasets")
    assert [(d.name, d.root) for d in datasets] == [
        ("own", str(path)), ("cuhk_pedes", str(pedes_root)), ("own", str(tmp_path / "other.csv")),
    ]  # fmt: skip
    cells = cross_domain.cross_domain([workdir], datasets[:2], config)
    assert [(cell["tested_on"], cell["gallery"]) for cell in cells] == [("my shop", 3), ("CUHK-PEDES", 6)]
    assert cross_domain.matrix(cells).splitlines()[0].split() == ["trained", "on", "my", "shop", "CUHK-PEDES"]
    with pytest.raises(UserError, match=r"other.csv has no test records to score \S+"):
        cross_domain.cross_domain([workdir], datasets[2:], config)


def test_the_table_is_the_list_of_an_index(run):
    path, _, _ = run
    source = read_list(path)
    assert len(source.pictures) == 30 and source.fields["camera"] == "integer" and not source.unreadable


# ---- preparing

HEAD = "image,caption,person,split\n"


@pytest.fixture
def scenes(tmp_path):
    """A folder with a table of three persons, one in each split; val's picture is train's at half size."""
    folder = tmp_path / "scenes"
    (folder / "crops").mkdir(parents=True)
    for name, seed, size in (("train", 1, 40), ("val", 1, 20), ("test", 2, 40), ("more", 3, 40)):
        (folder / f"crops/{name}.jpg").write_bytes(encoded(scene(seed, (size, size // 2)), quality=95))
    rows = [f"crops/{name}.jpg,A man.,{name},{name}" for name in ("train", "val", "test")]
    (folder / "my.csv").write_text("\n".join([HEAD.strip(), *rows, "crops/more.jpg,A boy.,ben,train\n"]))
    return folder


def open_split(root, split="train", max_damaged=0.0):
    config = own.get_config("smoke")
    config.data.root, config.data.max_damaged = str(root), max_damaged
    return opening.open_split(config, split)


def test_a_missing_test_split_cannot_choose_the_checkpoint(scenes):
    (scenes / "my.csv").write_text((scenes / "my.csv").read_text().replace(",test\n", ",train\n"))
    config = own.get_config("smoke")
    config.data.root = str(scenes)
    source = JointSource(opening.open_parts(config, "train"))
    validation.refuse_empty_selection(config, source)
    config.train.select_on = "test"
    with pytest.raises(UserError, match=r"my.csv has no test records to select on; set --config.train.select_on=val"):
        validation.refuse_empty_selection(config, source)


def test_near_copies_in_other_splits_are_said_when_data_are_prepared_and_opened(scenes, capsys):
    line = f"warning: {scenes}: 1 image like an image of another split (crops/val.jpg = crops/train.jpg): figures of"
    for _ in range(2):
        say_once.cache_clear()
        assert open_split(scenes).paths == ["crops/train.jpg", "crops/more.jpg"]
        assert line in capsys.readouterr().err


def test_a_prepared_table_is_portable_without_its_pictures(scenes, tmp_path, capsys):
    assert prepare.main(["--dataset=own", f"--root={scenes}", f"--out={tmp_path}/carried"]) == 0
    assert "published" not in capsys.readouterr().out
    for split in ("train", "val", "test"):
        here, there = open_split(scenes, split), open_split(tmp_path / "carried", split)
        assert here.read([0]) == there.read([0]) and here.paths == there.paths
    shutil.rmtree(tmp_path / "carried/prepared")
    with pytest.raises(UserError, match=r"carried has none of the images: the images of my.csv are expected in it"):
        open_split(tmp_path / "carried")


def test_missing_pictures_are_counted_for_training_and_refused_in_test(scenes, capsys):
    (scenes / "crops/more.jpg").unlink()
    assert open_split(scenes, max_damaged=0.5).damaged.tolist() == [False, True]
    assert "1 damaged training image: other images of the same person are used instead" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"1 of 2 training images are damaged, the first is crops/more.jpg; more than"):
        open_split(scenes)
    (scenes / "crops/test.jpg").unlink()
    with pytest.raises(UserError, match=r"crops/test.jpg not found \(line 4\): the annotations name a missing image"):
        open_split(scenes, max_damaged=0.5)
