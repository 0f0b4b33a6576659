"""The model card of an export: README.md, as the Hugging Face hub shows it. It states only what is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.annotations import title_of
from input_pipeline.statistics import PUBLISHED
from ivt_jax.pages.render import TEMPLATES, render


def card(record: Mapping[str, Any], formats: Sequence[str]) -> str:
    """Returns the text of README.md.

    record: the content of config.json with "step" and "scores". formats: those in the export.
    """
    name = record["config"]["data"]["name"]
    height, width = record["config"]["model"]["image_size"]
    sizes = {"height": height, "width": width, "published": PUBLISHED.get(name)}
    return render(TEMPLATES / "card.md", **record, **sizes, dataset=title_of(name), formats=formats)
