"""The model card of an export: README.md, in the form that the Hugging Face hub shows. It tells what is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.annotations import title_of
from input_pipeline.statistics import PUBLISHED

FRONT = """---
license: other # yours to choose, within what the terms of data and initial weights allow
language: en
library_name: ivt_jax
tags:
- text-based-person-retrieval
- jax
---

# {title}

Describe a person in a sentence, and find the pictures of that person: a text-based person retrieval model, IVT
([arXiv 2208.08608](https://arxiv.org/abs/2208.08608)), made with ivt_jax. One transformer embeds pictures and
sentences; their embeddings, at length 1, are compared by dot product.
"""
DRAWN = "PEDES-Synth is generated: its persons are drawn and resemble nobody."
TERMS = """The pictures show real people. The data are given out by their owners, under terms of their own, and do not
come with this model; those terms bind what is trained on them and may cover these weights."""
USE = """## Intended use and its limits

For research on retrieval, with pictures of people who consented to it, or that are licensed for it; each picture one
person, cropped. Not for covert surveillance, for identifying or following people, or for decisions about them: a high
score says that a picture resembles a sentence, not who somebody is. The model errs, and not evenly; errors by group
have not been measured. The law may restrict such use or forbid it.
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
TENSORS = """With safetensors alone, without JAX or ivt_jax:

```python
import json
from safetensors.numpy import load_file
from tokenizers import Tokenizer
config, tensors = json.load(open("FOLDER/config.json"))["config"], load_file("FOLDER/model.safetensors")
ids = Tokenizer.from_file("FOLDER/tokenizer.json").encode("a woman in a red coat").ids
```

Kernels are laid out for `x @ kernel + bias`, patches as (row, column, channel), the blocks stacked along the first
axis. `python -m ivt_jax.convert --source=export --weights=FOLDER/model.safetensors --out=NEW` makes `params/` of it.
"""
COMPILED = """Without ivt_jax, by {program}, from `{form}/`: its `manifest.json` has the inputs and outputs. A row of
ids gives NaN if it has an id outside of the vocabulary or begins with padding.
"""
LOADING = {
    "orbax": JAX,
    "safetensors": TENSORS,
    "stablehlo": COMPILED.format(program="JAX (`jax.export.deserialize`)", form="stablehlo"),
    "saved_model": COMPILED.format(program="TensorFlow (`tf.saved_model.load`)", form="saved_model"),
    "onnx": COMPILED.format(program="ONNX Runtime", form="onnx"),
}  # format -> how to load it
SEARCH = """To search a folder of pictures:

```
python -m ivt_jax.search --workdir=FOLDER --images=PICTURES "a woman in a red coat with a black backpack"
```
"""
MEASURES = ("R1", "R5", "R10", "mAP", "mINP")
WAYS = {"t2i": "text to image", "i2t": "image to text"}


def card(record: Mapping[str, Any], formats: Sequence[str]) -> str:
    """The text of README.md. record: what config.json holds, with "step" and "scores"; formats: what was written."""
    config = record["config"]
    height, width = config["model"]["image_size"]
    loading = [LOADING[name].format(height=height, width=width) for name in formats]
    parts = [FRONT.format(title=title(record)), data(record)]
    if trained_here(record):
        parts += [recipe(record), selection(record)]
    if {"orbax", "safetensors"} & {*formats}:
        loading.append(SEARCH)
    parts += [metrics(record), USE, "## Load\n\n" + "\n".join(loading)]
    return "\n".join(parts)


def trained_here(record: Mapping[str, Any]) -> bool:
    """Whether a training of ivt_jax made the parameters; of weights of other programs nobody recorded how."""
    return "annotations" in record


def title(record: Mapping[str, Any]) -> str:
    """The model's name."""
    return f"IVT, trained on {dataset(record)}" if trained_here(record) else "IVT, from weights of other programs"


def dataset(record: Mapping[str, Any]) -> str:
    """The name as its authors write it."""
    return title_of(record["config"]["data"]["name"])


def data(record: Mapping[str, Any]) -> str:
    """What the model was trained on, as far as it is recorded."""
    lines = ["## Data", ""]
    if not trained_here(record):
        weights = record.get("weights", {})
        files = "".join(f"\n- `{name}`, SHA-256 `{digest}`" for name, digest in weights.get("files", {}).items())
        source = f" (`--source={weights['source']}`)" if weights else ""
        lines.append(f"Converted by `ivt_jax.convert`{source}. What the weights were trained on is not recorded;")
        return "\n".join([*lines, f"the terms of whoever gave them out bind them.{files}", ""])
    name = record["config"]["data"]["name"]
    lines.append(f"Trained on {dataset(record)}; SHA-256 of its annotations: `{record['annotations']}`.")
    if sizes := PUBLISHED[name]:
        lines += [
            "As its authors publish it (not compared with the data used here):",
            "",
            "| split | persons | images | captions |",
            "|---|---|---|---|",
        ]
        lines += [f"| {split} | {' | '.join(f'{n:,}' for n in counts)} |" for split, counts in sizes.items()] + [""]
    lines.append(TERMS if sizes else DRAWN)
    return "\n".join([*lines, ""])


def recipe(record: Mapping[str, Any]) -> str:
    """The config's main points."""
    config = record["config"]
    model, mla, bmm, optimizer, train = (config[name] for name in ("model", "mla", "bmm", "optimizer", "train"))
    length = f"{train['steps']:,} steps" if train["steps"] else f"epochs {train['first_epoch']} to {train['epochs']}"
    start = f"parameters of `{train['init_from']}`" if train["init_from"] else "random parameters"
    return f"""## Recipe

- Tower: width {model["width"]}, {model["depth"]} blocks of {model["num_heads"]} heads; images of \
{model["image_size"][0]}x{model["image_size"][1]} pixels, patches of {model["patch_size"]} at stride {model["stride"]}
- Started from {start}, seed {config["seed"]}
- Multi-level alignment (MLA): weight {mla["weight"]}, levels {", ".join(mla["levels"])}, {mla["views"]} view(s)
- Bidirectional mask modelling (BMM): alignment {bmm["align"]}; reconstruction of words weighs {bmm["word_weight"]}, \
of patches {bmm["patch_weight"]}
- {optimizer["name"]}, schedule {optimizer["schedule"]}, learning rate {optimizer["learning_rate"]}; \
{config["data"]["batch_size"]} pairs a step, {length}; activations in {model["dtype"]}
- Code: revision `{record.get("revision") or "not known"}`

`config.json` has every key.
"""


def selection(record: Mapping[str, Any]) -> str:
    """How the checkpoint was chosen."""
    step, split = record["step"], record["config"]["train"]["select_on"]
    if split == "test":
        how = "that with the best R@1 (text to image) on the TEST split itself, so test figures are too good"
    elif record["scores"] and "val" not in record["scores"]:
        how = "the last; there is no validation split, and test played no part in the choice"
    else:
        how = "that with the best R@1 (text to image) on validation (the last where none was scored), not on test"
    return f"## How it was chosen\n\nOf the training's checkpoints, {how}. Its step: {step:,}.\n"


def metrics(record: Mapping[str, Any]) -> str:
    """The scores of each split, with their intervals."""
    scores, lines = record["scores"], ["## Metrics", ""]
    if "test" not in scores:
        lines += ["Not evaluated on test.", ""]
    for split, summary in scores.items():
        counts = f"{summary['queries']:,} captions, {summary['gallery']:,} images, {summary['persons']:,} persons"
        lines.append(f"{dataset(record)}, {split}, by the protocol `standard`: {counts}.")
        lines += ["In percent, with 95% intervals by a bootstrap over persons:", ""]
        lines += [f"| | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|"]
        for way, name in WAYS.items():
            cells = [_figure(summary[way][measure], summary["interval"][way][measure]) for measure in MEASURES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _figure(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
