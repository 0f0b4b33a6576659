import contextlib
import io
import itertools
import json
import shutil

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import augment, opening, pipeline
from input_pipeline.joint import JointSource
from input_pipeline.sampling import EpochPlans, keyed_rng, traded_captions
from input_pipeline.text_levels import draw_levels
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import DataError, UserError

H, W = 32, 16


def make_config(root, **changes):
    config = ConfigDict(
        {
            "seed": 11,
            "data": {
                "name": "cuhk_pedes", "root": str(root), "val_persons": 0.3, "max_damaged": 0.0, "batch_size": 8,
                "sampling": "identity", "instances": 2, "label_noise": 0.0, "identities": True, "sources": (),
                "weights": (),
            },
            "augment": {"pad": 3, "flip": 0.5, "erase": 0.5},
            "text": {
                "tokenizer": "", "phrase_rule": "released", "word_rule": "attributes",
                "length": {"sentence": 40, "phrase": 20, "word": 30},
            },
            "model": {"image_size": (H, W)},
            "mla": {"levels": ("sentence", "phrase", "word"), "views": 2},
            "runtime": {"prepared": ""},
        }
    )  # fmt: skip
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def source(pedes_root):
    return opening.open_split(make_config(pedes_root), "train")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("")


def stream(config, source, tokenizer, steps, start=0, host=0, num_hosts=1):
    source = JointSource({"": source})
    plans = pipeline.plan_epochs(config, source)
    batches = pipeline.train_batches(config, source, tokenizer, plans, start, (host, num_hosts))
    return list(itertools.islice(batches, steps))


def flat(batch):
    return flatten_dict(batch, sep="/")


