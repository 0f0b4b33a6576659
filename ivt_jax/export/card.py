"""The model card of an export: README.md, as the Hugging Face hub shows it. It states only what is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import default
from input_pipeline.annotations import dataset_name, title_of
from input_pipeline.statistics import PUBLISHED
from ivt_jax.pages.render import TEMPLATES, render
from ivt_jax.run.workdir import with_later_keys


def card(record: Mapping[str, Any], formats: Sequence[str]) -> str:
    """Returns the text of README.md.

    record: the content of config.json with "step" and "scores"; keys that its config lacks, because they were added
    to ivt_jax later, count with their defaults. formats: those in the export.
    """
    data = record["config"]["data"]
    height, width = record["config"]["model"]["image_size"]
    config = with_later_keys(ConfigDict(record["config"]), default.get_config()).to_dict()
    more = {
        "dataset": title_of(dataset_name(data)),
        "title": title_of,
        "own": data["name"] == "own",
        "published": PUBLISHED.get(data["name"]),
        "height": height,
        "width": width,
        "config": config,
        "formats": formats,
    }
    return render(TEMPLATES / "card.md", **{**record, **more})
