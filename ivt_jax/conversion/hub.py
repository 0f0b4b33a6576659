"""Weights of a repository, on the hub or in a folder, or of one file: which files are read, and what describes them.

The repository's config.json says what tensors do not show.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.hub import PREFIX, Repository, fetch, look_in, look_up
from ivt_jax.common.messages import install
from ivt_jax.conversion.files import read_tensors

DESCRIPTION, PIXELS, OPEN_CLIP = "config.json", "preprocessor_config.json", "open_clip_config.json"
SAFE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
OPEN_CLIP_SAFE = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
OPEN_CLIP_PICKLE = "open_clip_pytorch_model.bin"
CONVERTER = "SFconvertbot"  # the hub's account that converts pickles to safetensors and offers them as pull requests

# Of each --source: the models it reads, by `model_type`, and transformers' defaults, which a config.json leaves out.
MODEL_TYPES = {"clip": ("clip",), "siglip": ("siglip",), "vit": ("vit", "deit"), "bert": ("bert",)}
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": (
        {
            "hidden_size": 768, "image_size": 224, "patch_size": 32, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        {
            "hidden_size": 512, "max_position_embeddings": 77, "num_attention_heads": 8, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    ),
    "siglip": (
        {
            "hidden_size": 768, "image_size": 224, "patch_size": 16, "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        },
        {
            "hidden_size": 768, "max_position_embeddings": 64, "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        },
    ),
}  # of the image and the text tower  # fmt: skip
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


class Fetched(NamedTuple):
    """Local copies of a repository's weights, and what describes them.

    description: config.json, or open_clip_config.json if the weights are open_clip's; {} if there is none. single: the
    user named a file, and the repository is its folder.
    """

    repository: Repository
    files: list[Path]
    description: dict[str, Any]
    pixels: dict[str, Any]  # preprocessor_config.json, {} if there is none
    single: bool = False

    @property
    def name(self) -> str:
        """Name of the weights for messages."""
        if self.single:
            return str(self.files[0])
        return self.repository.name if self.repository.folder else f"{PREFIX}{self.repository.name}"

    @property
    def pinned(self) -> str:
        """Name of the repository with the commit, or of the folder, as `load_tokenizer` takes it."""
        return self.repository.name if self.repository.folder else f"{self.repository.name}@{self.repository.commit}"

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns the tensors of all files. Raises UserError as `read_tensors`."""
        return {name: tensor for file in self.files for name, tensor in read_tensors(file).items()}


def open_weights(place: Path, source: str) -> Fetched:
    """Returns the weights that --weights names: hf:OWNER/NAME[@REVISION], a folder as the hub has it, or a file.

    source: the model's, of MODEL_TYPES or another. A file under one of the hub's names is described by the config.json
    beside it, if that is of such a model. Raises UserError as `fetch_weights`.
    """
    if str(place).startswith(PREFIX):
        return fetch_weights(str(place).removeprefix(PREFIX))
    if place.is_dir():
        repository = look_in(place)
        return _read(repository, _chosen(repository))
    repository, pickles = look_in(place.parent), (PICKLE, OPEN_CLIP_PICKLE)
    given = _read_json(repository, _describing(place.name)) if place.name in (SAFE, *OPEN_CLIP_SAFE, *pickles) else {}
    if given.get("model_type") not in MODEL_TYPES.get(source, ()) and not ("model_cfg" in given and source == "clip"):
        return Fetched(repository, [place], {}, {}, single=True)
    return Fetched(repository, [place], given, _read_json(repository, PIXELS), single=True)


def fetch_weights(name: str) -> Fetched:
    """Fetches weights and their description from "owner/name" or "owner/name@revision"; tokenizers are left out.

    Prefers safetensors, then PyTorch's file if PyTorch is installed, then the hub's own conversion of that file, if it
    is offered as a pull request and no revision is given. Raises UserError, in one line, as `look_up`, and if the
    repository has no weights that can be read.
    """
    repository = look_up(name)
    found = _chosen(repository)
    if not found and "@" not in name and (number := _conversion(repository)):
        print(f"{name}: the safetensors are those of {CONVERTER}'s pull request {number}", file=sys.stderr)
        repository = look_up(f"{repository.name}@refs/pr/{number}")
        found = _chosen(repository)
    return _read(repository, found)