def assert_equal(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def colour(person, image):
    """What conftest painted."""
    return np.array([25 * person, 80 * image, 128])


def test_a_split_holds_its_records_in_order(source):
    assert source.paths[:4] == ["00_0.jpg", "00_1.jpg", "00_2.jpg", "01_0.jpg"] and len(source.paths) == 18
    np.testing.assert_array_equal(source.person_ids, np.repeat(np.arange(6), 3))
    np.testing.assert_array_equal(source.pairs[0], np.repeat(np.arange(18), 2))
    np.testing.assert_array_equal(source.pairs[1], np.tile([0, 1], 18))


def test_reading_gives_the_images_asked_for(source):
    for index, encoded in zip([17, 3, 3, 0], source.read([17, 3, 3, 0]), strict=True):
        pixel = np.array(Image.open(io.BytesIO(encoded)))[24, 12].astype(int)
        assert np.abs(pixel - colour(index // 3, index % 3)).max() <= 3


def test_val_and_test_are_other_persons_each_counted_from_0(pedes_root, capsys):
    val, test = (opening.open_split(make_config(pedes_root), split) for split in ("val", "test"))
    assert val.persons.tolist() == [6, 7] and test.persons.tolist() == [8, 9]
    assert val.person_ids.tolist() == test.person_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert "has no val split" not in capsys.readouterr().err


def test_a_split_knows_the_digest_of_its_pictures_and_is_opened_by_one(pedes_root, monkeypatch):
    prepare, asked = opening.prepare, []
    monkeypatch.setattr(opening, "prepare", lambda *args: asked.append(args[-1]) or prepare(*args))
    digest = opening.open_split(make_config(pedes_root), "test").images_digest
    assert len(digest) == 64
    assert opening.open_split(make_config(pedes_root), "test", digest).images_digest == digest
    assert asked == ["", digest]


def without_val(pedes_root, root):
    """The dataset without its val records, as ICFG-PEDES is."""
    records = json.loads((pedes_root / "reid_raw.json").read_text())
    (root / "reid_raw.json").write_text(json.dumps([r for r in records if r["split"] != "val"]))
    (root / "imgs").symlink_to(pedes_root / "imgs")


def test_persons_held_out_make_the_val_split_with_their_own_images(pedes_root, tmp_path, capsys):
    without_val(pedes_root, tmp_path)
    config = make_config(tmp_path)
    train, val = (opening.open_split(config, split) for split in ("train", "val"))
    said = "reid_raw.json has no val split; held out in its place: 2 training persons (data.val_persons)\n"
    printed = capsys.readouterr().err
    assert printed.count(said) == 1 and printed.count("has no val split") == 1  # opening train prints nothing
    assert len(val.persons) == 2  # 30% of six persons
    assert sorted([*val.persons, *train.persons]) == list(range(6))
    for split in (train, val):
        assert [int(path[:2]) for path in split.paths] == split.persons[split.person_ids].tolist()
        files = [(pedes_root / "imgs" / path).read_bytes() for path in split.paths]
        assert split.read(range(len(files))) == files


def test_val_is_empty_where_nobody_is_held_out(pedes_root, tmp_path, capsys):
    without_val(pedes_root, tmp_path)
    val = opening.open_split(make_config(tmp_path, **{"data.val_persons": 0.0}), "val")
    assert len(val.person_ids) == 0 and len(val.pairs[0]) == 0
    assert "no val split; data.val_persons is 0: all persons train\n" in capsys.readouterr().err


def test_a_dataset_may_have_training_records_alone(pedes_root, tmp_path):
    records = json.loads((pedes_root / "reid_raw.json").read_text())
    (tmp_path / "reid_raw.json").write_text(json.dumps([r for r in records if r["split"] == "train"]))
    (tmp_path / "imgs").symlink_to(pedes_root / "imgs")
    config = make_config(tmp_path)
    assert len(opening.open_split(config, "test").person_ids) == 0
    assert len(opening.open_split(config, "train").persons) == 4  # of six, without the 30% for val
    config.data.val_persons = 0.0
    assert [len(opening.open_split(config, split).persons) for split in ("train", "val", "test")] == [6, 0, 0]


def test_a_single_person_is_not_held_out_unnoticed(tmp_path):
    (tmp_path / "my.csv").write_text("image,caption,person,split\na.jpg,A.,7,train\nb.jpg,B.,8,test\n")
    with pytest.raises(DataError, match=r"my.csv has 1 person to train, held out for validation: give more persons or"):
        opening.open_split(make_config(tmp_path / "my.csv", **{"data.name": "own"}), "train")


def test_rows_hold_the_pairs_image_person_and_text(pedes_root, source, tokenizer):
    config = make_config(pedes_root)
    for batch in stream(config, source, tokenizer, 3):
        assert batch["images"].shape == (8, 2, H, W, 3) and batch["images"].dtype == np.uint8
        for row, pair in enumerate(batch["pair_ids"]):
            image, caption = (index[pair] for index in source.pairs)
            person = image // 3
            assert batch["person_ids"][row] == person
            centre = batch["images"][row, :, H // 2, W // 2].astype(int)
            assert np.abs(centre - colour(person, image % 3)).max() <= 3
            text = source.captions[image][caption]
            assert f"erson {person} " in text
            ids = {level: batch["text"][level][row] for level in config.mla.levels}
            whole = tokenizer.decode(tokenizer.encode([text], 40)[0])
            assert tokenizer.decode(ids["sentence"]) == whole
            assert all(part in whole for part in tokenizer.decode(ids["phrase"]).split(" , "))
            assert set(tokenizer.decode(ids["word"]).split()) <= {*whole.split(), ","}
            np.testing.assert_array_equal(batch["words"][row], tokenizer.words(ids["sentence"]))


def test_batches_follow_the_plan(pedes_root, source, tokenizer):
    config = make_config(pedes_root)
    plans = EpochPlans(source.person_ids[source.pairs[0]], 8, "identity", 2, config.seed)
    steps = int(plans.epoch_starts(2)[2])
    drawn = np.concatenate([batch["pair_ids"] for batch in stream(config, source, tokenizer, steps)])
    np.testing.assert_array_equal(drawn, np.concatenate([plans.epoch(0), plans.epoch(1)]))


def test_a_batch_is_the_same_whenever_the_stream_starts(pedes_root, source, tokenizer):
    config = make_config(pedes_root)
    whole = stream(config, source, tokenizer, 8)
    for start in (1, 5):
        for one, other in zip(whole[start:], stream(config, source, tokenizer, 8 - start, start=start), strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_see_the_batches_of_one(pedes_root, source, tokenizer, num_hosts):
    config = make_config(pedes_root)
    whole = stream(config, source, tokenizer, 3)
    parts = [stream(config, source, tokenizer, 3, host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    for step, batch in enumerate(whole):
        split = [flat(part[step]) for part in parts]
        joined = {key: np.concatenate([p[key] for p in split]) for key in split[0]}
        for key, value in flat(batch).items():
            np.testing.assert_array_equal(joined[key], value, err_msg=key)


def test_another_seed_gives_another_stream_and_each_epoch_draws_anew(pedes_root, source, tokenizer):
    whole_epochs = {"data.sampling": "uniform", "data.batch_size": 36}
    first, second = stream(make_config(pedes_root, **whole_epochs), source, tokenizer, 2)
    (other,) = stream(make_config(pedes_root, **whole_epochs, seed=12), source, tokenizer, 1)
    for batch in (second, other):
        a, b = np.argsort(first["pair_ids"]), np.argsort(batch["pair_ids"])
        np.testing.assert_array_equal(first["pair_ids"][a], batch["pair_ids"][b])
        assert not np.array_equal(first["pair_ids"], batch["pair_ids"])
        for key in ("images", "erase"):
            assert not np.array_equal(first[key][a], batch[key][b])
        for level, redrawn in (("sentence", False), ("phrase", True), ("word", True)):
            assert np.array_equal(first["text"][level][a], batch["text"][level][b]) != redrawn


@pytest.mark.parametrize(
    "changes",
    [{}, {"data.label_noise": 0.5}, {"text.phrase_rule": "clauses", "text.word_rule": "released"}],
    ids=["as released", "label noise", "other rules"],
)
def test_each_row_draws_by_seed_epoch_and_its_place_in_the_epoch(pedes_root, source, tokenizer, changes):
    config = make_config(pedes_root, **{"augment.erase": 1.0, **changes})
    plans = EpochPlans(source.person_ids[source.pairs[0]], 8, "identity", 2, config.seed)
    last = int(plans.epoch_starts(2)[2])
    shown = traded_captions(len(source.pairs[0]), config.data.label_noise, config.seed)
    places = set()
    for step, batch in enumerate(stream(config, source, tokenizer, last)):
        epoch, first, pairs = plans.rows(step)
        for row, pair in enumerate(pairs):
            rng = keyed_rng(config.seed, epoch, first + row)
            views = augment.draw_views(rng.random((2, augment.UNIFORMS)), (H, W), pad=3, flip=0.5, erase=1.0)
            np.testing.assert_array_equal(batch["erase"][row], views.box)
            image, caption = (index[shown[pair]] for index in source.pairs)
            rules = {"phrase_rule": config.text.phrase_rule, "word_rule": config.text.word_rule}
            text = draw_levels(source.captions[image][caption], rng, **rules)
            for level in config.mla.levels:
                expected = tokenizer.encode([text[level]], config.text.length[level])[0]
                np.testing.assert_array_equal(batch["text"][level][row], expected)
        places.add((epoch, first))
    assert {(0, 0), (0, 8), (1, 0), (1, 8)} <= places


def test_phrases_of_the_dataset_belong_to_their_caption_and_copies_are_counted(pedes_root, tmp_path, tokenizer):
    """The first image has a record for each of its two captions, each with a phrase of its own."""
    records = json.loads((pedes_root / "reid_raw.json").read_text())
    first = records.pop(0)
    halves = [{**first, "captions": [text], "att": {"0": f"phrase {n}"}} for n, text in enumerate(first["captions"])]
    (tmp_path / "reid_raw.json").write_text(json.dumps([*halves, *records]))
    (tmp_path / "imgs").symlink_to(pedes_root / "imgs")
    config = make_config(tmp_path, **{"data.sampling": "uniform", "data.batch_size": 36})
    source = opening.open_split(config, "train")
    assert source.copies.tolist() == [2] + [1] * 17
    (batch,) = stream(config, source, tokenizer, 1)
    for pair in (0, 1):
        (row,) = np.flatnonzero(batch["pair_ids"] == pair)
        assert tokenizer.decode(batch["text"]["word"][row]) == f"phrase {pair}"


def structured(root):
    """Writes a dataset of four persons with two images each, 40 x 20 coarse random colours; returns its config."""
    (root / "imgs").mkdir()
    rng, records = np.random.default_rng(0), []
    for person, split in enumerate(["train", "train", "val", "test"]):
        for image in range(2):
            name = f"{person}_{image}.png"
            coarse = Image.fromarray(rng.integers(40, 216, (10, 5, 3), np.uint8))
            coarse.resize((20, 40), Image.Resampling.NEAREST).save(root / "imgs" / name)
            captions = [f"Person {person} has black hair."] * 2
            records.append({"id": person, "file_path": name, "captions": captions, "split": split})
    (root / "reid_raw.json").write_text(json.dumps(records))
    changes = {"augment.pad": 0, "augment.flip": 0.0, "augment.erase": 0.0, "data.batch_size": 4}
    return make_config(root, **changes)


def resized(root, path, method):
    """Returns an image that Pillow resized to the size of the model."""
    return np.array(Image.open(root / "imgs" / path).resize((W, H), method)).astype(int)


def test_evaluation_resizes_bilinearly_and_training_bicubically(tmp_path, tokenizer):
    config = structured(tmp_path)
    source = opening.open_split(config, "train")
    (seen,) = pipeline.image_batches(source, (H, W), 4)
    (batch,) = stream(config, source, tokenizer, 1)
    for index, path in enumerate(source.paths):
        bilinear, bicubic = (resized(tmp_path, path, m) for m in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        assert np.abs(bilinear - bicubic).max() > 8  # the two methods differ visibly
        assert np.abs(seen[index] - bilinear).max() <= 1
        (rows,) = np.nonzero(source.pairs[0][batch["pair_ids"]] == index)
        for row in rows:
            assert np.abs(batch["images"][row] - bicubic).max() <= 2


def test_views_are_crops_of_the_padded_image_mirrored_where_they_are_flipped(tmp_path, tokenizer):
    config = structured(tmp_path)
    config.augment.update({"pad": 3, "flip": 0.5})
    source = opening.open_split(config, "train")
    plans = EpochPlans(source.person_ids[source.pairs[0]], 4, "identity", 2, config.seed)
    flips = []
    for step, batch in enumerate(stream(config, source, tokenizer, 4)):
        epoch, first, pairs = plans.rows(step)
        for row, pair in enumerate(pairs):
            uniform = keyed_rng(config.seed, epoch, first + row).random((2, augment.UNIFORMS))
            path = source.paths[source.pairs[0][pair]]
            padded = np.pad(resized(tmp_path, path, Image.Resampling.BICUBIC), ((3, 3), (3, 3), (0, 0)))
            for view, (down, right, flip) in enumerate(uniform[:, :3]):
                crop = padded[int(down * 7) :, int(right * 7) :][:H, :W]
                expected = crop[:, ::-1] if flip < 0.5 else crop
                assert np.abs(batch["images"][row, view] - expected).max() <= 2
                flips.append(flip < 0.5)
    assert {True, False} == set(flips)


def test_views_differ_and_a_first_view_does_not_depend_on_their_number(pedes_root, source, tokenizer):
    (two,) = stream(make_config(pedes_root), source, tokenizer, 1)
    (one,) = stream(make_config(pedes_root, **{"mla.views": 1}), source, tokenizer, 1)
    np.testing.assert_array_equal(one["images"][:, 0], two["images"][:, 0])
    np.testing.assert_array_equal(one["erase"][:, 0], two["erase"][:, 0])
    assert (two["images"][:, 0] != two["images"][:, 1]).any() and (two["erase"][:, 0] != two["erase"][:, 1]).any()


def test_augmentation_can_be_switched_off(pedes_root, source, tokenizer):
    changes = {"augment.pad": 0, "augment.flip": 0.0, "augment.erase": 0.0}
    (batch,) = stream(make_config(pedes_root, **changes), source, tokenizer, 1)
    np.testing.assert_array_equal(batch["images"][:, 0], batch["images"][:, 1])
    assert not batch["erase"].any()
    assert (batch["images"].std((2, 3)) == 0).all()  # images of one colour, no black border


def test_no_thread_that_tunes_holds_up_the_end(monkeypatch):
    """It sleeps between its looks, and a preempted run waited for it, for 20 s where this was measured."""
    data, seen = pipeline.tf.data.Dataset, []
    original = data.with_options
    monkeypatch.setattr(data, "with_options", lambda *given: seen.append(given[1]) or original(*given))
    assert next(iter(pipeline.run_dataset(data.range(3)))) == 0
    assert [options.autotune.enabled for options in seen] == [False]


def test_only_the_levels_in_use_are_made(pedes_root, source, tokenizer):
    (batch,) = stream(make_config(pedes_root, **{"mla.levels": ("sentence",)}), source, tokenizer, 1)
    assert set(batch["text"]) == {"sentence"}


def test_a_batch_that_hosts_cannot_share_is_refused(pedes_root, source, tokenizer):
    with pytest.raises(UserError, match=r"data.batch_size 8 is not a multiple of the 3 hosts"):
        stream(make_config(pedes_root), source, tokenizer, 1, num_hosts=3)


def test_one_host_reads_whole_batches_unless_it_is_told_of_others(pedes_root, source, tokenizer):
    config = make_config(pedes_root)
    plans = EpochPlans(source.person_ids[source.pairs[0]], 8, "identity", 2, config.seed)
    with contextlib.closing(pipeline.train_batches(config, JointSource({"": source}), tokenizer, plans)) as batches:
        np.testing.assert_array_equal(next(batches)["pair_ids"], plans.epoch(0)[:8])


def test_evaluation_reads_every_image_once_in_order(pedes_root, source):
    batches = list(pipeline.image_batches(source, (H, W), 7))
    assert [len(batch) for batch in batches] == [7, 7, 4]
    images = np.concatenate(batches)
    assert images.dtype == np.uint8
    for path, image in zip(source.paths, images, strict=True):
        pillow = Image.open(pedes_root / "imgs" / path).resize((W, H), Image.Resampling.BILINEAR)
        assert np.abs(image.astype(int) - np.array(pillow).astype(int)).max() <= 1


# ---- damaged images


def damaged(pedes_root, root, *names):
    """The dataset with these images empty."""
    shutil.copytree(pedes_root / "imgs", root / "imgs")
    shutil.copy(pedes_root / "reid_raw.json", root)
    for name in names:
        (root / "imgs" / name).write_bytes(b"")
    return make_config(root, **{"data.max_damaged": 0.5})


def test_pairs_of_the_same_person_stand_in_for_those_of_damaged_images(pedes_root, tmp_path, capsys):
    config = damaged(pedes_root, tmp_path, "00_1.jpg", "03_0.jpg", "03_1.jpg", "03_2.jpg")
    source = opening.open_split(config, "train")
    assert "4 damaged training images: other images of the same person are used instead\n" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    assert [source.stand_in(pair, rng) for pair in (0, 1, 4, 5, 6)] == [0, 1, 4, 5, 6]
    # Person 0 has pairs 0 to 5, image 1 the pairs 2 and 3; nobody of person 3, pairs 18 to 23, has a whole image.
    assert {source.stand_in(pair, rng) for pair in (2, 3) for _ in range(100)} == {0, 1, 4, 5}
    assert {source.stand_in(20, rng) for _ in range(400)} == {*range(36)} - {2, 3} - {*range(18, 24)}


def test_batches_with_stand_ins_are_the_same_on_any_number_of_hosts(pedes_root, tmp_path, tokenizer):
    config = damaged(pedes_root, tmp_path, "00_1.jpg")
    source = opening.open_split(config, "train")
    whole = stream(config, source, tokenizer, 3)
    halves = [stream(config, source, tokenizer, 3, host=host, num_hosts=2) for host in (0, 1)]
    for batch, one, other in zip(whole, *halves, strict=True):
        for key in ("pair_ids", "person_ids", "images"):
            np.testing.assert_array_equal(batch[key], np.concatenate([one[key], other[key]]))
        assert not set(batch["pair_ids"].tolist()) & {2, 3}


def test_the_person_of_a_stand_in_is_the_one_in_the_image(pedes_root, tmp_path, tokenizer):
    config = damaged(pedes_root, tmp_path, "03_0.jpg", "03_1.jpg", "03_2.jpg")
    config.update_from_flattened_dict({"augment.pad": 0, "data.sampling": "uniform", "data.batch_size": 36})
    source = opening.open_split(config, "train")
    (batch,) = stream(config, source, tokenizer, 1)
    assert not (batch["person_ids"] == 3).any()  # nobody of person 3 has a whole image
    for row, pair in enumerate(batch["pair_ids"]):
        image, caption = (index[pair] for index in source.pairs)
        assert batch["person_ids"][row] == image // 3
        centre = batch["images"][row, :, H // 2, W // 2].astype(int)
        assert np.abs(centre - colour(image // 3, image % 3)).max() <= 3
        expected = tokenizer.encode([source.captions[image][caption]], 40)[0]
        np.testing.assert_array_equal(batch["text"]["sentence"][row], expected)


def test_persons_held_out_for_validation_may_not_be_damaged(pedes_root, tmp_path):
    config = damaged(pedes_root, tmp_path, *(f"{person:02d}_0.jpg" for person in range(6)))
    records = json.loads((tmp_path / "reid_raw.json").read_text())
    (tmp_path / "reid_raw.json").write_text(json.dumps([r for r in records if r["split"] != "val"]))
    with pytest.raises(DataError, match=r"2 damaged images in val, the first is 00_0.jpg"):
        opening.open_split(config, "val")


def test_label_noise_moves_captions_and_leaves_images_and_persons(source, tokenizer, pedes_root):
    clean = stream(make_config(pedes_root), source, tokenizer, 3)
    noisy = stream(make_config(pedes_root, **{"data.label_noise": 0.5}), source, tokenizer, 3)
    changed = 0
    for one, other in zip(clean, noisy, strict=True):
        for name in ("pair_ids", "person_ids", "images", "erase"):
            np.testing.assert_array_equal(one[name], other[name])
        changed += (one["text"]["sentence"] != other["text"]["sentence"]).any(1).sum()
    assert 6 <= changed <= 18  # of 24 rows about half; the two captions of a person may look alike
