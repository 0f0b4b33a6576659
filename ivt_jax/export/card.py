"""The model card of an export: README.md, as the Hugging Face hub shows it. It states only what is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.annotations import title_of
from input_pipeline.statistics import PUBLISHED

FRONT = """---
license: other # choose one that the terms of data and initial weights allow
language: en
library_name: ivt_jax
tags:
- text-based-person-retrieval
- jax
---

# {title}

Finds the images of a person from a description in words: a text-based person retrieval model, IVT
([arXiv 2208.08608](https://arxiv.org/abs/2208.08608)), made with ivt_jax. One transformer embeds images and sentences.
The embeddings have length 1; their dot product is the similarity.
"""
CONVERTED = "Converted by `ivt_jax.convert`{source}. What the weights were trained on is not recorded."
DRAWN = "PEDES-Synth is generated: its persons are drawn and resemble nobody."
TERMS = """The images show real people. The owners of the data distribute them under their own terms, separately from
this model. Those terms bind what is trained on the data and may cover these weights."""
USE = """## Intended use and limits

For research on retrieval, with cropped images of one person each, of people who consented or under a license. Not for
covert surveillance, for identifying or following people, or for decisions about them: a high score means that an image
resembles a sentence, not who a person is. The model makes errors, and not evenly; errors by group have not been
measured. The law may restrict or forbid such use.
"""
JAX = """With JAX and the parameters in `params/` (Orbax); FOLDER is this folder, an absolute path:

```python
import orbax.checkpoint as ocp
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.run.workdir import load_config
params = ocp.StandardCheckpointer().restore("FOLDER/params")
model = IVT(IVTConfig.from_config(load_config("FOLDER").model))
```

Then, from `ivt_jax.encoding.embedding`, `encode_images(model, params, images)` embeds images
(B, {height}, {width}, 3), uint8, and `encode_texts(model, params, ids)` token ids (B, L), int32, padded with 0. Both
return unit vectors. A row of ids gives NaN if it has an id outside of the vocabulary or begins with padding.
"""
TENSORS = """With safetensors, without JAX and ivt_jax:

```python
import json
from safetensors.numpy import load_file
from tokenizers import Tokenizer
config, tensors = json.load(open("FOLDER/config.json"))["config"], load_file("FOLDER/model.safetensors")
ids = Tokenizer.from_file("FOLDER/tokenizer.json").encode("a woman in a red coat").ids
```

Kernels are for `x @ kernel + bias`; patches are flattened as (row, column, channel); blocks are stacked along the first
axis. `python -m ivt_jax.convert --source=export --weights=FOLDER/model.safetensors --out=NEW` converts it to `params/`.
"""
COMPILED = """Without ivt_jax, with {program}, from `{form}/`, whose `manifest.json` lists inputs and outputs.
A row of ids gives NaN if it has an id outside of the vocabulary or begins with padding.
"""
LOADING = {
    "orbax": JAX,
    "safetensors": TENSORS,
    "stablehlo": COMPILED.format(program="JAX (`jax.export.deserialize`)", form="stablehlo"),
    "saved_model": COMPILED.format(program="TensorFlow (`tf.saved_model.load`)", form="saved_model"),
    "onnx": COMPILED.format(program="ONNX Runtime", form="onnx"),
}  # format -> how to load it
SEARCH = """To search a folder of images:

```
python -m ivt_jax.search --workdir=FOLDER --images=IMAGES "a woman in a red coat with a black backpack"
```
"""
RECIPE = """## Recipe

- Tower: width {model[width]}, {model[depth]} blocks of {model[num_heads]} heads; images of {height}x{width} pixels, \
patches of {model[patch_size]} at stride {model[stride]}
- Started from {start}, seed {seed}
- Multi-level alignment (MLA): weight {mla[weight]}, levels {levels}, {mla[views]} view(s)
- Bidirectional mask modelling (BMM): alignment {bmm[align]}; weight of word reconstruction {bmm[word_weight]}, \
of patch reconstruction {bmm[patch_weight]}
- {optimizer[name]}, schedule {optimizer[schedule]}, learning rate {optimizer[learning_rate]}; \
{data[batch_size]} pairs a step, {length}; activations in {model[dtype]}
- Code: revision `{revision}`

`config.json` has every key.
"""
MEASURES = ("R1", "R5", "R10", "mAP", "mINP")
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


def card(record: Mapping[str, Any], formats: Sequence[str]) -> str:
    """Returns the text of README.md.

    record: the content of config.json with "step" and "scores". formats: those in the export.
    """
    height, width = record["config"]["model"]["image_size"]
    loading = [LOADING[name].format(height=height, width=width) for name in formats]
    if {"orbax", "safetensors"} & {*formats}:
        loading.append(SEARCH)
    if "annotations" in record:  # of a training with ivt_jax
        title = f"IVT, trained on {dataset(record)}"
        source = [training_data(record), recipe(record), selection(record)]
    else:
        title, source = "IVT, from weights of other programs", [origin(record.get("weights", {}))]
    return "\n".join([FRONT.format(title=title), *source, metrics(record), USE, "## Load\n\n" + "\n".join(loading)])


def dataset(record: Mapping[str, Any]) -> str:
    """Returns the title of the dataset."""
    return title_of(record["config"]["data"]["name"])


def origin(weights: Mapping[str, Any]) -> str:
    """Returns the section Data of converted weights; `weights` as config.json records them."""
    source = f" (`--source={weights['source']}`)" if weights else ""
    files = "".join(f"\n- `{name}`, SHA-256 `{digest}`" for name, digest in weights.get("files", {}).items())
    return f"## Data\n\n{CONVERTED.format(source=source)}\nThe terms of their owners apply.{files}\n"


def training_data(record: Mapping[str, Any]) -> str:
    """Returns the section Data of a training: dataset, published sizes and terms."""
    lines = [f"## Data\n\nTrained on {dataset(record)}; SHA-256 of its annotations: `{record['annotations']}`."]
    sizes = PUBLISHED[record["config"]["data"]["name"]]
    if sizes:
        lines += ["Published sizes (not compared with the data of this training):", ""]
        lines += ["| split | persons | images | captions |", "|---|---|---|---|"]
        lines += [f"| {split} | {' | '.join(f'{n:,}' for n in counts)} |" for split, counts in sizes.items()] + [""]
    return "\n".join([*lines, TERMS if sizes else DRAWN, ""])


def recipe(record: Mapping[str, Any]) -> str:
    """Returns the section Recipe: the main keys of the config."""
    config = record["config"]
    train, (height, width) = config["train"], config["model"]["image_size"]
    return RECIPE.format(
        **config,
        height=height,
        width=width,
        levels=", ".join(config["mla"]["levels"]),
        start=f"parameters of `{train['init_from']}`" if train["init_from"] else "random parameters",
        length=f"{train['steps']:,} steps" if train["steps"] else f"epochs {train['first_epoch']} to {train['epochs']}",
        revision=record.get("revision") or "not known",
    )


def selection(record: Mapping[str, Any]) -> str:
    """Returns the section on how the checkpoint was selected."""
    if record["config"]["train"]["select_on"] == "test":
        how = "the one with the best R@1 (text to image) on the TEST split itself, so the test scores are too high"
    elif record["scores"] and "val" not in record["scores"]:
        how = "the last one: there is no validation split, and the test split was not used for selection"
    else:
        how = (
            "the one with the best R@1 (text to image) on validation (the last one if none was evaluated), not on test"
        )
    return f"## Selection\n\nOf the training's checkpoints, {how}. Its step: {record['step']:,}.\n"


def metrics(record: Mapping[str, Any]) -> str:
    """Returns the section Metrics: the scores of each split with their intervals."""
    scores, lines = record["scores"], ["## Metrics", ""]
    if "test" not in scores:
        lines += ["Not evaluated on test.", ""]
    for split, summary in scores.items():
        counts = f"{summary['queries']:,} captions, {summary['gallery']:,} images, {summary['persons']:,} persons"
        lines.append(f"{dataset(record)}, {split}, protocol `standard`: {counts}.")
        lines += ["In percent, with 95% intervals by a bootstrap over persons:", ""]
        lines += [f"| | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|"]
        for direction, name in DIRECTIONS.items():
            values, intervals = summary[direction], summary["interval"][direction]
            cells = ["{:.2f} ({:.2f} to {:.2f})".format(values[m], *intervals[m]) for m in MEASURES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
