import numpy as np
import pytest

from ivt_jax.evaluation.nouns import can_tell, measure_nouns, noun_of
from ivt_jax.evaluation.protocols import Embeddings

# Images of persons 1, 2, 2 and 3; their first axis is what "coat" phrases look for.
IMAGES = np.array([[0.9, 0], [0.5, 0], [0.1, 0], [0.3, 0]], np.float32)
CAPTIONS = ["A red coat.", "A red coat and a hat.", "A blue coat", "a hat"]
SPLIT = Embeddings(
    IMAGES, np.zeros((4, 2), np.float32), np.array([1, 2, 2, 3]), np.array([1, 2, 2, 3]), np.array([0, 1, 2, 3]),
    np.ones(4, int),
)  # fmt: skip


def embed(phrases):
    return np.array([[1, 0] if "coat" in phrase else [0, 1] for phrase in phrases], np.float32)


def test_areas_are_those_of_the_own_image_against_images_of_persons_without_the_phrase():
    """Red coat: persons 1 and 2 say so, so person 3's 0.3 alone is another: areas 1 for 0.9 and 1 for 0.5. Blue coat:
    0.1 against 0.9 and 0.3 of persons 1 and 3: area 0. Hats: all products are 0, areas 1/2."""
    assert measure_nouns([(CAPTIONS, SPLIT)], embed) == {"coat": (pytest.approx(2 / 3, abs=1e-4), 2), "hat": (0.5, 2)}


def test_persons_of_two_datasets_differ():
    found = measure_nouns([(CAPTIONS, SPLIT), (CAPTIONS, SPLIT)], embed)
    assert found["coat"] == (pytest.approx(2 / 3, abs=1e-4), 4)


def test_phrases_of_all_persons_or_of_none_are_not_measured():
    assert measure_nouns([(["a coat"] * 4, SPLIT)], embed) == {}
    assert measure_nouns([(["", "", "", ""], SPLIT)], embed) == {}


def test_many_occurrences_are_thinned_evenly():
    """Of 80 captions 40 are measured, of 40 persons: the first, the last, and those between."""
    count, persons = 80, np.arange(80)
    captions = [f"a number{i} coat" for i in range(count)]
    images = np.stack([np.arange(count), np.zeros(count)], 1).astype(np.float32)
    split = Embeddings(images, images, persons, persons, persons, np.ones(count, int))
    area, measured = measure_nouns([(captions, split)], embed)["coat"]
    assert measured == 40 and area == pytest.approx(0.5, abs=0.01)  # ranks from 0 to 1 in equal steps


def test_a_phrase_is_judged_by_its_thing():
    assert [noun_of(phrase) for phrase in ("red coat", "Black SHOES", "dress", "glasses")] == [
        "coat", "shoe", "dress", "glasse",
    ]  # fmt: skip
    told = {"coat": (0.7, 5), "shoe": (0.69, 50), "hat": (0.99, 4)}
    assert [can_tell(told, phrase) for phrase in ("long coats", "shoes", "hat", "gun")] == [True, False, False, False]
