"""The benchmark's parts: that both sides see the same records, and that the floor does what it says."""

import contextlib
import itertools

import numpy as np
import pytest
from PIL import Image

from configs import cuhk
from input_pipeline import augment, benchmark, opening
from input_pipeline.sampling import EpochPlans
from input_pipeline.synthetic.bulk import Counts, write


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark") / "png"
    write(root, {"train": Counts(8, 16, 32), "val": Counts(1, 1, 2), "test": Counts(1, 1, 2)}, "png")
    return root


def test_the_floor_decodes_and_resizes_the_records_of_the_plan(root):
    config = cuhk.get_config()
    config.data.root, config.data.batch_size = str(root), 8
    source = opening.open_split(config, "train")
    plans = EpochPlans(source.person_ids[source.pairs[0]], 8, "identity", 4)
    with contextlib.closing(benchmark.floor_batches(config, source, plans)) as batches:
        images = next(itertools.islice(batches, 1, None))
    paths = [source.paths[image] for image in source.pairs[0][plans.rows(1)[2]]]
    for image, path in zip(images, paths, strict=True):
        resized = Image.open(root / "imgs" / path).resize((128, 384), Image.Resampling.BICUBIC)
        assert np.abs(image.astype(int) - np.asarray(resized).astype(int)).max() <= 2
    assert images.shape == (8, 384, 128, 3) and augment.UNIFORMS == 26


def test_the_table_tells_the_share_of_the_floor():
    result = benchmark.Result("jpeg", 12.34, 500.0, 450.0, 425.0, 0.85, 800.0, -3.4)
    row = benchmark.table([result]).splitlines()[-1]
    assert row == "| jpeg | 12.3 | 500 | 450 | 425 | 0.85 | 800 | -3 |"
