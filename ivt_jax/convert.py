"""Converts weights of other programs, or of an export, to a folder of parameters to evaluate, search or train with.

    python -m ivt_jax.convert --source=release --weights=ivt_cuhk.pth --out=weights/ivt-cuhk
    python -m ivt_jax.convert --source=clip --weights=clip_base.safetensors --out=weights/clip    # or --source=siglip
    python -m ivt_jax.convert --source=vit --weights=vit_base.safetensors --source_text=bert \\
        --weights_text=bert_base.safetensors --out=weights/vit-bert --config=configs/rstp.py
    python -m ivt_jax.convert --source=clip --weights=clip_base.safetensors --source_text=bert \\
        --weights_text=bert_base.safetensors --out=weights/clip-bert
    python -m ivt_jax.convert --source=vlmo --weights=vlmo_base_patch16_224.pt --out=weights/vlmo
    python -m ivt_jax.convert --source=export --weights=EXPORT/model.safetensors --out=weights/mine

Instead of a file, --weights and --weights_text may name a repository on the hub, hf:OWNER/NAME or
hf:OWNER/NAME@REVISION, or a folder with its files. Prints the use of every tensor. Nothing in a file of weights is
executed.
"""

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.starts import STARTS  # a source with a recipe has the same name there
from ivt_jax.common.command import filled, filled_path, positive
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import UNWRITABLE, parent_folders, refuse_path, whole_folder
from ivt_jax.common.hub import PREFIX
from ivt_jax.common.startup import run_command

# Of sources with two towers: the name, the files of its tokenizer, and where the hub has one.
TOKENIZERS = {
    "clip": ("CLIP", "vocab.json and merges.txt", "openai/clip-vit-base-patch16"),
    "siglip": ("SigLIP", "spiece.model", "google/siglip-base-patch16-224"),
}

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped path answer at once.


def convert(args: argparse.Namespace, rest: list[str]) -> None:
    """Reads and converts the weights, writes the folder --out, and prints the use of every tensor."""
    check_paths(args)
    from ivt_jax.conversion.hub import open_weights
    from ivt_jax.conversion.tensors import table
    from ivt_jax.run.checkpoint import export_params
    from ivt_jax.run.workdir import record_conversion
    from ivt_jax.training.config_check import edge_notice

    places = {"weights": (args.weights, args.source), "weights_text": (args.weights_text, args.source_text)}
    opened = {flag: open_weights(*place) for flag, place in places.items() if place[0]}
    if args.source == "export":
        record, conversion = from_export(args.weights, rest)
    else:
        record, conversion = from_others(args, rest, opened)
    config = ConfigDict(record["config"])
    tokenizer, line = find_tokenizer(args, config, keys_of(rest), with_texts(opened))
    lines = [line] if args.source == "export" else [size_line(args, config, keys_of(rest)), line]
    with parent_folders(args.out), whole_folder(args.out) as folder:
        export_params(folder / "params", conversion.params)
        files = [path for weights in opened.values() if weights.single for path in weights.files]
        fetched = {flag: (weights.repository, weights.files) for flag, weights in opened.items() if not weights.single}
        record_conversion(folder, record, args.source, files, tokenizer, fetched)
        if tokenizer:
            tokenizer.save(folder)
    print(table(conversion.uses), *lines, sep="\n")
    if notice := edge_notice(config):
        print(notice)
    print(f"written: {args.out}", file=sys.stderr)


def is_on_hub(place: Path | None) -> bool:
    """Returns whether the value of --weights or --weights_text is hf:OWNER/NAME."""
    return str(place).startswith(PREFIX)


def keys_of(rest: list[str]) -> set[str]:
    """Returns the keys of the config that flags set, as "text.tokenizer"."""
    return {flag.partition("=")[0].removeprefix("--config.") for flag in rest}


def with_texts(opened: dict[str, Any]) -> Any:
    """Returns the weights of the text side: --weights_text, else --weights."""
    return opened.get("weights_text", opened["weights"])


