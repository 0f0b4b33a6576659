import numpy as np
import pytest

from input_pipeline import augment
from input_pipeline.pairs import benchmark
from input_pipeline.pairs.source import IndexedPairs
from ivt_jax.common.errors import UserError


def test_a_sparse_index_has_readable_pairs(tmp_path):
    benchmark.write_sparse(tmp_path, 2, 30)
    source = IndexedPairs(str(tmp_path / "pairs"))
    assert source.num_pairs == 60
    every = np.arange(60)
    assert source.encoded(every) == [benchmark.picture(number % 10) for number in range(60)]
    assert {caption for caption, _ in source.texts(every)} == {"A person in a red coat crosses a street."}
    assert augment.decode(source.encoded(every[:1])[0]).shape == (256, 256, 3)
    assert 2 * (tmp_path / "00000.tar").stat().st_blocks * 512 < (tmp_path / "00000.tar").stat().st_size  # sparse


def test_without_webdataset_the_remedy_is_named(tmp_path):
    with pytest.raises(UserError, match="pip install webdataset"):
        next(benchmark.webdataset_batches(tmp_path))
