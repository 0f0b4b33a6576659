"""The model card of an export: README.md, as the Hugging Face hub shows it. It states only what is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import default
from input_pipeline.annotations import title_of
from input_pipeline.datasets import datasets_of, folder_of, title_of_data
from input_pipeline.statistics import PUBLISHED
from ivt_jax.pages.render import TEMPLATES, render
from ivt_jax.run.workdir import with_later_keys


def card(record: Mapping[str, Any], formats: Sequence[str]) -> str:
    """Returns the text of README.md.

    record: the content of config.json with "step" and "scores"; keys that its config lacks, because they were added
    to ivt_jax later, count with their defaults. formats: those in the export.
    """
    height, width = record["config"]["model"]["image_size"]
    config = with_later_keys(ConfigDict(record["config"]), default.get_config()).to_dict()
    datasets, title = datasets_of(config["data"]), title_of_data(config["data"])
    values = {
        "height": height,
        "width": width,
        "published": {d.title: PUBLISHED[d.name] for d in datasets if PUBLISHED.get(d.name)},
        "real": any(d.name not in ("pedes_synth", "own") for d in datasets),
        "own": any(d.name == "own" for d in datasets),
        "generated": any(d.name == "pedes_synth" for d in datasets),
        "config": config,
        "title": title_of,
        "headings": {
            folder_of(split, d.label): f"{d.title}, {split}" for d in datasets for split in ("val", "test")
        },
    }  # fmt: skip
    return render(TEMPLATES / "card.md", **{**record, **values}, dataset=title, formats=formats)
