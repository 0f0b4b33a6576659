"""Training batches and validation from an index of pairs."""

import contextlib
import itertools

import numpy as np
import pytest

from input_pipeline import augment, opening, pipeline
from input_pipeline.joint import JointSource
from input_pipeline.keyed_order import KeyedPlans
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import DataError, UserError
from tests.input_pipeline.pairs.test_pairs import build, members, picture, write_tar
from tests.input_pipeline.test_pipeline import make_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for number in range(2):
        write_tar(root / f"{number}.tar", members(range(20 * number, 20 * number + 20)))
    build(root / "*.tar", folder=root / "pairs", val_pairs=2)
    return root


@pytest.fixture
def config(shards):
    plain = {"augment.pad": 0, "augment.flip": 0.0, "augment.erase": 0.0, "mla.levels": (), "mla.views": 1}
    changes = {"data.name": "pairs", "data.identities": False, "model.image_size": (20, 12), **plain}
    return make_config(shards / "pairs", **changes)


def batches(config, steps, start=0, host=(0, 1)):
    source = JointSource(opening.open_parts(config, "train"))
    plans = pipeline.plan_epochs(config, source)
    with contextlib.closing(
        pipeline.train_batches(config, source, load_tokenizer(""), plans, start, host)
    ) as generator:
        return source, plans, list(itertools.islice(generator, steps))


def test_batches_follow_the_keyed_order_with_exact_pixels(config):
    source, plans, (*_, fifth) = batches(config, 5)
    assert isinstance(plans, KeyedPlans) and plans.epoch_starts(2).tolist() == [0, 4, 8]
    _, _, pairs = plans.rows(4)
    assert fifth["pair_ids"].tolist() == pairs.tolist()
    assert fifth["person_ids"].tolist() == list(range(8))
    assert fifth["images"].shape == (8, 1, 20, 12, 3)
    for image, encoded in zip(fifth["images"], source.encoded(pairs), strict=True):
        np.testing.assert_array_equal(image[0], augment.decode(encoded).numpy())
    captions = [caption for caption, _ in source.texts(pairs)]
    np.testing.assert_array_equal(fifth["text"]["sentence"], load_tokenizer("").encode(captions, 40))


def test_hosts_have_their_own_rows_and_a_run_resumes(config):
    _, _, whole = batches(config, 3)
    _, _, (second,) = batches(config, 1, start=2, host=(1, 2))
    np.testing.assert_array_equal(second["pair_ids"], whole[2]["pair_ids"][4:])
    np.testing.assert_array_equal(second["images"], whole[2]["images"][4:])


def test_validation_is_on_held_out_pairs(config):
    held = opening.open_split(config, "val")
    (images,) = pipeline.image_batches(held, (20, 12), 8)
    assert len(held.paths) == 2 and held.num_pairs == 2
    for image, (caption,) in zip(images, held.captions, strict=True):
        number = int(caption.split()[-1][:-1])
        np.testing.assert_array_equal(image, augment.decode(picture(number)).numpy())


def test_a_shard_that_changes_stops_training_with_one_line(config, tmp_path):
    write_tar(tmp_path / "0.tar", members(range(8)))
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    config.data.root = str(tmp_path / "pairs")
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content.replace(b"JFIF", b"JUNK"))
    with pytest.raises(DataError, match=r"0\.tar is not as it was when it was indexed: make the index again"):
        batches(config, 1)


def test_pairs_have_no_identities_and_no_test(config):
    with pytest.raises(DataError, match="image-text pairs have no test split"):
        opening.open_split(config, "test")
    config.data.identities = True
    with pytest.raises(UserError, match=r"set --config\.data\.identities=False"):
        opening.open_split(config, "train")
