"""VLMo (Bao et al. 2022). Its tower is IVT's, up to layer scale, norms per modality and type embeddings, which are
folded into our parameters.

The MLPs that only its joint passes use, in the upper layers, and the heads of its other tasks are ignored.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.layers import layer_rules, linear
from ivt_jax.conversion.model import Conversion, complete
from ivt_jax.conversion.positions import resize_offsets
from ivt_jax.conversion.release import INVERSE
from ivt_jax.conversion.tensors import Flat, Loaded, Naming, TensorUse, read, rule
from ivt_jax.conversion.vit import CLS, POSITIONS, resized
from ivt_jax.models.config import IVTConfig

LONGEST = 196  # tokens of a text for which the published weights have relative positions
BLOCK = "transformer.blocks.{}."
TABLE, ABSOLUTE, SCALE = "relative_position_bias_table", "transformer.pos_embed", "logit_scale"
MODALITIES = {"mlp_vis": "imag", "mlp_txt": "text"}  # our MLP -> their modality

# Stand-ins for parameter paths: tensors that are folded into several parameters are read under these names, and the
# table of uses prints them.
RELATIVE = "blocks/relative"
TYPES = "image_embedding/type_embed, and added to text_embedding/bias"
ATTENTION_SCALE, MLP_SCALE = (f"multiplied into {layer}" for layer in ("blocks/attn/proj", "blocks/mlp_*/fc2"))
NORM_SCALE, NORM_BIAS = (
    {name: f"{how} blocks/{name}/fc1" for name in MODALITIES} for how in ("multiplied into", "folded into")
)
ROUTES = (RELATIVE, TYPES, ATTENTION_SCALE, MLP_SCALE, *NORM_SCALE.values(), *NORM_BIAS.values())


def query_key_value(query: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Joins the biases of query and value with that of the key, which VLMo leaves at 0."""
    return np.concatenate([query, np.zeros_like(query), value])


RULES = (
    rule(CLS, "transformer.cls_token", "1 1 D"),
    *layer_rules("image_embedding", "transformer.patch_embed.proj."),
    rule(TYPES, "token_type_embeddings.weight", "2 D"),
    rule("text_embedding/word", "text_embeddings.word_embeddings.weight", "V D"),
    rule("text_embedding/token_type", "text_embeddings.token_type_embeddings.weight", "2 D"),
    *layer_rules("text_embedding", "text_embeddings.LayerNorm."),
    *layer_rules("blocks/norm1", BLOCK + "norm1."),
    rule("blocks/attn/qkv/kernel", BLOCK + "attn.qkv.weight", "3D D", linear),
    rule("blocks/attn/qkv/bias", f"{BLOCK}attn.q_bias {BLOCK}attn.v_bias", "D", query_key_value),
    *layer_rules("blocks/attn/proj", BLOCK + "attn.proj."),
    rule(ATTENTION_SCALE, BLOCK + "gamma_1", "D"),
    *(rule(NORM_SCALE[name], f"{BLOCK}norm2_{theirs}.weight", "D") for name, theirs in MODALITIES.items()),
    *(rule(NORM_BIAS[name], f"{BLOCK}norm2_{theirs}.bias", "D") for name, theirs in MODALITIES.items()),
    *(
        found
        for name, theirs in MODALITIES.items()
        for layer in ("fc1", "fc2")
        for found in layer_rules(f"blocks/{name}/{layer}", f"{BLOCK}mlp_{theirs}.{layer}.")
    ),
    rule(MLP_SCALE, BLOCK + "gamma_2", "D"),
    *layer_rules("blocks/norm", "transformer.norm."),
    rule(RELATIVE, TABLE, "T C"),
    rule("image_projection/kernel", "itc_image_proj.fc.weight", "E D", linear),
    rule("text_projection/kernel", "itc_text_proj.fc.weight", "E D", linear),
    rule("similarity/log_scale", SCALE, ""),
)
WITH_POSITIONS = (*RULES, rule(POSITIONS, ABSOLUTE, "1 N D"))  # the base model has none
IGNORED = {
    r"transformer\.blocks\.\d+\.(mlp|norm2)_vl\..*": "of VLMo's joint passes alone",
    r"itc_vl_(image|text)_proj\..*|logit_vl_scale": "of VLMo's joint passes alone",
    r"(mlm|itm|vqa|nlvr2|rank)_[a-z]+\..*": "a head of another task",
    r"pooler\..*": "a pooler",
    r"text_embeddings\.position_embeddings\.weight": "VLMo does not use it",
    r"([a-z_]+\.)?([a-z_]*relative_position_index|position_ids)": "an index, no weight",
}
PREFIXES = re.compile(r"((state_dict|module|model)[./])+")


def clean(name: str) -> str:
    """Removes the names under which training programs store the tensors."""
    return PREFIXES.sub("", name, count=1) if PREFIXES.match(name) else name