def from_others(args: argparse.Namespace, rest: list[str], opened: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Returns the content of config.json and the conversion of weights that another program wrote.

    opened: flag -> `Fetched`, for --weights and --weights_text.
    """
    from configs import cuhk
    from ivt_jax.common.config_flag import read_config
    from ivt_jax.conversion.recognise import refuse_other_source
    from ivt_jax.conversion.taught import taught
    from ivt_jax.conversion.vit import Source
    from ivt_jax.models.config import IVTConfig
    from ivt_jax.training.config_check import check_config, check_keys

    config = read_config(args.config or cuhk.__file__, rest)
    check_keys(config)
    given = keys_of(rest)
    changes = described_by_repository(args, given, opened)
    sources = {flag: Source(opened[flag].tensors(), str(getattr(args, flag))) for flag in opened}
    for flag, source in sources.items():
        refuse_other_source(args.source if flag == "weights" else args.source_text, source)
    if as_taught(args) and not opened["weights"].description:
        found = taught(args.source, sources["weights"], args.max_text_len_of_initckpt)
        changes = {key: value for key, value in found.items() if key not in given} | changes
    config.update_from_flattened_dict(changes)
    known = given | changes.keys()
    pixels = {key: config.model[key] for key in ("pixel_mean", "pixel_deviation") if f"model.{key}" in known}
    conversion = read_weights(args, sources, IVTConfig.from_config(config.model), config.seed)
    record_sizes(config, conversion.model_config)
    config.model.update(pixels)  # of a flag or the repository, before those of the source, such as OpenAI's CLIP
    check_config(config)  # only now: the weights determine patch size, depth and others
    return {"config": config.to_dict()}, conversion


def as_taught(args: argparse.Namespace) -> bool:
    """Returns whether image size, stride and lengths of texts are those of the weights, not of a config."""
    return not args.config and not args.source_text and args.source in STARTS


def size_line(args: argparse.Namespace, config: ConfigDict, given: set[str]) -> str:
    """Returns the line on the image size and on how to choose another. given: keys of the config that flags set."""
    model, other = config.model, ""
    origin = "as the model was trained" if as_taught(args) else f"of {args.config or 'configs/cuhk.py'}"
    if given & {"model.image_size", "model.stride"}:
        origin = f"with flags, else {origin}"
    if as_taught(args):
        other = f", or --config=configs/cuhk.py:{args.source},"
    flags = f'--config.model.image_size="(H,W)" and --config.model.stride=S{other}'
    return f"image size: {'{}x{}'.format(*model.image_size)} at stride {model.stride}, {origin}; {flags} give another"


def read_weights(args: argparse.Namespace, sources: dict[str, Any], model_config: Any, seed: int) -> Any:
    """Returns the conversion of the weights, by their source."""
    from ivt_jax.conversion.clip import convert_clip, convert_clip_towers
    from ivt_jax.conversion.release import convert_release
    from ivt_jax.conversion.siglip import convert_siglip
    from ivt_jax.conversion.vit import convert_vit
    from ivt_jax.conversion.vlmo import convert_vlmo

    weights = sources["weights"]
    if args.weights_text:
        text = sources["weights_text"]
        if args.source == "clip":
            return convert_clip(weights, text, model_config, args.activation, args.resize, seed)
        return convert_vit(weights, text, model_config, args.resize, seed)
    if args.source == "clip":
        return convert_clip_towers(weights, model_config, args.activation, args.resize, seed)
    if args.source == "siglip":
        return convert_siglip(weights, model_config, args.resize, seed)
    if args.source == "vlmo":
        return convert_vlmo(weights.tensors, weights.file, model_config, seed, args.max_text_len_of_initckpt)
    return convert_release(weights.tensors, weights.file, model_config, seed)


def described_by_repository(args: argparse.Namespace, given: set[str], opened: dict[str, Any]) -> dict[str, Any]:
    """Returns what the repositories say of the model, as key of the config -> value; given flags take precedence.

    Keys that a flag sets are left out. Without --config, image size and stride are those of the model's training. Sets
    args.activation. Fetches the tokenizer, if no flag names one: offline, the weights alone would be of no use.
    """
    from input_pipeline.tokenizer import VOCABULARIES, fetch_tokenizer, is_tokenizer
    from ivt_jax.conversion.hub import described

    changes: dict[str, Any] = {}
    undescribed = [flag for flag, weights in opened.items() if weights.single and not weights.description]
    if args.source_text and "weights_text" not in undescribed:
        described(opened["weights_text"], args.source_text)
    if "weights" not in undescribed:
        found = described(opened["weights"], args.source)
        changes = found.image | found.pixels | ({} if args.source_text else found.text)
        changes |= found.geometry if as_taught(args) else {}
        args.activation = found.activation or args.activation
    text = with_texts(opened)
    files = set(text.repository.files)
    has_tokenizer = is_tokenizer(files) if text.single else bool(files & set(VOCABULARIES))
    if has_tokenizer and "text.tokenizer" not in given:
        fetch_tokenizer(text.repository)
        changes["text.tokenizer"] = text.pinned
    return {key: value for key, value in changes.items() if key not in given}


def from_export(weights: Path, rest: list[str]) -> tuple[dict[str, Any], Any]:
    """Returns the config.json beside an export's model.safetensors, and the conversion of that file."""
    from ivt_jax.conversion.files import read_tensors
    from ivt_jax.conversion.model import convert_export
    from ivt_jax.conversion.recognise import refuse_other_source
    from ivt_jax.conversion.vit import Source
    from ivt_jax.models.config import IVTConfig
    from ivt_jax.run.parameter_file import refuse_other_metadata
    from ivt_jax.run.workdir import load_record

    if rest:
        raise UserError(f"unexpected arguments: {' '.join(rest)}; --source=export takes the config beside --weights")
    folder = weights.absolute().parent
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}/config.json not found: --source=export reads it; put the export's beside --weights")
    tensors = read_tensors(weights)
    refuse_other_source("export", Source(tensors, str(weights)))
    record = load_record(folder)
    config = ConfigDict(record["config"])
    refuse_other_metadata(weights, config)
    return record, convert_export(tensors, str(weights), IVTConfig.from_config(config.model))


