"""The PyTorch implementation against the release's numbers, and our real training step against it."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402

from ivt_jax.conversion import release_from_params  # noqa: E402
from ivt_jax.training.program import build_program  # noqa: E402
from ivt_jax.training.sharding import global_batch  # noqa: E402
from tests.reference.ivt_torch import IVT, cmpm, released_rate, set_rates, sgd, stacked_loss  # noqa: E402
from tests.reference.trajectory import Reference, agrees, gap, kept_positions, scaled_down  # noqa: E402

RELEASE = np.load(Path(__file__).parents[1] / "data" / "release_tiny.npz")


def tensor(key):
    return torch.from_numpy(RELEASE[key].copy())


def close(ours, theirs, tolerance=1e-5, name=""):
    """Relative to the largest value of the array, as rounding in a sum is."""
    ours = ours.detach().numpy() if torch.is_tensor(ours) else np.asarray(ours)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(), 1e-3), err_msg=name)


# ---- the release's numbers


@pytest.fixture
def model():
    model = IVT(image_size=(64, 32), patch=16, stride=12, width=48, depth=3, heads=4, vocab_size=120, positions=32)
    names = [key.removeprefix("weights/") for key in RELEASE.files if key.startswith("weights/")]
    model.load_state_dict({name: tensor(f"weights/{name}") for name in names})
    return model


def test_tokens_and_loss(model):
    images, texts = model.encode_image(tensor("images")), model.encode_text(tensor("ids"), tensor("mask"))
    close(images, RELEASE["eval/image_tokens"])
    close(texts, RELEASE["eval/text_tokens"])
    close(cmpm(images[:, 0], texts[:, 0], tensor("person_ids")), RELEASE["eval/cmpm"])


def test_dropped_tokens(model):
    images = model.encode_image(tensor("images"), tensor("masked/image_kept"))[:, 0]
    texts = model.encode_text(tensor("ids"), tensor("mask"), tensor("masked/text_kept"))[:, 0]
    close(images, RELEASE["masked/image_cls"])
    close(texts, RELEASE["masked/text_cls"])
    close(cmpm(images, texts, tensor("person_ids")), RELEASE["masked/cmpm"])


def test_gradients_and_two_steps(model):
    optimizer = sgd(model)
    set_rates(optimizer, 0.005, 0.01)
    for step in (1, 2):
        loss = stacked_loss(model, [tensor("images")], [(tensor("ids"), tensor("mask"))], tensor("person_ids"))
        optimizer.zero_grad()
        loss.backward()
        close(loss, RELEASE[f"train/loss_{step}"])
        if step == 1:
            for name, value in model.named_parameters():
                close(value.grad, RELEASE[f"train/grad_1/{name}"], 1e-4, name)
        optimizer.step()
        for name, value in model.named_parameters():
            close(value, RELEASE[f"train/params_{step}/{name}"], 1e-5, name)


def test_released_rate():
    # From 5e-5 a fifth of the way to the peak in each of five epochs; halfway down at 60 of 120; the floor at 120.
    assert [released_rate(t, 0.005) for t in (0, 1)] == pytest.approx([5e-5, 5e-5 + 0.00495 / 5])
    assert released_rate(4, 0.01) == pytest.approx(5e-5 + 4 * 0.00995 / 5)
    assert released_rate(60, 0.01) == pytest.approx((0.01 + 1e-5) / 2)
    assert released_rate(120, 0.01) == pytest.approx(1e-5)


# ---- our training step

STEPS, LENGTHS = 20, {"sentence": 12, "phrase": 9, "word": 7}
EPOCH_STARTS = np.array([0, 3, 6, 11, 16, 20])


def tiny():
    config = scaled_down("")
    config.data.batch_size = 8
    config.model.update(
        {"image_size": (20, 14), "patch_size": 6, "stride": 4, "width": 16, "depth": 2, "num_heads": 2,
         "vocab_size": 40, "max_text_length": 14}
    )  # fmt: skip
    config.train.epochs = 4
    return config


def make_batch(step):
    """Random images; texts of random lengths, the longest of them below the padded size in every other step."""
    rng = np.random.default_rng(step)
    text = {}
    for level, size in LENGTHS.items():
        lengths = rng.integers(2, size - 3 * (step % 2) + 1, (8, 1))
        text[level] = np.where(np.arange(size) < lengths, rng.integers(5, 40, (8, size)), 0).astype(np.int32)
    return {
        "images": rng.integers(0, 256, (8, 3, 20, 14, 3), np.uint8),
        "erase": np.zeros((8, 3, 4), np.int32),
        "text": text,
        "mask": {level: ids > 0 for level, ids in text.items()},
        "words": np.zeros((8, 12), np.int32),
        "person_ids": np.arange(8, dtype=np.int32) // 2,
        "pair_ids": np.arange(8, dtype=np.int32),
    }


def test_twenty_steps_beside_pytorch():
    config = tiny()
    program = build_program(config, EPOCH_STARTS, STEPS, mask_id=4)
    state, hyperparameters = program.init(), program.hyperparameters()
    reference = Reference(config, jax.device_get(state.params), torch.float32)
    start = {name: value.detach().clone() for name, value in reference.model.named_parameters()}
    losses = []
    for step in range(STEPS):
        batch = make_batch(step)
        kept = kept_positions(config, list(batch["text"].values()), program.model.config.num_patches, step)
        state, metrics = program.step(state, global_batch(program.mesh, batch), hyperparameters)
        epoch = sum(step >= EPOCH_STARTS) - 1
        losses.append((float(metrics["loss"]), reference.step(batch, kept, epoch)))
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    weights = release_from_params(jax.device_get(state.params))
    for name, value in reference.model.named_parameters():
        np.testing.assert_allclose(weights[name], value.detach().numpy(), rtol=0, atol=1e-4, err_msg=name)
        if name != "encoder_vl.embeddings.token_type_embeddings.weight":  # its second row decays, no more
            assert (value - start[name]).abs().max() > 1e-3, name  # far more than the tolerance


def test_kept_positions():
    """CLS first, then some of 1..length-1, each once, at most floor(length / 5) missing; the padding never drawn."""
    config, missing = tiny(), {16: set(), 12: set(), 9: set()}
    for step in range(60):
        texts = [np.ones((2, 12), np.int32)]
        texts[0][:, 12 - 3 * (step % 2) :] = 0
        for length, kept in zip((16, 12 - 3 * (step % 2)), kept_positions(config, texts, 15, step), strict=True):
            assert kept[0] == 0
            assert len(set(kept.tolist())) == len(kept)
            assert set(kept.tolist()) <= set(range(length))
            missing[length].add(length - len(kept))
    assert missing == {16: {0, 1, 2, 3}, 12: {0, 1, 2}, 9: {0, 1}}


def test_what_counts_as_agreement():
    assert gap(np.array([1.0, 10.0, 0.1]), np.array([1.5, 11.0, 0.2])) == pytest.approx([0.5, 1.0, 0.5])
    losses = np.full((60, 3), 2.0)
    losses[50:, 0] += 0.1
    same = [(8.0, 7.0, 9.0)] * 3
    assert agrees(losses, same)
    assert not agrees(losses, [(8.0, 7.0, 9.0), (9.5, 7.5, 10.5), (8.0, 7.0, 9.0)])
    losses[49, 0] += 0.002
    assert not agrees(losses, same)
