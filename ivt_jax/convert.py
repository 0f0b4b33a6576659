"""Weights of other programs, or of an export, as a folder of parameters to evaluate, search with, or train from.

    python -m ivt_jax.convert --source=release --weights=ivt_cuhk.pth --out=weights/ivt-cuhk
    python -m ivt_jax.convert --source=vit --weights=vit_base.safetensors --source_text=bert \\
        --weights_text=bert_base.safetensors --out=weights/vit-bert --config=configs/rstp.py
    python -m ivt_jax.convert --source=clip --weights=clip_base.safetensors --source_text=bert \\
        --weights_text=bert_base.safetensors --out=weights/clip-bert
    python -m ivt_jax.convert --source=export --weights=EXPORT/model.safetensors --out=weights/mine

It prints what became of every tensor. Nothing in a file of weights is executed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, refuse_path, whole_folder
from ivt_jax.common.startup import run_command

WITH_BERT = ("vit", "clip")  # sources whose text side is BERT's

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped path answer at once.


def convert(args: argparse.Namespace, rest: list[str]) -> str:
    """Reads, converts, writes the folder --out; returns the account of the tensors. Raises UserError."""
    check_paths(args)
    from ml_collections import ConfigDict

    from ivt_jax.conversion.tensors import table
    from ivt_jax.training.config_check import edge_notice

    if args.source == "export":
        record, made = from_export(args.weights, rest)
    else:
        record, made = from_others(args, rest)
    tokenizer, notice = find_tokenizer(args, record)
    write_folder(args.out, record, made.params, args.source, [args.weights, args.weights_text], tokenizer)
    return "\n".join(filter(None, [table(made.rows), notice, edge_notice(ConfigDict(record["config"]))]))


def from_others(args: argparse.Namespace, rest: list[str]) -> tuple[dict[str, Any], Any]:
    """What config.json is to hold, and the conversion: the release's checkpoint, or a ViT with BERT."""
    from ivt_jax.common.config_flag import read_config
    from ivt_jax.conversion.clip import convert_clip
    from ivt_jax.conversion.files import read_tensors
    from ivt_jax.conversion.release import convert_release
    from ivt_jax.conversion.vit import Source, convert_vit
    from ivt_jax.models.ivt import IVTConfig
    from ivt_jax.training.config_check import check_keys

    config = read_config(args.config or "configs/cuhk.py", rest)
    check_keys(config)  # what must agree is checked by record_model: the weights give the patch size and others
    model = IVTConfig.from_config(config.model)
    tensors = read_tensors(args.weights)
    if args.source == "release":
        made = convert_release(tensors, str(args.weights), model, config.seed)
    else:
        image = Source(tensors, str(args.weights))
        text = Source(read_tensors(args.weights_text), str(args.weights_text))
        if args.source == "clip":
            made = convert_clip(image, text, model, args.activation, args.resize, config.seed)
        else:
            made = convert_vit(image, text, model, args.resize, config.seed)
    record_model(config, made.model)
    return {"config": config.to_dict()}, made


def from_export(weights: Path, rest: list[str]) -> tuple[dict[str, Any], Any]:
    """The same of an export's model.safetensors: all that config.json beside it holds stays true of the parameters."""
    from ml_collections import ConfigDict

    from ivt_jax.conversion.files import read_tensors
    from ivt_jax.conversion.own import convert_own
    from ivt_jax.models.ivt import IVTConfig
    from ivt_jax.run.parameter_file import refuse_other_metadata
    from ivt_jax.run.workdir import load_record

    if rest:
        raise UserError(f"unexpected arguments: {' '.join(rest)}; --source=export takes the config beside --weights")
    folder = weights.absolute().parent
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}/config.json not found: --source=export reads it; put the export's beside --weights")
    record = load_record(folder)
    config = ConfigDict(record["config"])
    refuse_other_metadata(weights, config)
    return record, convert_own(read_tensors(weights), str(weights), IVTConfig.from_config(config.model))


def find_tokenizer(args: argparse.Namespace, record: dict[str, Any]) -> tuple[Any, str]:
    """The tokenizer that goes with the weights, or None where it cannot be had here, and the line that tells of it."""
    from ml_collections import ConfigDict

    from input_pipeline.tokenizer import load_tokenizer
    from ivt_jax.common.errors import DataError
    from ivt_jax.run.workdir import folder_tokenizer

    config = ConfigDict(record["config"])
    try:
        if args.source == "export":
            tokenizer = folder_tokenizer(args.weights.absolute().parent, config)
        else:
            tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size)
    except DataError as error:
        return None, f"tokenizer: not recorded, so it will not be checked: {error}"
    return (
        tokenizer,
        f"tokenizer: {tokenizer.digest[:12]}, {tokenizer.vocab_size:,} entries, written beside the parameters",
    )


