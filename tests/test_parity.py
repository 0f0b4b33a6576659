"""Tower, loss, gradients, optimiser against numbers computed with the PyTorch release at a tiny size (tests/data)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cuhk
from ivt_jax.conversion import params_from_release, release_from_params
from ivt_jax.losses.contrastive import cmpm_loss
from ivt_jax.models.ivt import IVT
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import make_optimizer
from ivt_jax.training.train_step import TrainState, train_step

RELEASE = np.load(Path(__file__).parent / "data" / "release_tiny.npz")
TENSORS = {name.removeprefix("weights/"): RELEASE[name] for name in RELEASE.files if name.startswith("weights/")}
CONFIG, PARAMS = params_from_release(TENSORS, num_heads=4, image_size=(64, 32), stride=12)


@pytest.fixture(scope="module")
def params():
    return PARAMS


def embed_images(params, keep=None):
    return IVT(CONFIG).apply({"params": params}, RELEASE["images"], keep=keep, method="encode_image")


def embed_texts(params, keep=None):
    ids, mask = RELEASE["ids"], RELEASE["mask"].astype(bool)
    return IVT(CONFIG).apply({"params": params}, ids, mask, keep=keep, method="encode_text")


def assert_close(ours, theirs, tolerance=1e-5):
    """Relative to the largest value of the array, as rounding in a sum is."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_image_tokens(params):
    assert_close(embed_images(params), RELEASE["eval/image_tokens"])


def test_text_tokens(params):
    mask = RELEASE["mask"].astype(bool)
    assert_close(np.asarray(embed_texts(params))[mask], RELEASE["eval/text_tokens"][mask])


@pytest.mark.parametrize("key", ["eval/cmpm", "train/loss_1"])  # training had no dropout and dropped no token
def test_cmpm(params, key):
    loss = cmpm_loss(embed_images(params)[:, 0], embed_texts(params)[:, 0], RELEASE["person_ids"])
    assert_close(loss, RELEASE[key])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_masked_alignment(params, modality):
    kept = jnp.asarray(RELEASE[f"masked/{modality}_kept"])[None].astype(jnp.int32)
    tokens = (embed_images if modality == "image" else embed_texts)(params, keep=(kept, None))
    assert_close(tokens[:, 0], RELEASE[f"masked/{modality}_cls"])


def test_masked_loss(params):
    image, text = (jnp.asarray(RELEASE[f"masked/{modality}_kept"])[None] for modality in ("image", "text"))
    images, texts = embed_images(params, keep=(image, None)), embed_texts(params, keep=(text, None))
    assert_close(cmpm_loss(images[:, 0], texts[:, 0], RELEASE["person_ids"]), RELEASE["masked/cmpm"])


@pytest.fixture(scope="module")
def steps():
    """The gradients of the first step, and the state after each of two, by the project's own step and optimiser.

    Rates as the release had them for these numbers: constant, twice as high for biases.
    """
    config = cuhk.get_config("release")
    o = config.optimizer
    rates = {"weight": o.learning_rate, "bias": o.bias_learning_rate}
    tx = make_optimizer(config, {name: lambda step, rate=rate: rate for name, rate in rates.items()})

    class Matching(Objective):  # no token was dropped, and there is one level alone
        def __call__(self, params, *rest):
            value = cmpm_loss(embed_images(params)[:, 0], embed_texts(params)[:, 0], RELEASE["person_ids"])
            return value, {"loss": value}

    objective = Matching(IVT(CONFIG), config, mask_id=4)
    step = jax.jit(functools.partial(train_step, objective=objective, tx=tx))
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = TrainState(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    first, one = step(state, {})
    second, two = step(first, {})
    gradients = jax.grad(objective, has_aux=True)(params)[0]
    return gradients, (first.params, second.params), (one["loss"], two["loss"])


def release_names(prefix):
    return {name.removeprefix(prefix): RELEASE[name] for name in RELEASE.files if name.startswith(prefix)}


def test_losses_of_two_steps(steps):
    for number, loss in enumerate(steps[2], start=1):
        assert_close(loss, RELEASE[f"train/loss_{number}"])


def test_gradients_by_name(steps):
    ours, theirs = release_from_params(steps[0]), release_names("train/grad_1/")
    assert len(theirs) > 40
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, 1e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_parameters_after_sgd_steps(steps, number):
    ours, theirs = release_from_params(steps[1][number - 1]), release_names(f"train/params_{number}/")
    before = release_from_params(PARAMS)
    assert len(theirs) > 40
    for name, value in theirs.items():
        assert_close(ours[name], value)
        assert_close(ours[name] - before[name], value - before[name], 1e-3)  # what the steps changed
