"""The training step beside PyTorch's: the same weights, the same batch, the same loss, timed in turn on one machine.

    pip install -e ".[torch]"
    python -m ivt_jax.benchmarks.torch_reference           # ViT-B, 12 pairs, float32: minutes on a CPU
    python -m ivt_jax.benchmarks.torch_reference --batch=64 --views=3 --dtype=bfloat16 --compile      # on a GPU

Three sides, each in a process of its own, which take their steps in turn: `jax`, this project's step; `torch`, the same
as PyTorch has it best (scaled_dot_product_attention, channels_last, fused SGD, autocast, with --compile torch.compile);
`plain`, in the style of the release (explicit attention, a gradient scaler, synchronise and empty_cache each step).

The step is the release's without its draws, which two frameworks never share: views of images and levels of texts
through the tower, CMPM over them all, SGD with momentum. The first losses must agree, or nothing is timed.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import cuhk
from ivt_jax.common.command import positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_text
from ivt_jax.common.messages import install
from ivt_jax.common.startup import set_environment

SIDES = ("jax", "torch", "plain")
LEVELS = ("sentence", "phrase", "word")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the first losses, relative


def make_config(options: argparse.Namespace) -> ConfigDict:
    """The released recipe with nothing that is drawn."""
    config = cuhk.get_config("release")
    config.data.batch_size, config.model.dtype = options.batch, options.dtype
    config.mla.views, config.mla.levels = options.views, LEVELS[: options.views]
    config.model.update({"stride": options.stride, "dropout": 0.0, "drop_path": 0.0, "depth": options.depth})
    config.model.unroll = options.unroll
    config.text.length.update(dict.fromkeys(LEVELS, options.length))
    config.bmm.align, config.augment.erase = "off", 0.0
    return config


def jax_step(config: ConfigDict, weights: Path) -> Callable[[], float]:
    """This project's step; writes its first parameters for the others, under the release's names."""
    set_environment(config)
    import jax

    from ivt_jax.benchmarks.measure import random_batch
    from ivt_jax.conversion import release_from_params
    from ivt_jax.training.program import build_program

    program = build_program(config, np.array([0, 10**6]), 1000, mask_id=4)
    state, batch, hyperparameters = program.init(), jax.device_put(random_batch(config)), program.hyperparameters()
    np.savez(weights, **release_from_params(jax.device_get(state.params)))  # type: ignore[arg-type]
    step = program.step.lower(state, batch, hyperparameters).compile()

    def take() -> float:
        nonlocal state
        state, metrics = step(state, batch, hyperparameters)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return take


def torch_step(config: ConfigDict, weights: Path, plain: bool, compiled: bool) -> Callable[[], float]:
    """PyTorch's step, from the weights that `jax_step` wrote."""
    import torch
    from torch.nn import functional

    from ivt_jax.benchmarks.measure import random_batch
    from ivt_jax.encoding.images import DEVIATION, MEAN
    from tests.reference.ivt_torch import IVT, cmpm, sgd, stacked_loss

    device, m = "cuda" if torch.cuda.is_available() else "cpu", config.model
    model = IVT(
        image_size=m.image_size, patch=m.patch_size, stride=m.stride, width=m.width, depth=m.depth, heads=m.num_heads,
        vocab_size=m.vocab_size, positions=m.max_text_length,
    )  # fmt: skip
    with np.load(weights) as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files}, strict=False)
    model.to(device)
    tower, autocast = model.encoder_vl, torch.autocast(device, torch.bfloat16, enabled=m.dtype == "bfloat16")
    scaler = torch.amp.GradScaler(device, enabled=plain and device == "cuda")
    optimizer = sgd(model) if plain else torch.optim.SGD(sgd(model).param_groups, momentum=0.9, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.start
    if not plain:
        tower.patch_embed.to(memory_format=torch.channels_last)
    batch = random_batch(config)
    pixels = torch.from_numpy(batch["images"]).to(device)
    ids = torch.cat([torch.from_numpy(x) for x in map(batch["text"].get, config.mla.levels)]).to(device).long()
    persons = torch.from_numpy(batch["person_ids"]).to(device).repeat(config.mla.views)

    def attention(layer: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        rows, length, width = tokens.shape
        heads = layer.qkv(tokens).view(rows, length, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return layer.proj(mixed.transpose(1, 2).reshape(rows, length, width))

    def walk(tokens: torch.Tensor, mask: torch.Tensor | None, modality: str) -> torch.Tensor:
        for block in tower.blocks:
            tokens = tokens + attention(block.attn, block.norm1(tokens), mask)
            tokens = tokens + (block.mlp_vis if modality == "image" else block.mlp_txt)(block.norm2(tokens))
        return tower.norm(tokens)[:, 0].float()

    def fast_loss() -> torch.Tensor:
        views = ((pixels.transpose(0, 1).flatten(0, 1) / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)  # channels last
        patches = tower.patch_embed(views)
        tokens = torch.cat([tower.cls_token.expand(len(views), -1, -1), patches], 1)
        images = walk(tokens + tower.pos_embed + tower.type_embed, None, "image")
        return cmpm(images, walk(tower.embeddings(ids), (ids != 0)[:, None, None], "text"), persons)

    def plain_loss() -> torch.Tensor:
        views = [(pixels[:, view] / 255 - MEAN) / DEVIATION for view in range(config.mla.views)]
        texts = [(part, (part != 0).float()) for part in ids.chunk(config.mla.views)]
        return stacked_loss(model, views, texts, persons[: config.data.batch_size])

    loss_of = plain_loss if plain else torch.compile(fast_loss) if compiled else fast_loss

    def take() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = loss_of()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if device == "cuda" and plain:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return loss.item()  # waits for the device

    return take


def serve(side: str, options: argparse.Namespace, weights: Path, pipe: Connection) -> None:
    """A side's process: builds its step, tells its first loss, then takes as many steps as it is asked for."""
    config = make_config(options)
    take = jax_step(config, weights) if side == "jax" else torch_step(config, weights, side == "plain", options.compile)
    pipe.send(take())
    while count := pipe.recv():
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            take()
            taken.append(time.perf_counter() - start)
        pipe.send(taken)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of every step of each side. Raises UserError where the first losses differ."""
    context, pipes, losses = multiprocessing.get_context("spawn"), {}, {}
    for side in SIDES:  # the first one writes the weights that the others read
        pipes[side], other = context.Pipe()
        arguments = side, options, folder / "weights.npz", other
        context.Process(target=serve, args=arguments, daemon=True).start()
        other.close()
        losses[side] = pipes[side].recv()
        print(f"{side}: first loss {losses[side]:.6f}", file=sys.stderr, flush=True)
        if not np.isclose(losses[side], losses["jax"], rtol=TOLERANCE[options.dtype]):
            raise UserError(f"the first loss of {side} is {losses[side]}, of jax {losses['jax']}: not the same step")
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(-1, options.turns):  # the first turn warms up
        for side in SIDES:
            pipes[side].send(options.steps)
            taken = pipes[side].recv()
            seconds[side] += taken if turn >= 0 else []
    for pipe in pipes.values():
        pipe.send(0)  # no more steps
    return seconds


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.benchmarks.torch_reference", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch", type=positive, default=12, help="pairs (12)")
    parser.add_argument("--views", type=int, choices=(1, 2, 3), default=1, help="views, and as many text levels (1)")
    parser.add_argument("--length", type=positive, default=64, help="tokens of a text (64)")
    parser.add_argument("--stride", type=positive, choices=range(1, 17), default=16, help="of the patches (16)")
    parser.add_argument("--depth", type=positive, default=12, help="blocks of ViT-B's width (12)")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the side torch")
    parser.add_argument("--unroll", action="store_true", help="model.unroll for the side jax")
    parser.add_argument("--turns", type=positive, default=7, help="turns of each side (7)")
    parser.add_argument("--steps", type=positive, default=1, help="steps in a turn (1)")
    parser.add_argument("--json", type=Path, help="write all times")
    options = parser.parse_args(argv)
    try:
        import torch
    except ImportError:
        print(f"error: PyTorch is not installed: {install('torch')}", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds = compare(options, Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    medians = {side: statistics.median(taken) for side, taken in seconds.items()}
    print("| side | s, median | fastest | slowest | pairs/s | our time / theirs |", "|" + " --- |" * 6, sep="\n")
    for side, taken in seconds.items():
        figures = f"{medians[side]:.4f} | {min(taken):.4f} | {max(taken):.4f} | {options.batch / medians[side]:.2f}"
        print(f"| {side} | {figures} | {medians['jax'] / medians[side]:.3f} |")
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "torch": torch.__version__}
        write_text(options.json, json.dumps({**told, "seconds": seconds}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