def _read(repository: Repository, found: list[str]) -> Fetched:
    """Fetches the chosen file, or the files of an index, with what describes them. Raises UserError if none is."""
    if not found:
        raise UserError(_nothing_to_read(repository))
    description, pixels = (_read_json(repository, file) for file in (_describing(found[0]), PIXELS))
    if found == [INDEX]:
        found = _shards(repository)
    return Fetched(repository, [fetch(repository, file) for file in found], description, pixels)


def _describing(file: str) -> str:
    """Returns the name of the description of a file of weights."""
    return OPEN_CLIP if file.startswith("open_clip") else DESCRIPTION


def _chosen(repository: Repository) -> list[str]:
    """Returns the file with the weights, or the index of several; [] if none can be read."""
    pickles = [PICKLE, OPEN_CLIP_PICKLE] if importlib.util.find_spec("torch") else []
    return [name for name in (SAFE, INDEX, *OPEN_CLIP_SAFE, *pickles) if name in repository.files][:1]


def _conversion(repository: Repository) -> int:
    """Returns the number of the pull request with the hub's own safetensors, 0 if there is none."""
    from huggingface_hub import HfApi

    if repository.cached or PICKLE not in repository.files:
        return 0
    try:
        offers = HfApi().get_repo_discussions(repository.name, author=CONVERTER, discussion_type="pull_request")
        return next((offer.num for offer in offers if offer.author == CONVERTER and "safetensors" in offer.title), 0)
    except Exception:  # the client raises many kinds; the error about the pickle follows, with its remedy
        return 0


def _nothing_to_read(repository: Repository) -> str:
    where = f'"{repository.name}"' + (" in the hub's cache" if repository.cached else " on the hub")
    if repository.folder:
        where = repository.name
    pickles = [name for name in (PICKLE, OPEN_CLIP_PICKLE) if name in repository.files]
    if pickles:
        other = f"name a revision that has {SAFE}, as hf:{repository.name}@REVISION"
        remedy = f"{install('torch')}; or {f'fetch {SAFE} into it' if repository.folder else other}"
        return f"{where} has no safetensors, only {pickles[0]}, which needs PyTorch: {remedy}"
    names = ", ".join((SAFE, INDEX, OPEN_CLIP_SAFE[0], PICKLE))
    return f"{where} has no weights that can be read: it has none of {names}"


def _shards(repository: Repository) -> list[str]:
    weight_map = _read_json(repository, INDEX).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    missing = [name for name in names if name not in repository.files]
    if missing or not names:
        absent = ", ".join(missing) or "no file"
        raise UserError(f'"{repository.name}": {INDEX} names {absent}, which is not there; name another revision')
    return names


def _read_json(repository: Repository, name: str) -> dict[str, Any]:
    """Returns the content of a JSON file of the repository, {} if there is none. Raises UserError."""
    if name not in repository.files:
        return {}
    try:
        content = json.loads(fetch(repository, name).read_text(encoding="utf-8"))
    except ValueError:
        remedy = "name another revision, or remove the file from the hub's cache"
        raise UserError(f'"{repository.name}": {name} is not JSON; {remedy}') from None
    return content if isinstance(content, dict) else {}


class Described(NamedTuple):
    """What the description says of a model: key of the config -> value.

    image: heads and width. pixels: their mean and deviation. text: heads and width of a text tower, and the length of
    texts. geometry: image size and stride of its training. activation: of the MLPs, "" if not described.
    """

    image: dict[str, Any]
    pixels: dict[str, Any]
    text: dict[str, Any]
    geometry: dict[str, Any]
    activation: str