def params_from_vlmo(
    tensors: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    image_size: tuple[int, int],
    stride: int,
    max_text_len_of_initckpt: int = LONGEST,
) -> tuple[IVTConfig, Any]:
    """Converts VLMo's tensors by name to the model's config and its parameters.

    Arguments are as of `params_from_release`. Relative positions are resized to the grid of patches; texts have at most
    max_text_len_of_initckpt tokens, the length that VLMo's table covers. Parameters have the dtype of the tensors; mask
    token and reconstruction heads, which VLMo does not have, are initialised from seed 0. Raises UserError, naming the
    tensor, if one is missing, unexpected or of another shape.
    """
    height, width = image_size
    model_config = IVTConfig(num_heads=num_heads, image_size=(height, width), stride=stride)
    conversion = convert_vlmo(tensors, "VLMo's tensors", model_config, 0, max_text_len_of_initckpt)
    return conversion.model_config, conversion.params


def convert_vlmo(
    tensors: Mapping[str, np.ndarray], file: str, model_config: IVTConfig, seed: int, longest: int = LONGEST
) -> Conversion:
    """As `params_from_vlmo`, for a model with the other options (dropout, dtype, ...) of `model_config`."""
    # NumPy's `ascontiguousarray`, which people call before they write safetensors, gives a scalar an axis.
    tensors = {name: x.reshape(()) if clean(name) == SCALE and x.shape == (1,) else x for name, x in tensors.items()}
    rules = WITH_POSITIONS if ABSOLUTE in map(clean, tensors) else RULES
    loaded = read(Naming(rules, IGNORED, clean), tensors, file, {})
    sizes = {**loaded.sizes, "L": longest}
    same = ("image_activation", "norm_epsilon", "pixel_mean", "pixel_deviation")  # as in the default model
    options = {name: getattr(IVTConfig(), name) for name in same} | {"image_norm": False, "patch_size": sizes["P"]}
    model_config = dataclasses.replace(model_config, relative_positions=True, projection=sizes["E"], **options)
    if rules is WITH_POSITIONS:
        loaded = resized(loaded, file, model_config, "bilinear")
    elif min(model_config.grid) < 1:
        raise UserError(f"{file}: patches of {sizes['P']} pixels do not fit the image size {model_config.image_size}")
    tables, uses = relative_tables(loaded, file, model_config, longest)
    flat = {**loaded.flat, **folded(loaded.flat, 1 + model_config.num_patches), **tables}
    zeros = {POSITIONS: (1, 1 + model_config.num_patches), "text_embedding/position": (longest,)}
    for path, shape in zeros.items():
        if path not in flat:
            flat[path] = np.zeros((*shape, sizes["D"]), flat[CLS].dtype)
            uses = [*uses, TensorUse("initialised", "", flat[path].shape, f"{path}, zeros: VLMo has none")]
    flat = {path: value for path, value in flat.items() if path not in ROUTES}
    return complete(Loaded(flat, sizes, uses), model_config, seed, file)


