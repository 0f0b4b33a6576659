"""Does a start from pre-trained weights help? A small VLMo is pre-trained on PEDES-Synth, converted, and fine-tuned.

    python -m ivt_jax.benchmarks.transfer --out=runs/transfer

1. Random weights are written under VLMo's names, and converted (`--source=vlmo`).
2. They are pre-trained on 4,000 persons, with square images; every image counts as a person of its own, as pairs from
   the web do. Positions that VLMo does not have stay 0 (`train.freeze`).
3. The pre-trained weights are written under VLMo's names, and converted for images of 96x48.
4. Both, the pre-trained and the random ones, are fine-tuned on 500 other persons, with some seeds, at equal steps.

Prints a table of test scores. Each training is `ivt_jax.main` in a workdir of its own: a second call resumes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ivt_jax.common.command import exit_code, filled_path, positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_text

MODEL = ("--config.model.relative_positions=True", "--config.model.projection=128")
FROZEN = "--config.train.freeze=('image_embedding/(pos_embed|type_embed)','text_embedding/(position|token_type)')"
PRETRAINED, RANDOM = "pretrained", "random"
MEASURES = ("R1", "R5", "R10", "mAP")


def run(options: argparse.Namespace) -> None:
    """Pre-trains, converts and fine-tunes what is missing under --out; prints the table."""
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    images, few = draw_data(out)
    starts = {RANDOM: out / "weights-random", PRETRAINED: out / "weights-pretrained"}
    if not starts[RANDOM].exists():
        write_vlmo(random_params(), out / "vlmo-random.safetensors")
        convert(out / "vlmo-random.safetensors", starts[RANDOM])
    square = out / "weights-random-square"
    if not square.exists():
        convert(out / "vlmo-random.safetensors", square, "--config.model.image_size=(96,96)")
    pretrain(out / "pretrained", images, square, options.pretraining_steps)
    if not starts[PRETRAINED].exists():
        from ivt_jax.run.checkpoint import restore_params

        write_vlmo(restore_params(out / "pretrained").params, out / "vlmo-pretrained.safetensors")
        convert(out / "vlmo-pretrained.safetensors", starts[PRETRAINED])
    for seed in range(options.seeds):
        for name, start in starts.items():
            fine_tune(out / f"{name}-{seed}", few, start, seed, options.steps)
    table = format_table({name: read_scores(out, name, options.seeds) for name in starts})
    write_text(out / "transfer.md", table)
    print(table, end="")


def draw_data(out: Path) -> tuple[Path, Path]:
    """Generates both datasets: 4,000 persons with an id for each image, and 500 others; returns their folders."""
    many, images, few = (out / name for name in ("persons", "images", "few"))
    for folder, persons, seed in ((many, 4300, 1), (few, 800, 0)):
        command("-m", "input_pipeline.synthetic", f"--out={folder}", f"--persons={persons}", "--size=96x48",
                f"--seed={seed}")  # fmt: skip
    if not images.exists():
        images.mkdir()
        (images / "imgs").symlink_to((many / "imgs").absolute())
        file = many / "reid_raw.json"
        records = json.loads(file.read_text(encoding="utf-8"))
        own = [{**record, "id": number} for number, record in enumerate(records, start=1)]
        write_text(images / file.name, json.dumps(own))
    return images, few


def random_params() -> Any:
    """Returns random parameters of the small tower for square images, with 0 where VLMo has nothing."""
    import jax

    from configs import synth
    from ivt_jax.models.build import build_model

    config = synth.get_config()
    config.model.update({"image_size": (96, 96), "relative_positions": True, "projection": config.model.width})
    params = jax.device_get(jax.jit(build_model(config.model).init)(jax.random.key(0))["params"])
    for part, name in (("image", "pos_embed"), ("image", "type_embed"), ("text", "position"), ("text", "token_type")):
        params[f"{part}_embedding"][name] = np.zeros_like(params[f"{part}_embedding"][name])
    return params


def write_vlmo(params: Any, file: Path) -> None:
    """Writes parameters under VLMo's names."""
    from safetensors.numpy import save

    from ivt_jax.conversion.vlmo import vlmo_from_params

    file.write_bytes(save(vlmo_from_params(params)))


def convert(weights: Path, out: Path, *flags: str) -> None:
    """Runs the command that converts a file of VLMo's weights."""
    command("-m", "ivt_jax.convert", "--source=vlmo", f"--weights={weights}", f"--out={out}",
            "--max_text_len_of_initckpt=64", "--config=configs/synth.py", *flags)  # fmt: skip


def pretrain(workdir: Path, root: Path, start: Path, steps: int) -> None:
    """Trains on pairs of image and sentence, with a learned scale, as VLMo's contrastive loss.

    By AdamW at 1e-3 the loss rises again after some hundred steps.
    """
    train(workdir, root, start, steps, "--config.model.image_size=(96,96)", "--config.mla.levels=('sentence',)",
          "--config.match.loss=itc", "--config.match.temperature=0", "--config.bmm.word_weight=0",
          "--config.bmm.patch_weight=0", "--config.data.instances=1", "--config.data.sampling=uniform",
          "--config.optimizer.name=adamw", "--config.optimizer.learning_rate=5e-4",
          "--config.optimizer.bias_learning_rate=5e-4",
          "--config.evaluation.robustness=False", FROZEN)  # fmt: skip


def fine_tune(workdir: Path, root: Path, start: Path, seed: int, steps: int) -> None:
    """Trains the demo's recipe from these weights."""
    train(workdir, root, start, steps, f"--config.seed={seed}", "--config.evaluation.robustness=False")


def train(workdir: Path, root: Path, start: Path, steps: int, *flags: str) -> None:
    """Trains with configs/synth.py; a complete run ends at once."""
    command("-m", "ivt_jax.main", "--config=configs/synth.py", f"--workdir={workdir}", f"--config.data.root={root}",
            f"--config.train.steps={steps}", f"--config.train.eval_every={steps}",
            f"--config.train.init_from={start}", *MODEL, *flags)  # fmt: skip


def command(*arguments: str) -> None:
    """Runs Python with these arguments. Raises UserError if it fails."""
    print("python", *arguments, flush=True)
    if subprocess.run([sys.executable, *arguments]).returncode:
        raise UserError("the command above failed; the same command continues")


def read_scores(out: Path, name: str, seeds: int) -> np.ndarray:
    """Returns test scores of text to image in percent, (seeds, measures)."""
    summaries = [json.loads((out / f"{name}-{seed}" / "test/summary.json").read_text()) for seed in range(seeds)]
    return np.array([[summary["t2i"][measure] for measure in MEASURES] for summary in summaries])


def format_table(results: dict[str, np.ndarray]) -> str:
    """Formats the mean and the range over the seeds in Markdown."""
    lines = ["| start | " + " | ".join(MEASURES) + " |", "|---" * (1 + len(MEASURES)) + "|"]
    for name, scores in results.items():
        values = zip(scores.mean(0), scores.min(0), scores.max(0), strict=True)
        lines.append(
            f"| {name} | " + " | ".join(f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in values) + " |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=filled_path, default=Path("runs/transfer"), help="folder of data, weights and runs"
    )
    parser.add_argument("--seeds", type=positive, default=3, help="fine-tunings of each start (3)")
    parser.add_argument("--pretraining_steps", type=positive, default=3000, help="steps on 4,000 persons (3000)")
    parser.add_argument("--steps", type=positive, default=300, help="steps of each fine-tuning (300)")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