def described(fetched: Fetched, source: str) -> Described:
    """Returns what the repository says of the model for --source or --source_text.

    Raises UserError if it is another kind of model, or has an option that our models do not have.
    """
    given, name = fetched.description, fetched.name
    if not given:
        remedy = "name the file in it" if fetched.repository.folder else "fetch it and name the file"
        raise UserError(f"{name} has no {DESCRIPTION}, which says the number of heads; {remedy}")
    if "model_cfg" not in given and given.get("model_type") not in MODEL_TYPES[source]:
        known, kind = " or ".join(MODEL_TYPES[source]), given.get("model_type", "unknown")
        raise UserError(f"{name} has a model of type {kind}; --source={source} reads {known}")
    if source in ("vit", "bert"):
        sizes = {"model.width": "hidden_size", "model.num_heads": "num_attention_heads"} if source == "vit" else {}
        found = {ours: given[theirs] for ours, theirs in sizes.items() if theirs in given}
        return Described(found, _pixels(fetched.pixels), {}, {}, "")
    image, text = _open_clip_towers(fetched, source) if "model_cfg" in given else _transformers_towers(fetched, source)
    _refuse_options(name, source, image, text)
    length, size = text["max_position_embeddings"], image["image_size"]
    sizes = {"model.width": image["hidden_size"], "model.num_heads": image["num_attention_heads"]}
    tower = {"model.text.width": text["hidden_size"], "model.text.num_heads": text["num_attention_heads"]}
    lengths = {f"text.length.{level}": length for level in ("sentence", "phrase", "word")}
    return Described(
        sizes,
        _pixels(fetched.pixels),
        {"model.towers": 2, **tower, **lengths},
        {"model.image_size": (size, size), "model.stride": image["patch_size"]},
        ACTIVATIONS[image["hidden_act"]],
    )


def _refuse_options(name: str, source: str, image: dict[str, Any], text: dict[str, Any]) -> None:
    """Raises UserError if a tower has an unknown activation or epsilon, or if the towers' activations differ."""
    epsilon = DEFAULTS[source][0]["layer_norm_eps"]
    for tower in (image, text):
        if not math.isclose(tower["layer_norm_eps"], epsilon) or tower["hidden_act"] not in ACTIVATIONS:
            options = f"{tower['hidden_act']} and norms with epsilon {tower['layer_norm_eps']}"
            raise UserError(f"{name} has {options}; only {', '.join(ACTIVATIONS)} and {epsilon} can be converted")
    if image["hidden_act"] != text["hidden_act"]:
        activations = f"{image['hidden_act']} in images and {text['hidden_act']} in texts"
        raise UserError(f"{name} has {activations}; only a model with one activation can be converted")


def _transformers_towers(fetched: Fetched, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the two sections of config.json with the defaults; old files repeat a section under NAME_dict."""
    given = fetched.description
    image, text = (
        default | (given.get(name) or {}) | (given.get(f"{name}_dict") or {})
        for name, default in zip(("vision_config", "text_config"), DEFAULTS[source], strict=True)
    )
    return image, text


def _open_clip_towers(fetched: Fetched, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns open_clip's description of the two towers, in the names of transformers."""
    model = fetched.description["model_cfg"]
    image, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    if source != "clip" or {"timm_model_name", "hf_model_name"} & {*image, *text} or "width" not in image:
        raise UserError(f"{fetched.name} is no CLIP with OpenAI's towers, the only ones of open_clip that are read")
    shared = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu", "layer_norm_eps": 1e-5}
    return {
        "hidden_size": image["width"], "image_size": image.get("image_size", 224),
        "patch_size": image.get("patch_size", 16), "num_attention_heads": image["width"] // image.get("head_width", 64),
        **shared,
    }, {
        "hidden_size": text.get("width", 512), "max_position_embeddings": text.get("context_length", 77),
        "num_attention_heads": text.get("heads", 8), **shared,
    }  # fmt: skip


def _pixels(pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean and deviation of the pixels as keys of the config, {} if they are not described."""
    names = {"model.pixel_mean": "image_mean", "model.pixel_deviation": "image_std"}
    found = {ours: pixels.get(theirs) for ours, theirs in names.items()}
    return {
        ours: tuple(map(float, value)) for ours, value in found.items() if isinstance(value, list) and len(value) == 3
    }
