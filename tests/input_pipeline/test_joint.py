"""Several datasets as one source, each in its own raw layout."""

import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline import opening, pipeline
from input_pipeline.joint import JointSource
from input_pipeline.keyed_order import KeyedPlans
from input_pipeline.sampling import EpochPlans
from input_pipeline.tokenizer import load_tokenizer
from tests.input_pipeline.pairs.test_pairs import build, members, write_tar
from tests.input_pipeline.test_source import make_source
from tests.test_variants import joint_config, write_three

# Of train: CUHK has 3 persons with 4, 5 and 3 pairs; ICFG 38 with 2 pairs each (2 of 40 are held out); RSTP 3 with 4, 1
# and 4. Without 4 pairs, a person draws them with replacement.
COUNTS, PERSONS = [12, 76, 9], [3, 38, 3]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return write_three(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def parts(three):
    return opening.open_parts(joint_config(three), "train")


@pytest.fixture(scope="module")
def source(parts):
    return JointSource(parts)


def test_pairs_and_persons_are_numbered_through_all_datasets(source, parts):
    assert [*parts] == ["cuhk", "icfg", "rstp"] and source.counts == COUNTS and source.num_pairs == 97
    assert [part.num_persons for part in parts.values()] == PERSONS and source.num_persons == 44
    # ICFG's first person follows CUHK's three, RSTP's first one the 41 of both.
    expected = [0] * 4 + [1] * 5 + [2] * 3 + np.repeat(np.arange(3, 41), 2).tolist() + [41] * 4 + [42] + [43] * 4
    assert source.person_of_pair.tolist() == expected
    assert source.ids(np.array([96, 0, 12, 88])).tolist() == [43, 0, 3, 41]


def test_each_pair_is_read_from_its_dataset(source, parts):
    pairs = np.array([96, 0, 12, 87, 88, 11, 12])
    places = [("rstp", 8), ("cuhk", 0), ("icfg", 0), ("icfg", 75), ("rstp", 0), ("cuhk", 11), ("icfg", 0)]
    one_by_one = [(parts[label], np.array([own])) for label, own in places]
    assert source.texts(pairs) == [part.texts(own)[0] for part, own in one_by_one]
    assert source.encoded(pairs) == [part.encoded(own)[0] for part, own in one_by_one]
    assert source.intact(pairs).all() and source.intact(pairs).dtype == bool
    assert len(set(source.encoded(np.array([0, 12, 88])))) == 3


def batches(config, source, start=0, host=(0, 1), steps=3):
    plans, tokenizer = pipeline.plan_epochs(config, source), load_tokenizer()
    return list(itertools.islice(pipeline.train_batches(config, source, tokenizer, plans, start, host), steps))


@pytest.mark.parametrize("changes", [{}, {"data.weights": (1, 1, 2)}, {"data.identities": False}])
def test_hosts_of_any_number_share_the_same_batches_from_any_step(three, changes):
    config = joint_config(three, **changes)
    source = JointSource(opening.open_parts(config, "train"))
    whole = batches(config, source, steps=7)
    for hosts in (2, 4):
        shared = [batches(config, source, 4, (host, hosts)) for host in range(hosts)]
        for batch, *parts in zip(whole[4:], *shared, strict=True):
            for key in ("images", "erase", "person_ids", "pair_ids", "words"):
                np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))
    datasets = np.searchsorted([12, 88], np.concatenate([batch["pair_ids"] for batch in whole]), "right")
    assert len({*datasets.tolist()}) > 1
    if changes != {"data.identities": False}:
        for batch in whole:
            assert sorted(np.unique(batch["person_ids"], return_counts=True)[1]) == [4, 4]  # nobody twice


def test_the_config_chooses_the_order(three, source):
    config = joint_config(three)
    assert isinstance(pipeline.plan_epochs(config, source), EpochPlans)
    config.data.identities, config.data.weights = False, (3, 1, 1)
    plans, expected = pipeline.plan_epochs(config, source), KeyedPlans(COUNTS, 8, config.seed, (3, 1, 1))
    assert isinstance(plans, KeyedPlans)
    np.testing.assert_array_equal(plans.rows(5)[2], expected.rows(5)[2])
    config.data.identities, config.data.sampling = True, "uniform"
    pairs = np.concatenate([pipeline.plan_epochs(config, source).rows(step)[2] for step in range(12)])
    # 97 pairs in the shares 3:1:1 are 58, 20 and 19 (up to 58.2, 77.6 and 97); 12 batches of 8 leave one of them out.
    found = np.bincount(np.searchsorted([12, 88], pairs, "right"))
    assert (found <= [58, 20, 19]).all() and found.sum() == 96


