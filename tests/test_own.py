"""A table of own data from training to the report, the model card, the matrix and an index."""

import csv
import json
import shutil

import pytest

from configs import own
from input_pipeline import pipeline
from input_pipeline.datasets import parse_datasets
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation import cross_domain
from ivt_jax.export.run import export
from ivt_jax.pages.report import write_report
from ivt_jax.retrieval.sources import read_list
from ivt_jax.training import loop
from ivt_jax.training.config_check import check_config
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
    loop.train_and_evaluate(config, folder / "run")
    return path, folder / "run", config


def test_a_run_divides_the_persons_and_writes_the_division(run):
    _, workdir, config = run
    lines = list(csv.DictReader((workdir / "splits.csv").open()))
    assert len(lines) == 30 and lines[0].keys() == {"image", "person", "split"}
    split_of = {line["person"]: line["split"] for line in lines}
    assert sorted(split_of.values()) == ["test", *["train"] * 8, "val"]
    for split in ("train", "val", "test"):
        paths = pipeline.open_split(config, split).paths
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
