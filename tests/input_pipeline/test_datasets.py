"""Which datasets a config names."""

import pytest

from configs import cuhk, joint
from input_pipeline import datasets
from input_pipeline.datasets import Dataset, datasets_of, parse_datasets, shared_warning, title_of_data
from ivt_jax.common.errors import UserError


def test_a_config_names_one_dataset_or_several():
    assert datasets_of(cuhk.get_config().data) == [Dataset("", "cuhk_pedes", "data/CUHK-PEDES", "CUHK-PEDES")]
    assert datasets_of(joint.get_config().data.to_dict()) == [
        Dataset("cuhk", "cuhk_pedes", "data/CUHK-PEDES", "CUHK-PEDES"),
        Dataset("icfg", "icfg_pedes", "data/ICFG-PEDES", "ICFG-PEDES"),
        Dataset("rstp", "rstp_reid", "data/RSTPReid", "RSTPReid"),
    ]
    assert title_of_data(joint.get_config().data) == "CUHK-PEDES + ICFG-PEDES + RSTPReid"
    assert title_of_data({"name": "joint", "sources": ["cuhk:a", "own:b/shop.csv"]}) == "CUHK-PEDES + shop"
    assert title_of_data({"name": "joint", "sources": ["cuhk:a", "own:b"], "title": "All"}) == "All"
    older = {"name": "rstp_reid", "root": "x", "val_persons": 0.05}  # of a run that knew no sources
    assert datasets_of(older) == [Dataset("", "rstp_reid", "x", "RSTPReid")]


def test_a_dataset_that_is_given_twice_is_numbered():
    parsed = parse_datasets(["synth:a", "cuhk:gs://b/c", "synth:d"], "--datasets")
    assert [(d.label, d.root, d.title) for d in parsed] == [
        ("synth", "a", "PEDES-Synth (synth)"), ("cuhk", "gs://b/c", "CUHK-PEDES"),
        ("synth-2", "d", "PEDES-Synth (synth-2)"),
    ]  # fmt: skip


def test_a_dataset_without_a_name_of_its_own_is_titled_by_its_file():
    parsed = parse_datasets(["own:lists/shop.csv", "own:gs://b/station.jsonl", "own:other/shop.csv"], "--datasets")
    assert [(d.label, d.title) for d in parsed] == [
        ("own", "shop (own)"), ("own-2", "station"), ("own-3", "shop (own-3)"),
    ]  # fmt: skip


def test_a_source_of_another_form_is_one_line():
    with pytest.raises(UserError, match=r"^data.sources=market:x: expected DATASET:DIR with one of cuhk, icfg, rstp"):
        datasets_of({"name": "joint", "sources": ["cuhk:a", "market:x"]})


@pytest.mark.parametrize("given", ["lists/my.csv", "shop:lists/my.csv"])
def test_a_table_without_its_prefix_is_told_the_prefix(given):
    with pytest.raises(UserError, match=rf"^--datasets={given}: .*; for a table, own:lists/my.csv$"):
        parse_datasets([given], "--datasets")


def test_a_dry_run_counts_the_persons_of_all():
    # Of ICFG-PEDES' 3,102, 5% are held out: 155.
    assert datasets.count_training_persons(joint.get_config().data) == 11003 + (3102 - 155) + 3701
    assert datasets.count_training_persons(cuhk.get_config().data) == 11003


def test_two_datasets_with_the_pictures_of_one_are_warned_of():
    icfg, rstp, both = ["icfg_pedes"], ["rstp_reid"], ["cuhk_pedes", "icfg_pedes", "rstp_reid"]
    warned = [(icfg, rstp), (rstp, icfg), (both, icfg), (both, rstp), (both, both)]
    assert all(shared_warning(*pair).startswith("ICFG-PEDES and RSTPReid take") for pair in warned)
    fine = [(icfg, icfg), (both, ["cuhk_pedes"]), (["cuhk_pedes"], both), (["icfg_pedes"] * 2, icfg)]
    assert not any(shared_warning(*pair) for pair in fine)