def find_tokenizer(args: argparse.Namespace, config: ConfigDict, given: set[str], texts: Any) -> tuple[Any, str]:
    """Returns the tokenizer of the weights, None if it cannot be loaded, and a line about it.

    given: keys of the config that flags set. texts: the weights of the text side. Raises UserError if it is not the one
    of the weights, of another size; and if it cannot be loaded though a flag names it, it is of the weights' folder or
    repository, or the model has two towers, whose tokenizer no default names.
    """
    from configs import default
    from input_pipeline.tokenizer import load_tokenizer, refuse_other_size
    from ivt_jax.run.workdir import folder_tokenizer

    name = config.text.tokenizer
    beside = texts.pinned == name and "text.tokenizer" not in given
    named = "text.tokenizer" in given or beside
    two_towers = args.source in TOKENIZERS and not args.source_text
    if two_towers and not named and name == default.get_config().text.tokenizer:
        raise UserError(no_tokenizer(args.source, texts))
    try:
        if args.source == "export":
            tokenizer = folder_tokenizer(args.weights.absolute().parent, config)
        else:
            tokenizer = load_tokenizer(name)
    except DataError as error:
        if named or two_towers:
            raise
        return None, f"tokenizer: not recorded, so it will not be checked: {error}"
    try:
        refuse_other_size(tokenizer, config.model.vocab_size)
    except DataError as error:
        raise UserError(f"{name}: {error}" if beside else str(error)) from None
    digest, size = tokenizer.digest[:12], tokenizer.vocab_size
    return tokenizer, f"tokenizer: {digest}, {size:,} entries, written beside the parameters"


def no_tokenizer(source: str, texts: Any) -> str:
    """Returns the error for weights of two towers whose tokenizer nothing names."""
    title, files, name = TOKENIZERS[source]
    where = "the weights file" if texts.single else texts.name
    remedy = f"name a folder with {files} or tokenizer.json, or a name on the hub, as {name}"
    return f"--config.text.tokenizer: {title}'s tokenizer is not in {where}; {remedy}"


