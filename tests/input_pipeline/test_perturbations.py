"""What the perturbations do to captions, worked out by hand, and that none makes a caption empty."""

import difflib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import perturbations
from input_pipeline.perturbations import PERTURBATIONS, first_sentence, perturb, shuffled_phrases, typos

CAPTION = "A tall man wears a striped shirt, grey trousers, and white trainers. He carries a black backpack!"


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_typo_is_one_slip_behind_the_first_letter():
    # "cold": any letter but the first and the last is where the slip happens; o lies beside i and p, l beside k.
    swapped, lost, doubled, neighbour = {"clod", "codl"}, {"cld", "cod"}, {"coold", "colld"}, {"cild", "cpld", "cokd"}
    assert {typos("cold", rng(seed), rate=1.0) for seed in range(300)} == swapped | lost | doubled | neighbour
    assert typos("a red cap", rng(), rate=1.0) == "a red cap"  # of three letters


def test_typos_change_a_fifth_of_the_longer_words():
    words = " ".join(["trousers"] * 5000)
    changed = sum(word != "trousers" for word in typos(words, rng()).split())
    # 5,000 draws at 0.2; of the slips one in 4 * 6 swaps or doubles nothing visible at most ("ss" there is none).
    assert 0.18 < changed / 5000 < 0.22


def test_the_first_sentence_that_says_anything():
    assert first_sentence(CAPTION, rng()) == "A tall man wears a striped shirt, grey trousers, and white trainers."
    assert first_sentence("... A man in black. And more.", rng()) == "A man in black."
    assert first_sentence("no full stop", rng()) == "no full stop"
    assert first_sentence("??", rng()) == "??"


def test_phrases_come_in_any_order():
    found = {shuffled_phrases("a man, in black; with a bag.", rng(seed)) for seed in range(100)}
    parts = ["a man", "in black", "with a bag"]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert found == {", ".join(parts[i] for i in order) for order in orders}


def test_half_of_the_attributes_go(monkeypatch):
    monkeypatch.setattr(perturbations, "attribute_phrases", lambda caption: ["tall man", "red cap", "blue jeans"])
    dropped = {perturbations.dropped_attributes("A tall man, a red cap, blue jeans", rng(seed)) for seed in range(50)}
    assert dropped == {"A , a red cap, blue jeans", "A tall man, a , blue jeans", "A tall man, a red cap,"}


def test_attributes_are_dropped_from_a_real_caption():
    shorter = perturbations.dropped_attributes(CAPTION, rng())
    whole, left = (re.findall(r"\w+", text) for text in (CAPTION, shorter))
    kept = difflib.SequenceMatcher(None, whole, left).get_matching_blocks()
    assert 0 < sum(block.size for block in kept) == len(left) < len(whole)  # words left out, none new


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_caption_depends_on_its_place_and_the_seed_alone(name):
    captions = [CAPTION] * 8
    spoiled = perturb(name, captions, seed=3)
    assert spoiled == perturb(name, captions, seed=3)
    assert perturb(name, captions[:3], seed=3) == spoiled[:3]
    if name != "first sentence only":
        assert len(set(spoiled)) > 1 and spoiled != perturb(name, captions, seed=4)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(sorted(PERTURBATIONS)), st.integers(0, 2**32))
def test_no_caption_becomes_empty(caption, name, seed):
    assert bool(PERTURBATIONS[name](caption, rng(seed)).strip()) == bool(caption.strip())
