"""Compare the training step with PyTorch's: the same weights, batch and loss, timed on one machine.

    pip install -e ".[torch]"
    python -m ivt_jax.benchmarks.torch_reference           # ViT-B, 12 pairs, float32: minutes on a CPU
    python -m ivt_jax.benchmarks.torch_reference --model=demo --steps=20       # the demo's tower, 32 pairs
    python -m ivt_jax.benchmarks.torch_reference --batch=64 --views=3 --dtype=bfloat16 --compile      # on a GPU

On a GPU, PyTorch computes attention of images with its flash kernel and attention of texts, which have a mask, with its
memory-efficient kernel. Which kernels a step ran is read from PyTorch's profiler, printed and written to --json.

Three sides take turns, each in its own process: `jax`, this project's step; `torch`, the fastest in PyTorch
(scaled_dot_product_attention, channels_last, fused SGD, autocast, with --compile torch.compile); `plain`, in the style
of the release (explicit attention, gradient scaler, synchronize and empty_cache each step).

The step is the release's without random draws, which differ between frameworks: views of images and levels of texts,
CMPM over all of them, SGD with momentum. Nothing is timed unless the first losses agree.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import cuhk, synth
from ivt_jax.common.command import exit_code, filled_path, positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_text
from ivt_jax.common.messages import install
from ivt_jax.common.startup import set_environment

SIDES = ("jax", "torch", "plain")
LEVELS = ("sentence", "phrase", "word")
# By model, the defaults of the flags with these names.
DEFAULTS = {
    "base": {"batch": 12, "length": 64, "stride": 16, "depth": 12},
    "demo": {"batch": 32, "length": 48, "stride": 12, "depth": 4},
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the first losses, relative
_take: Callable[[], float]  # the step of a side, in its own process


def make_config(options: argparse.Namespace) -> ConfigDict:
    """Returns the config of the released recipe without random draws."""
    config = cuhk.get_config("release")
    if options.model == "demo":
        config.model.update(synth.get_config().model)
    config.data.batch_size, config.model.dtype = options.batch, options.dtype
    config.mla.views, config.mla.levels = options.views, LEVELS[: options.views]
    config.model.update({"stride": options.stride, "dropout": 0.0, "drop_path": 0.0, "depth": options.depth})
    config.model.unroll = options.unroll or config.model.unroll
    config.text.length.update(dict.fromkeys(LEVELS, options.length))
    config.bmm.align, config.augment.erase = "off", 0.0
    return config


def jax_step(config: ConfigDict, weights: Path) -> Callable[[], float]:
    """Returns this project's step; writes its initial parameters to `weights` under the release's names."""
    set_environment(config)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other sides need memory of the same GPU
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
    """Returns PyTorch's step with the weights that `jax_step` wrote."""
    import torch

    from ivt_jax.benchmarks.measure import random_batch
    from tests.reference.ivt_torch import IVT, sgd

    device, m = "cuda" if torch.cuda.is_available() else "cpu", config.model
    model = IVT(
        image_size=m.image_size, patch=m.patch_size, stride=m.stride, width=m.width, depth=m.depth, heads=m.num_heads,
        vocab_size=m.vocab_size, positions=m.max_text_length,
    )  # fmt: skip
    with np.load(weights) as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files}, strict=False)
    model.to(device)
    scaler = torch.amp.GradScaler(device, enabled=plain and device == "cuda")
    optimizer = sgd(model) if plain else torch.optim.SGD(sgd(model).param_groups, momentum=0.9, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.start
    batch = random_batch(config)
    pixels = torch.from_numpy(batch["images"]).to(device)
    ids = torch.cat([torch.from_numpy(batch["text"][level]) for level in config.mla.levels]).to(device).long()
    persons = torch.from_numpy(batch["person_ids"]).to(device)
    loss_of = (plain_loss if plain else fast_loss)(model, pixels, ids, persons)
    if compiled and not plain:
        loss_of = torch.compile(loss_of)

    def take() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=m.dtype == "bfloat16"), attention_kernels():
            loss = loss_of()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if device == "cuda" and plain:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return loss.item()  # waits for the device

    return take


def attention_kernels() -> Any:
    """Returns a context in which scaled_dot_product_attention takes the flash kernel wherever it can."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True)


def kernels_of_attention() -> list[str]:
    """Takes a step of this process's side, in PyTorch; returns the operations that computed its attention."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        _take()
    names = {event.key.removeprefix("aten::") for event in profiler.key_averages()}
    return sorted(name for name in names if name.startswith("_scaled_dot_product") and not name.endswith("backward"))


def plain_loss(model: Any, pixels: Any, ids: Any, persons: Any) -> Callable[[], Any]:
    """Returns the loss in the release's style: pixels (B, V, H, W, 3) uint8, ids (V * B, L), person ids (B,)."""
    from tests.reference.ivt_torch import stacked_loss

    def loss() -> Any:
        views = [(view / 255 - 0.5) / 0.5 for view in pixels.unbind(1)]
        texts = [(part, (part != 0).float()) for part in ids.chunk(len(views))]
        return stacked_loss(model, views, texts, persons)

    return loss