def check_paths(args: argparse.Namespace) -> None:
    """Raises UserError if flags do not go together, a file is missing, or the folder exists."""
    given = bool(args.source_text), bool(args.weights_text)
    if given not in {"vit": [(True, True)], "clip": [(True, True), (False, False)]}.get(args.source, [(False, False)]):
        raise UserError(
            "--source=vit goes with --source_text=bert and --weights_text=FILE, which give the text side, and "
            "--source=clip may; the other sources have both sides and go without"
        )
    if args.source == "export" and args.config:
        raise UserError("--config does not go with --source=export, which takes the config.json beside --weights")
    start = (args.config or "").rpartition(":")[2]
    if start in STARTS and (start != args.source or args.source_text):
        alone = " without --source_text" if start == args.source else ""
        raise UserError(f"{args.config} starts from --source={start}{alone}; name another --config")
    for path in (args.weights, args.weights_text):
        if path:
            check_place(path, args.source)
    refuse_path(args.out, UNWRITABLE)
    if args.out.exists():
        raise UserError(f"{args.out} exists already; remove it or name another --out")
    above = next(folder for folder in args.out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out: {above} is not a folder; name another --out")


def check_place(place: Path, source: str) -> None:
    """Raises UserError if --weights or --weights_text names nothing that the source can be read from."""
    whole = source in ("vit", "clip", "siglip")
    if is_on_hub(place):
        if not whole:
            raise UserError(f"{place}: --source={source} reads a file; download the weights and name their file")
        if not re.fullmatch(rf"{PREFIX}[\w.-]+/[\w.-]+(@.+)?", str(place)):
            example = f"{PREFIX}{TOKENIZERS['clip'][2]}"
            raise UserError(f"{place}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, as {example}")
    elif place.is_dir() and not whole:
        raise UserError(f"{place} is a folder; --source={source} reads a file: name it")
    elif not place.is_file() and not place.is_dir():
        remedy = "name a file of weights, a folder as the hub has it, or hf:OWNER/NAME for one on the hub"
        raise UserError(f"{place} is no file or folder; {remedy}")


def record_sizes(config: Any, model_config: Any) -> None:
    """Writes the sizes and options of the converted model into the config. Raises UserError if the widths differ."""
    if model_config.towers == 2:
        return record_towers(config, model_config)
    if model_config.width != config.model.width:
        raise UserError(
            f"the weights are {model_config.width} wide, the config {config.model.width}: set --config.model.width and "
            "with it --config.model.num_heads, which cannot be read off the weights"
        )
    sizes = ("patch_size", "depth", "mlp_ratio", "vocab_size", "max_text_length")
    options = ("image_norm", "image_activation", "norm_epsilon", "pixel_mean", "pixel_deviation")
    more = ("relative_positions", "projection")
    config.model.update({name: getattr(model_config, name) for name in sizes + options + more})


def record_towers(config: Any, model_config: Any) -> None:
    """Writes the same for two towers; turns off what needs one tower, and fits text lengths to the weights' positions.

    A text pooled at its last place is padded to the length that the weights were trained with.
    """
    values = dataclasses.asdict(model_config)
    config.model.text.update(values.pop("text"))
    config.model.update(values)
    config.bmm.update({"word_weight": 0.0, "patch_weight": 0.0})
    config.itm.weight = 0.0
    if model_config.text.pooling != "first" and config.bmm.align == "exact":
        config.bmm.align = "off"
    longest = model_config.max_text_length
    for level, length in config.text.length.items():
        config.text.length[level] = longest if model_config.text.pooling == "last" else min(length, longest)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser; it leaves flags of config keys to `read_config`."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.convert",
        description="Converts weights to a folder of parameters: the IVT release's checkpoint, VLMo's, CLIP's, "
        "SigLIP's, an ImageNet ViT or CLIP's image tower with BERT, or the model.safetensors of an export.",
        epilog="Files: .safetensors, Google's .npz and, if PyTorch is installed, .pth and .bin. Use the folder as "
        "--workdir of ivt_jax.search and of --mode=evaluate, or as --config.train.init_from of a training.",
        allow_abbrev=False,
    )
    flag, with_bert, resized = (
        parser.add_argument,
        "with vit, and clip without its texts: ",
        "with vit, clip and siglip: ",
    )
    sources = ("release", "vlmo", "clip", "siglip", "vit", "export")
    flag("--source", required=True, choices=sources, help="origin of --weights")
    flag("--weights", required=True, type=filled_path, help="file of weights (an export's has config.json beside it), "
         "folder as the hub has it, or hf:OWNER/NAME[@REVISION] on the hub")  # fmt: skip
    flag("--source_text", choices=("bert",), help=with_bert + "origin of --weights_text")
    flag("--weights_text", type=filled_path, help=with_bert + "BERT's file, folder, or hf:OWNER/NAME[@REVISION]")
    flag("--max_text_len_of_initckpt", type=positive, default=196,
         help="with vlmo: longest text in tokens that its relative positions were made for (default 196)")  # fmt: skip
    flag(
        "--out", required=True, type=filled_path, help="folder to write, with the folders above it; must not exist yet"
    )
    flag("--config", type=filled, help="config with image size, stride and heads, recorded beside the parameters "
         "(default configs/cuhk.py); --config.KEY=VALUE changes a key")  # fmt: skip
    flag("--resize", choices=("bilinear", "bicubic"), default="bilinear",
         help=resized + "how positions are resized to the config's grid (default bilinear)")  # fmt: skip
    flag("--activation", choices=("quick_gelu", "gelu"), default="quick_gelu",
         help="with clip: activation of its MLPs (default quick_gelu, OpenAI's; most others have gelu)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 on a mistake."""
    args, rest = make_parser().parse_known_args(argv)
    return run_command(lambda: convert(args, rest))


if __name__ == "__main__":
    sys.exit(main())