def test_a_pair_of_its_own_dataset_stands_in_for_a_damaged_one():
    parts = {"a": make_source([("One.",)] * 3, [1, 1, 2]), "b": make_source([("Two.", "Three.")] * 2, [1, 1])}
    parts["b"].damaged[0] = True
    source, rng = JointSource(parts), np.random.default_rng(0)
    assert source.intact(np.arange(7)).tolist() == [True] * 3 + [False] * 2 + [True] * 2
    assert {source.stand_in(pair, rng) for pair in (3, 4) for _ in range(50)} == {5, 6}
    assert source.stand_in(2, rng) == 2


def test_without_identities_equal_captions_connect_datasets():
    one = make_source([("A red coat.",), ("A hat.",)], [1, 1])
    other = make_source([("a red  coat.", "A bag."), ("A bag.",)], [5, 6])
    one.forget_persons()
    other.forget_persons()
    other.images = other.images / "elsewhere"
    source = JointSource({"a": one, "b": other})
    assert not source.identities
    # Pairs: the coat, the hat | the coat and the bag, both of one image; the bag.
    assert source.ids(np.arange(5)).tolist() == [0, 1, 0, 0, 0]
    assert source.ids(np.array([4, 0, 1])).tolist() == [0, 1, 2]
    # The same table twice: the same images.
    assert JointSource({"a": one, "a-2": one}).ids(np.array([1, 3])).tolist() == [0, 0]


def test_an_index_of_pairs_and_a_dataset_are_one_source(three, tmp_path):
    """The captions of the index are "A picture of number N."; a table has one of them, too."""
    write_tar(tmp_path / "0.tar", members(range(8)))
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    shutil.copytree(three["rstp"] / "imgs", tmp_path / "imgs")
    (tmp_path / "own.csv").write_text(
        "image,caption,person,split\n"
        "imgs/0000_c14_0031.jpg,A  picture of NUMBER 3.,a,train\nimgs/0000_c1_0004.jpg,Another.,a,train\n"
        "imgs/0002_c9_0001.jpg,A man.,b,val\n"
    )
    sources = (f"own:{tmp_path}/own.csv", f"pairs:{tmp_path}/pairs")
    config = joint_config({}, **{"data.sources": sources, "data.identities": False, "data.weights": (1, 1)})
    source = JointSource(opening.open_parts(config, "train"))
    assert source.counts == [2, 8] and source.annotations["pairs"].name == "pairs.json"
    captions = [caption for caption, _ in source.texts(np.arange(10))]
    number = captions.index("A picture of number 3.", 2)
    ids = source.ids(np.arange(10))
    assert ids[0] == ids[number] and len(set(ids.tolist())) == 9
    (batch,) = batches(config, source, steps=1)
    own = np.bincount(batch["pair_ids"] < 2)[1]
    assert 2 <= own <= 5  # 5 of the 10 rows of an epoch, two pairs as often as that takes; 2 rows are left out
    assert [*opening.open_parts(config, "val")] == ["own", "pairs"]


def test_persons_of_two_datasets_are_never_one():
    part = make_source([("One.",)] * 2, [7, 9])
    assert JointSource({"a": part, "b": part}).ids(np.arange(4)).tolist() == [0, 1, 2, 3]


def test_a_part_is_known_by_its_label():
    part = SimpleNamespace(num_pairs=2, identities=True, annotations="a.json", images_digest="ff")
    other = SimpleNamespace(num_pairs=2, identities=True, annotations="b.json", images_digest="")
    source = JointSource({"cuhk": part, "own": other})
    assert source.annotations == {"cuhk": "a.json", "own": "b.json"}
    assert source.images_digests == {"cuhk": "ff", "own": ""}