def fast_loss(model: Any, pixels: Any, ids: Any, persons: Any) -> Callable[[], Any]:
    """Returns the same loss as `plain_loss` in PyTorch's fastest form."""
    import torch
    from torch.nn import functional

    from tests.reference.ivt_torch import cmpm

    tower = model.encoder_vl
    tower.patch_embed.to(memory_format=torch.channels_last)
    persons = persons.repeat(pixels.shape[1])

    def attention(layer: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        rows, length, width = tokens.shape
        heads = layer.qkv(tokens).view(rows, length, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return layer.proj(mixed.transpose(1, 2).reshape(rows, length, width))

    def encode(tokens: torch.Tensor, mask: torch.Tensor | None, modality: str) -> torch.Tensor:
        for block in tower.blocks:
            tokens = tokens + attention(block.attn, block.norm1(tokens), mask)
            tokens = tokens + (block.mlp_vis if modality == "image" else block.mlp_txt)(block.norm2(tokens))
        return tower.norm(tokens)[:, 0].float()

    def loss() -> torch.Tensor:
        views = ((pixels.transpose(0, 1).flatten(0, 1) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)  # channels last
        tokens = torch.cat([tower.cls_token.expand(len(views), -1, -1), tower.patch_embed(views)], 1)
        images = encode(tokens + tower.pos_embed + tower.type_embed, None, "image")
        return cmpm(images, encode(tower.embeddings(ids), (ids != 0)[:, None, None], "text"), persons)

    return loss


def start(side: str, options: argparse.Namespace, weights: Path) -> float:
    """Builds the step of a side in this process; returns its first loss."""
    global _take
    config, plain = make_config(options), side == "plain"
    _take = jax_step(config, weights) if side == "jax" else torch_step(config, weights, plain, options.compile)
    return _take()


def time_steps(count: int) -> list[float]:
    """Returns the seconds of `count` steps of this process's side."""
    return [timeit(_take, number=1) for _ in range(count)]


def compare(options: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], list[str]]:
    """Returns the seconds of every step of each side, and the attention kernels of the side torch.

    Raises UserError if the first losses differ.
    """
    spawn, losses = multiprocessing.get_context("spawn"), {}
    seconds: dict[str, list[float]] = {side: [] for side in options.sides}
    with contextlib.ExitStack() as stack:
        pools = {side: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for side in options.sides}
        for side, pool in pools.items():  # the first side writes the weights that the others read
            loss = losses[side] = pool.submit(start, side, options, folder / "weights.npz").result()
            print(f"{side}: first loss {loss:.6f}", file=sys.stderr, flush=True)
            if not np.isclose(loss, losses["jax"], rtol=TOLERANCE[options.dtype]):
                raise UserError(f"the first loss of {side} is {loss}, of jax {losses['jax']}: not the same step")
        for turn in range(-1, options.turns):  # the first turn warms up
            for side, pool in pools.items():
                taken = pool.submit(time_steps, options.steps).result()
                seconds[side] += taken if turn >= 0 else []
        return seconds, pools["torch"].submit(kernels_of_attention).result() if "torch" in pools else []


def run(options: argparse.Namespace) -> None:
    """Prints the table, and writes all times to --json."""
    try:
        import torch
    except ImportError:
        raise UserError(f"PyTorch is not installed: {install('torch')}") from None
    with tempfile.TemporaryDirectory() as folder:
        seconds, attention = compare(options, Path(folder))
    print("| side | s, median | fastest | slowest | pairs/s | our time / theirs |", "|" + " --- |" * 6, sep="\n")
    for side, taken in seconds.items():
        median = statistics.median(taken)
        times = f"{median:.4f} | {min(taken):.4f} | {max(taken):.4f} | {options.batch / median:.2f}"
        print(f"| {side} | {times} | {statistics.median(seconds['jax']) / median:.3f} |")
    print(f"attention of the side torch: {', '.join(attention) or 'not computed'}")
    if options.json:
        given = {name: str(value) for name, value in vars(options).items()}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        results = {
            "options": given,
            "torch": torch.__version__,
            "device": device,
            "attention": attention,
            "seconds": seconds,
        }
        write_text(options.json, json.dumps(results, indent=2) + "\n")


def sides(text: str) -> list[str]:
    """Parses --sides: some of SIDES, separated by commas. `jax` comes first, since it writes the weights."""
    chosen = set(text.split(","))
    if "jax" not in chosen or not chosen <= set(SIDES):
        raise argparse.ArgumentTypeError(f"{text!r} is not jax and some of {', '.join(SIDES[1:])}, such as jax,torch")
    return [side for side in SIDES if side in chosen]


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    name, description = "python -m ivt_jax.benchmarks.torch_reference", __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--model", choices=tuple(DEFAULTS), default="base", help="ViT-B or the demo's tower (base)")
    parser.add_argument("--batch", type=positive, help="pairs (12; demo: 32)")
    parser.add_argument("--views", type=int, choices=(1, 2, 3), default=1, help="views, and text levels (1)")
    parser.add_argument("--length", type=positive, help="tokens of a text (64; demo: 48)")
    parser.add_argument("--stride", type=positive, choices=range(1, 17), help="of the patches (16; demo: 12)")
    parser.add_argument("--depth", type=positive, help="blocks (12; demo: 4)")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--sides", type=sides, default=SIDES, help=f"jax and some of the others ({','.join(SIDES)})")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the side torch")
    parser.add_argument("--unroll", action="store_true", help="model.unroll for the side jax, as the demo has it")
    parser.add_argument("--turns", type=positive, default=7, help="turns of each side (7)")
    parser.add_argument("--steps", type=positive, default=1, help="steps in a turn (1)")
    parser.add_argument("--json", type=filled_path, help="file for all times")
    options = parser.parse_args(argv)
    vars(options).update({name: value for name, value in DEFAULTS[options.model].items() if not getattr(options, name)})
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