def vlmo_from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns our parameters as VLMo's tensors by name, without mask token and reconstruction heads.

    Converted again, they give the same model: layer scales are 1, and the bias of keys, which changes no softmax, is
    dropped. Raises ValueError for what VLMo has no tensor for: positions that are not 0, type embeddings that differ
    between patches, a grid that is not square.
    """
    flat = {path: np.asarray(value) for path, value in flatten_dict(params, sep="/").items()}
    types = flat["image_embedding/type_embed"][0]
    if flat[POSITIONS].any() or flat["text_embedding/position"].any() or (types != types[0]).any():
        raise ValueError("VLMo has no tensor for positions that are not 0, or for types that differ between patches")
    depth, heads, rows, columns = flat[f"{RELATIVE}/image"].shape
    if rows != columns:
        raise ValueError(f"VLMo has no tensor for a grid of {(rows + 1) // 2}x{(columns + 1) // 2} patches")
    names = ("image", "image_cls", "cross", "text", "text_cls")
    image, image_cls, cross, text, text_cls = (flat[f"{RELATIVE}/{name}"] for name in names)
    parts = image.reshape(depth, heads, -1), image_cls, cross, text[..., ::-1], text_cls
    ones, width = np.ones((depth, len(types[0])), np.float32), len(types[0])
    query, _, value = np.split(flat["blocks/attn/qkv/bias"], 3, axis=-1)
    theirs = flat | {
        RELATIVE: np.concatenate(parts, axis=-1).reshape(depth * heads, -1).T,
        TYPES: np.stack([np.zeros(width, np.float32), types[0]]),
        **dict.fromkeys((ATTENTION_SCALE, MLP_SCALE), ones),
        **dict.fromkeys(NORM_SCALE.values(), flat["blocks/norm2/scale"]),
        **dict.fromkeys(NORM_BIAS.values(), flat["blocks/norm2/bias"]),
    }
    tensors: dict[str, np.ndarray] = {}
    for entry in RULES:
        inverse = INVERSE.get(entry.layout)
        values = (query, value) if inverse is None else (theirs[entry.ours],)
        for name, stacked in zip(entry.names, values, strict=True):
            blocks = enumerate(stacked) if "{}" in name else [(0, stacked)]
            tensors |= {name.format(i): inverse(layer) if inverse else layer for i, layer in blocks}
    return {name: np.array(tensor, order="C") for name, tensor in tensors.items()}


def folded(flat: Flat, tokens: int) -> Flat:
    """Returns the parameters that are computed from several tensors, in float64. tokens: their number in an image."""
    text_type, image_type = flat[TYPES].astype(np.float64)
    found = {
        "image_embedding/type_embed": np.broadcast_to(image_type, (1, tokens, len(image_type))),
        "text_embedding/bias": flat["text_embedding/bias"] + text_type,  # VLMo adds it after the norm
    }
    scaled = {"blocks/attn/proj": ATTENTION_SCALE} | {f"blocks/{name}/fc2": MLP_SCALE for name in MODALITIES}
    for layer, scale in scaled.items():  # VLMo multiplies the layer's output
        factor = flat[scale].astype(np.float64)
        found[f"{layer}/kernel"] = flat[f"{layer}/kernel"] * factor[:, None, :]
        found[f"{layer}/bias"] = flat[f"{layer}/bias"] * factor
    for name in MODALITIES:  # fc1(scale x + bias): our norm, which both MLPs share, has scale 1 and bias 0
        kernel, bias = (flat[f"blocks/{name}/fc1/{kind}"] for kind in ("kernel", "bias"))
        norm_scale, norm_bias = (flat[of[name]].astype(np.float64) for of in (NORM_SCALE, NORM_BIAS))
        found[f"blocks/{name}/fc1/kernel"] = kernel * norm_scale[:, :, None]
        found[f"blocks/{name}/fc1/bias"] = bias + np.einsum("ld,ldf->lf", norm_bias, kernel)
    dtype = flat[CLS].dtype
    ones, zeros = np.ones_like(flat[ATTENTION_SCALE], dtype), np.zeros_like(flat[ATTENTION_SCALE], dtype)
    norm = {"blocks/norm2/scale": ones, "blocks/norm2/bias": zeros}
    return {path: value.astype(dtype) for path, value in found.items()} | norm


def side_of(rows: int, longest: int) -> int:
    """Returns the patches along an axis of the square grid that a table with so many rows is for, 0 if for none."""
    offsets = rows - 5 - (2 * longest - 3) - 3
    side = math.isqrt(max(offsets, 0))
    return (side + 1) // 2 if longest >= 2 and side**2 == offsets and side % 2 else 0


def relative_tables(loaded: Loaded, file: str, model_config: IVTConfig, longest: int) -> tuple[Flat, list[TensorUse]]:
    """Returns the relative position biases, resized to the model's grid of patches, and the uses with a note on it.

    VLMo has one table, a column for each head of each layer. Its rows are, in this order: offsets of patches, query
    minus key, row by row; from [CLS], to [CLS], from [CLS] to itself; text to image, image to text; offsets of words,
    key minus query; three of [CLS] as before.
    """
    table, (depth, heads) = loaded.flat[RELATIVE], (loaded.sizes["depth"], model_config.num_heads)
    own = next(use.name for use in loaded.uses if use.note == RELATIVE)
    if table.shape[1] != depth * heads:
        expected = f"{depth} layers times {heads} heads are {depth * heads}"
        number = table.shape[1] // depth if table.shape[1] % depth == 0 else "HEADS"
        remedy = f"set --config.model.num_heads={number}"
        raise UserError(f'{file}: tensor "{own}" has {table.shape[1]} columns, {expected}; {remedy}')
    grid = side_of(len(table), longest)
    if not grid:
        raise UserError(
            f'{file}: tensor "{own}" has {len(table)} rows, which fit no square grid of patches beside texts '
            f"of {longest} tokens; set --max_text_len_of_initckpt to that of its training"
        )
    side = 2 * grid - 1
    by_layer = table.T.reshape(depth, heads, len(table))
    image, image_cls, cross, text, text_cls = np.split(by_layer, np.cumsum([side**2, 3, 2, 2 * longest - 3]), axis=-1)
    source, target, ratio = (grid, grid), model_config.grid, model_config.stride / loaded.sizes["P"]
    image = resize_offsets(image.reshape(depth, heads, side, side), source, target, ratio)
    found = {"image": image, "image_cls": image_cls, "cross": cross, "text": text[..., ::-1], "text_cls": text_cls}
    tables = {f"{RELATIVE}/{name}": np.ascontiguousarray(value) for name, value in found.items()}
    if source == target:
        return tables, loaded.uses
    note = f"{RELATIVE}, {source[0]}x{source[1]} -> {target[0]}x{target[1]} patches, by their distance in pixels"
    uses = [use._replace(action="resized", note=note) if use.note == RELATIVE else use for use in loaded.uses]
    return tables, uses
