"""Our training beside PyTorch's: the released recipe, scaled down, step by step on the same batches.

    python -m input_pipeline.synthetic --out=data/pedes-synth-trajectory --persons=440 --size=96x48
    python -m tests.reference.trajectory --root=data/pedes-synth-trajectory --out=docs/trajectory.png

Ours is the jitted step of `ivt_jax.training.loop`; PyTorch's is tests/reference/ivt_torch.py, once in float32 and
once in float64, from our initial weights. All three see the same views, texts and kept positions; the tower, the
loss, the gradients, the rates and the updates are each side's own. Needs PyTorch.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from configs import synth
from configs.default import released
from ivt_jax.common.command import positive
from ivt_jax.common.errors import UserError
from ivt_jax.conversion import release_from_params
from ivt_jax.evaluation.protocols import Embeddings, standard
from ivt_jax.evaluation.ranking import bootstrap_interval, query_scores
from ivt_jax.evaluation.split import embed_split, split_captions
from ivt_jax.losses.bmm import exact_selection
from tests.reference.ivt_torch import IVT, released_rate, set_rates, sgd, stacked_loss

torch.set_num_threads(1)  # its threads and XLA's on the same cores cost five times the time

PAD_ID = 0  # of the shipped vocabulary
EARLY = 50  # steps within which the losses must agree
CURVES = ("ours", "PyTorch", "PyTorch, float64")


def scaled_down(root: str) -> ConfigDict:
    """The released recipe at the sizes of configs/synth.py, patches overlapping; without what is each side's chance.

    A small tower from random weights needs higher rates than a pre-trained ViT-B, and eight epochs a shorter warm-up.
    """
    config = released(synth.get_config())
    config.seed = 1234
    config.data.update({"root": root, "batch_size": 28, "instances": 2})
    config.model.update(
        {"stride": 10, "width": 64, "depth": 2, "dropout": 0.0, "drop_path": 0.0, "init_std": 0.125, "remat": False}
    )
    config.mla.views = 3
    config.bmm.align = "exact"
    peak = 0.05
    config.optimizer.update(
        {"name": "sgd", "momentum": 0.9, "schedule": "released", "learning_rate": peak, "bias_learning_rate": 2 * peak,
         "start": 0.01 * peak, "floor": 0.002 * peak, "warmup_epochs": 2.0, "weight_decay": 1e-4, "clip_norm": 0.0}
    )  # fmt: skip
    config.train.update({"epochs": 8, "first_epoch": 0, "steps": 0})
    return config


def kept_positions(config: ConfigDict, texts: list[np.ndarray], num_patches: int, step: int) -> list[torch.Tensor]:
    """The positions of images and of texts that our step number `step` (from 0) keeps, CLS first.

    texts: ids of every level. Follows the keys of `train_step`, `objective`, `encode_views` and `encode_levels`.
    """
    align = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step), 6)[1]
    size, longest = max(ids.shape[1] for ids in texts), max(int((ids != PAD_ID).sum(1).max()) for ids in texts)
    draws = ((0, 1 + num_patches, 1 + num_patches), (1, longest, size))
    kept = []
    for number, length, padded in draws:
        order, valid = exact_selection(jax.random.fold_in(align, number), length, padded, config.bmm.align_ratio)
        kept.append(torch.from_numpy(np.asarray(order)[np.asarray(valid)].astype(np.int64)))
    return kept


class Reference:
    """PyTorch's side: model and optimiser, from our parameters, in the dtype given."""

    def __init__(self, config: ConfigDict, params: Mapping[str, Any], dtype: torch.dtype):
        self.config, self.dtype = config, dtype
        c = config.model
        self.model = IVT(
            image_size=tuple(c.image_size), patch=c.patch_size, stride=c.stride, width=c.width, depth=c.depth,
            heads=c.num_heads, vocab_size=c.vocab_size, positions=c.max_text_length,
        )  # fmt: skip
        weights = {name: torch.from_numpy(x.copy()) for name, x in release_from_params(params).items()}
        self.model.load_state_dict(weights)
        self.model.to(dtype)
        self.optimizer = sgd(self.model)

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """uint8 to -1..1."""
        return (torch.from_numpy(images.copy()).to(self.dtype) / 255 - 0.5) / 0.5

    def step(self, batch: Mapping[str, Any], kept: list[torch.Tensor], epoch: int) -> float:
        """One update at the rates of the epoch (its number as released); returns the loss before it."""
        o, t = self.config.optimizer, self.config.train
        set_rates(
            self.optimizer,
            *(
                released_rate(epoch, peak, o.learning_rate, int(o.warmup_epochs), t.epochs)
                for peak in (o.learning_rate, 2 * o.learning_rate)
            ),
        )
        ids = [torch.from_numpy(batch["text"][level].astype(np.int64)) for level in self.config.mla.levels]
        loss = stacked_loss(
            self.model,
            [self.pixels(view) for view in batch["images"].swapaxes(0, 1)],
            [(x, x != PAD_ID) for x in ids],
            torch.from_numpy(batch["person_ids"].copy()),
            *kept,
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def embed(self, source: Any, tokenizer: Any, ours: Embeddings) -> Embeddings:
        """The split that `ours` embeds, by this model."""
        from input_pipeline.pipeline import image_batches

        c = self.config
        with torch.no_grad():
            batches = image_batches(source, tuple(c.model.image_size), c.runtime.eval_batch_size)
            image = torch.cat([self.model.encode_image(self.pixels(batch))[:, 0] for batch in batches])
            ids = torch.from_numpy(tokenizer.encode(split_captions(source), c.text.length.sentence)).long()
            text = torch.cat([self.model.encode_text(x, x != PAD_ID)[:, 0] for x in ids.split(128)])
        unit = [torch.nn.functional.normalize(x, dim=1).float().numpy() for x in (image, text)]
        return ours._replace(image=unit[0], text=unit[1])


def trajectory(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Trains all sides -> losses (steps, 3) in the order of CURVES, the peak rates used, and R@1 of each on test."""
    from input_pipeline import opening
    from input_pipeline.joint import JointSource
    from input_pipeline.pipeline import plan_epochs, train_batches
    from input_pipeline.tokenizer import load_tokenizer
    from ivt_jax.training.program import build_program
    from ivt_jax.training.sharding import global_batch

    source, test = JointSource(opening.open_parts(config, "train")), opening.open_split(config, "test")
    tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size)
    plans = plan_epochs(config, source)
    epochs = config.train.epochs + 1 - config.train.first_epoch
    program = build_program(config, plans.epoch_starts(epochs), steps, tokenizer.mask_id)
    state, hyperparameters = program.init(), program.hyperparameters()
    references = [Reference(config, jax.device_get(state.params), dtype) for dtype in (torch.float32, torch.float64)]
    losses, began = [], time.monotonic()
    with contextlib.closing(train_batches(config, source, tokenizer, plans)) as batches:
        for step, batch in zip(range(steps), batches, strict=False):
            state, metrics = program.step(state, global_batch(program.mesh, batch), hyperparameters)
            texts = [batch["text"][level] for level in config.mla.levels]
            kept = kept_positions(config, texts, program.model.config.num_patches, step)
            epoch = config.train.first_epoch + plans.locate(step)[0]
            losses.append([float(metrics["loss"]), *(side.step(batch, kept, epoch) for side in references)])
            if step % 25 == 0 or step == steps - 1:
                shown = "  ".join(f"{loss:.5f}" for loss in losses[-1])
                print(
                    f"step {step + 1} of {steps}, epoch {epoch}, {time.monotonic() - began:.0f} s: {shown}", flush=True
                )
    ours = embed_split(program.model, state.params, test, tokenizer, config)
    embedded = [ours, *(side.embed(test, tokenizer, ours) for side in references)]
    return {"losses": np.array(losses), "recall": [recall_at_1(e) for e in embedded], "epochs": epoch + 1}


def recall_at_1(embeddings: Embeddings) -> tuple[float, float, float]:
    """R@1 in percent, text to image, and the ends of its 95% interval."""
    values = query_scores(standard(embeddings)["t2i"])["R1"]
    return (float(values.mean()), *bootstrap_interval(values, embeddings.text_person))


def differences(losses: np.ndarray) -> dict[str, np.ndarray]:
    """How far each two sides are apart at every step, see `gap`."""
    ours, single, double = losses.T
    return {
        "ours - PyTorch": gap(ours, single),
        "ours - float64": gap(ours, double),
        "PyTorch - float64": gap(single, double),
    }


def gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The larger of absolute and relative difference: a bound on it holds both ways."""
    return np.abs(x - y) * np.maximum(1, 1 / np.abs(y))


def table(losses: np.ndarray, recall: list[tuple[float, float, float]]) -> str:
    """Markdown: the largest differences, and R@1 of every side."""
    early, steps = min(EARLY, len(losses)), len(losses)
    lines = [f"| largest difference of the losses | steps 1-{early} | steps 1-{steps} |", "|---|---|---|"]
    lines += [f"| {name} | {d[:early].max():.1e} | {d.max():.1e} |" for name, d in differences(losses).items()]
    lines += ["", "| side | first loss | last loss | test R@1 | 95% interval |", "|---|---|---|---|---|"]
    for name, curve, (mean, low, high) in zip(CURVES, losses.T, recall, strict=True):
        lines.append(f"| {name} | {curve[0]:.4f} | {curve[-1]:.4f} | {mean:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines) + "\n"


def plot(losses: np.ndarray, path: Path) -> None:
    """The losses of ours and PyTorch's, and below them their differences on a logarithmic axis."""
    from matplotlib.figure import Figure

    steps = np.arange(1, len(losses) + 1)
    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(steps, losses[:, 1], color="#e8833a", linewidth=2.6, label="PyTorch")
    upper.plot(steps, losses[:, 0], color="#1f3a5f", linewidth=1, label="ours")
    upper.set_ylabel("loss")
    for (name, values), colour in zip(differences(losses).items(), ("#1f3a5f", "#4f7df3", "#e8833a"), strict=True):
        lower.semilogy(steps, np.maximum(values, 1e-9), color=colour, linewidth=1, label=name)
    lower.axhline(1e-3, color="#8a90a0", linewidth=0.8, linestyle="--")
    lower.axvline(EARLY, color="#8a90a0", linewidth=0.8, linestyle="--")
    lower.set_ylabel("difference of the losses")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def agrees(losses: np.ndarray, recall: list[tuple[float, float, float]]) -> bool:
    """Whether ours and PyTorch's agree: 1e-3 within EARLY steps, and each R@1 within the interval of the other."""
    (ours, *own), (theirs, *others) = recall[:2]
    close = differences(losses)["ours - PyTorch"][:EARLY].max() < 1e-3
    return bool(close and own[0] <= theirs <= own[1] and others[0] <= ours <= others[1])


def main() -> int:
    """The command line; exit code 1 where the sides disagree."""
    parser = argparse.ArgumentParser(prog="python -m tests.reference.trajectory", description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/pedes-synth-trajectory", help="folder of the generated benchmark")
    parser.add_argument("--out", type=Path, default=Path("docs/trajectory.png"), help="the plot")
    parser.add_argument("--steps", type=positive, default=300)
    args = parser.parse_args()
    began = time.monotonic()
    try:
        result = trajectory(scaled_down(args.root), args.steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    losses, recall = result["losses"], result["recall"]
    plot(losses, args.out)
    print(table(losses, recall) + f"{args.out}; {time.monotonic() - began:.0f} s, {result['epochs']} epochs")
    if not agrees(losses, recall):
        print("they disagree", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
