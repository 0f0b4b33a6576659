from pathlib import Path

import numpy as np

from input_pipeline.annotations import Annotations, Record
from input_pipeline.joint import JointSource
from input_pipeline.source import Source, connected


def make_source(captions, persons):
    """A split of images 0.jpg, 1.jpg, ... with these captions and persons."""
    records = tuple(
        Record(f"{i}.jpg", person, texts, "train", ((),) * len(texts))
        for i, (texts, person) in enumerate(zip(captions, persons, strict=True))
    )
    return Source("own", "train", Annotations(Path("a.json"), Path("imgs"), records), records)


def test_rows_with_an_equal_key_are_connected():
    images = np.array([7, 8, 9, 7, 5, 6, 5])
    texts = np.array([1, 2, 3, 4, 4, 2, 9])
    # 0 and 3 by their image, 3 and 4 by their text, 4 and 6 by their image; 1 and 5 by their text; 2 alone.
    assert connected(images, texts).tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert connected(images, texts).dtype == np.int32


def test_a_long_chain_is_one_component():
    images, texts = np.arange(200) // 2, (np.arange(200) + 1) // 2
    rows = np.random.default_rng(0).permutation(200)
    assert connected(images[rows], texts[rows]).tolist() == [0] * 200


CAPTIONS = [("A red coat.", "She walks."), ("a  red coat.",), ("A blue coat.", "A man."), ("A man.",)]


def test_pairs_of_a_person_have_equal_ids():
    source = make_source(CAPTIONS, [4, 9, 4, 2])
    assert source.num_pairs == 6 and source.persons.tolist() == [2, 4, 9]
    assert JointSource({"": source}).ids(np.array([5, 0, 1, 2, 3])).tolist() == [0, 1, 1, 2, 1]


def test_without_identities_pairs_of_an_image_or_a_caption_have_equal_ids():
    source = make_source(CAPTIONS, [4, 4, 4, 4])
    source.forget_persons()
    assert source.persons.tolist() == [0, 1, 2, 3]
    source = JointSource({"": source})
    # Images 0 and 1 share "a red coat.", images 2 and 3 share "a man."; the person, which all four share, is unknown.
    assert source.ids(np.arange(6)).tolist() == [0, 0, 0, 1, 1, 1]
    # The pair that connects images 0 and 1 is not in the batch.
    assert source.ids(np.array([1, 2, 5])).tolist() == [0, 1, 2]


def test_texts_of_pairs_come_with_their_attributes():
    records = (Record("0.jpg", 1, ("One.", "Two."), "train", (("a",), ("b", "c"))),)
    source = Source("own", "train", Annotations(Path("a.json"), Path("imgs"), records), records)
    assert source.texts(np.array([1, 0])) == [("Two.", ("b", "c")), ("One.", ("a",))]