def check_paths(args: argparse.Namespace) -> None:
    """Raises UserError where flags do not go together, a file is missing, or the folder exists."""
    if (args.source in WITH_BERT) != bool(args.source_text and args.weights_text):
        raise UserError(
            "--source=vit and --source=clip go with --source_text=bert and --weights_text=FILE, which give the text "
            "side; --source=release and --source=export have both sides and go without"
        )
    if args.source == "export" and args.config:
        raise UserError("--config does not go with --source=export, which takes the config.json beside --weights")
    for path in (args.weights, args.weights_text):
        if path and not path.is_file():
            raise UserError(f"{path} is not a file; name a file of weights")
    refuse_path(args.out, UNWRITABLE)
    if args.out.exists():
        raise UserError(f"{args.out} exists already; remove it or name another --out")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out: the folder {args.out.absolute().parent} does not exist; make it first")


def record_model(config: Any, model: Any) -> None:
    """Sizes and options that the tensors need, into the config. Raises UserError where only the config tells heads."""
    from ivt_jax.training.config_check import check_config

    if model.width != config.model.width:
        raise UserError(
            f"the weights are {model.width} wide, the config {config.model.width}: set --config.model.width and with "
            "it --config.model.num_heads, which cannot be read off the weights"
        )
    sizes = ("patch_size", "depth", "mlp_ratio", "vocab_size", "max_text_length")
    names = (*sizes, "image_norm", "image_activation", "norm_epsilon")
    config.model.update({name: getattr(model, name) for name in names})
    check_config(config)


def write_folder(
    out: Path, record: dict[str, Any], params: Any, source: str, files: list[Path | None], tokenizer: Any
) -> None:
    """Writes params/, config.json and the tokenizer as an export has them; whole or not at all."""
    from ivt_jax.run.checkpoint import export_params
    from ivt_jax.run.workdir import record_conversion

    with whole_folder(out) as folder:
        export_params(folder / "params", params)
        record_conversion(folder, record, source, [file for file in files if file], tokenizer)
        if tokenizer:
            tokenizer.save(folder)


def make_parser() -> argparse.ArgumentParser:
    """The flags; those of a config's keys are left to the config."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.convert",
        description="Make a folder of parameters from weights of other programs: the IVT release's checkpoint, an "
        "ImageNet ViT together with BERT, or, experimental, CLIP's image tower together with BERT; or from the "
        "model.safetensors of an export.",
        epilog="Files: .safetensors, Google's .npz, and, where PyTorch is installed, .pth and .bin. The folder goes to "
        "--workdir of ivt_jax.search and of --mode=evaluate, or to --config.train.init_from of a training.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--source", required=True, choices=("release", "vit", "clip", "export"), help="what made --weights"
    )
    parser.add_argument(
        "--weights", required=True, type=Path,
        help="the release's checkpoint, the ViT's or CLIP's file, or an export's model.safetensors, its config.json "
        "beside it",
    )  # fmt: skip
    parser.add_argument("--source_text", choices=("bert",), help="with vit and clip: what made --weights_text")
    parser.add_argument("--weights_text", type=Path, help="with vit and clip: BERT's file")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist yet")
    parser.add_argument(
        "--config", help="config that tells image size, stride and heads, and what is "
        "recorded beside them (default configs/cuhk.py); --config.KEY=VALUE changes a key",
    )  # fmt: skip
    parser.add_argument(
        "--resize", choices=("bilinear", "bicubic"), default="bilinear",
        help="with vit and clip: how positions come from the square grid to the config's (default bilinear)",
    )  # fmt: skip
    parser.add_argument(
        "--activation", choices=("quick_gelu", "gelu"), default="quick_gelu",
        help="with clip: that of its MLPs, which no tensor tells (default quick_gelu, OpenAI's; most others: gelu)",
    )  # fmt: skip
    return parser


def run(args: argparse.Namespace, rest: list[str]) -> None:
    """Converts, and tells what was done."""
    print(convert(args, rest))
    print(f"written: {args.out}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 on a mistake."""
    args, rest = make_parser().parse_known_args(argv)
    return run_command(lambda: run(args, rest))


if __name__ == "__main__":
    sys.exit(main())
