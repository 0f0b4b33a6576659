"""Every form in which the datasets come, with the defects they are known for, from the JSON file to test figures.

Each variant is a small dataset of its exact shape, made here: who is in which image is written down once, by hand, and
laid out as that variant has it. The captions and the pictures are our own.
"""

import builtins
import io
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from configs import default, synth
from input_pipeline import doctor, opening, pipeline
from input_pipeline.annotations import DATASETS, read_annotations
from input_pipeline.joint import JointSource
from input_pipeline.prepared import prepare
from input_pipeline.sampling import EpochPlans
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.training import loop

COLOURS = ("red", "green", "blue", "black", "white", "grey", "brown", "yellow", "pink", "purple", "orange")


class Row(NamedTuple):
    """One image: what every variant tells of it. copies: how many image records name it."""

    split: str
    person: int
    path: str
    captions: list[str]
    copies: int = 1


def say(number):
    """121 captions, no two of them the same."""
    return f"A person in a {COLOURS[number % 11]} coat and {COLOURS[number // 11]} trousers carries a bag."


def rows(*table):
    """(split, person, path, number of captions) -> rows; no two captions are the same."""
    numbers = itertools.count()
    return [Row(split, person, path, [say(next(numbers)) for _ in range(n)]) for split, person, path, n in table]


# ---- the datasets


# Seven folders, three formats, ids from 1 with gaps; two captions mostly, but some images have three, or one.
CUHK = rows(
    ("train", 1, "cam_a/000_45.bmp", 2),
    ("train", 1, "cam_b/000_90.bmp", 2),
    ("train", 2, "CUHK01/0002001.png", 2),
    ("train", 2, "CUHK01/0002004.png", 3),
    ("train", 5, "Market/0005_c1s1_000151_01.jpg", 2),
    ("train", 5, "CUHK03/1_005_1_01.png", 1),
    ("val", 7, "cam_a/007_45.bmp", 2),
    ("val", 8, "Market/0008_c2s1_000026_01.jpg", 2),
    ("val", 11, "CUHK03/1_011_2_06.png", 2),
    ("test", 12, "test_query/p12_s14.jpg", 2),
    ("test", 12, "train_query/p12_s15.jpg", 2),
    ("test", 13, "cam_b/013_0.bmp", 2),
    ("test", 20, "CUHK01/0020002.png", 3),
)  # fmt: skip


def icfg(split, person, image, folder):
    return split, person, f"{folder}/{person:04d}/{person:04d}_{image:03d}_01_afternoon.jpg", 1


# The folders train and test are MSMT17's: both are in both splits. No val.
ICFG = rows(
    *(icfg("train", person, image, ("train", "test")[person % 2]) for person in range(40) for image in (0, 1)),
    *(icfg("test", person, image, "train" if person == 40 else "test") for person in (40, 41, 45) for image in (0, 1)),
)
# The first image of person 31 is named by two records, the second of which stands behind all others of train.
TWICE = Row("train", 31, "test/0031/0031_000_01_afternoon.jpg", [say(100)])
ICFG_RECORDS = [*ICFG[:80], TWICE, *ICFG[80:]]
# Two of the 40 are held out (5%): the first in the order of SHA-256, as a shell sees it:
# for p in $(seq 0 39); do echo $(printf 0/$p | sha256sum) $p; done | sort | head -2
HELD_OUT = (16, 31)


def icfg_read(copies):
    """What ICFG_RECORDS come to. copies: of the image named twice."""
    joined = [
        r._replace(captions=r.captions + TWICE.captions, copies=copies) if r.path == TWICE.path else r for r in ICFG
    ]
    return [r._replace(split="val") if r.split == "train" and r.person in HELD_OUT else r for r in joined]


# A stray CJK character, a fragment of a program, empty captions, one caption for two persons.
SAME = "A young woman in a white dress."
STRAY = "A man \u7537 in a black coat\uff0c with a bag."
CODE = 'A woman in a red dress.</td>\\n{"id": %d}'
RSTP_RECORDS = [
    Row("train", 0, "0000_c14_0031.jpg", [say(0), STRAY]),
    Row("train", 0, "0000_c1_0004.jpg", [CODE, say(1)]),
    Row("train", 1, "0001_c3_0012.jpg", ["", SAME]),
    Row("train", 1, "0001_c5_0007.jpg", ["", " \n"]),
    Row("train", 2, "0002_c9_0001.jpg", [SAME, say(2)]),
    Row("train", 2, "0002_c9_0022.jpg", [say(3), say(4)]),
    Row("val", 4, "0004_c2_0003.jpg", [say(5), say(6)]),
    Row("val", 5, "0005_c2_0004.jpg", [say(7), say(8)]),
    Row("val", 6, "0006_c7_0001.jpg", [say(9), say(10)]),
    Row("test", 7, "0007_c2_0009.jpg", [say(11), say(12)]),
    Row("test", 8, "0008_c3_0002.jpg", [say(13), say(14)]),
    Row("test", 9, "0009_c3_0002.jpg", ["", say(15)]),
]
RSTP_READ = [r._replace(captions=[SAME]) if r.person == 1 else r for r in RSTP_RECORDS if r.path != "0001_c5_0007.jpg"]

# Paragraphs for captions; the images lie beside the annotations, and their folder is in the paths.
UFINE = [
    Row(split, person, f"images/{2 * person + image}.jpg", [" ".join([say(10 * person + image)] * 6), say(90 + person)])
    for split, persons in (("train", (1, 2, 3)), ("val", (4, 5, 6)), ("test", (7, 8, 9)))
    for person in persons
    for image in (0, 1)
]
UFINE[2].captions[0] = " ".join([say(20)] * 9)  # 9 sentences of 11 words and a full stop


# ---- the shapes


def raw(records, path_key="file_path", tokens=False, capital=False):
    """A list of image records."""
    return [
        {"split": split.capitalize() if capital else split, "captions": captions, path_key: path}
        | ({"processed_tokens": [caption.lower().split() for caption in captions]} if tokens else {})
        | {"id": person}
        for split, person, path, captions, _ in records
    ]


def processed(records, path_key="file_path"):
    """An object of splits, a record per caption."""
    splits: dict[str, list[Any]] = {}
    for split, person, path, captions, _ in records:
        splits.setdefault(split, []).extend({"id": person, path_key: path, "captions": text} for text in captions)
    return splits


def with_attributes(splits):
    """As cuhk_pedes_att.json: tokens, and phrases that are in no caption; every third caption has none."""
    for record in itertools.chain(*splits.values()):
        colour, other = record["captions"].split()[4], record["captions"].split()[7]
        record["processed_tokens"] = record["captions"].lower().split()
        without = (COLOURS.index(colour) + COLOURS.index(other)) % 3 == 0
        record["att"] = {} if without else {"upper": f"{colour} jacket", "lower": f"{other} jeans", "hat": ""}
    return splits


def with_query_and_gallery(splits):
    """As ICFG_PEDES_VISTXT.json: lists of one caption, tokens, and test twice more under other names."""
    for record in itertools.chain(*splits.values()):
        record["processed_tokens"] = [record["captions"].lower().split()]
        record["captions"] = [record["captions"]]
    return splits | {"query": splits["test"], "gallery": splits["test"]}


class Variant(NamedTuple):
    """A dataset in one of its shapes, and what is to be seen of it.

    dataset: as commands call it; read: the records as the splits have them, val held out where there is none; said: on
    stderr, behind the file's name; counts: persons, image records, captions, for the doctor; warnings: its lines;
    scored: queries, gallery, persons of val and test.
    """

    dataset: str
    file: str
    document: Any
    read: list[Row]
    said: list[str]
    counts: dict[str, tuple[int, int, int]]
    warnings: list[str]
    scored: dict[str, tuple[int, int, int]]


OTHERS = "not as published: train, val, test"
cuhk = {
    "read": CUHK, "said": [], "warnings": [OTHERS],
    "counts": {"train": (3, 6, 12), "val": (3, 3, 6), "test": (3, 4, 9)},
    "scored": {"val": (6, 3, 3), "test": (9, 4, 3)},
}  # fmt: skip
icfg_raw = {
    "read": icfg_read(copies=2), "said": ["87 records of 86 images; joined 1 to another record"],
    "counts": {"train": (40, 81, 81), "test": (3, 6, 6)}, "warnings": ["not as published: train, test"],
    "scored": {"val": (5, 5, 2), "test": (6, 6, 3)},
}  # fmt: skip
rstp = {
    "read": RSTP_READ, "counts": {"train": (3, 5, 9), "val": (3, 3, 6), "test": (3, 3, 6)},
    "scored": {"val": (6, 3, 3), "test": (6, 3, 3)},
}  # fmt: skip


def rstp_said(place):
    return ["3 empty captions dropped from train", f"empty captions in val or test are kept as queries: {place}"]


def rstp_warnings(first, last):
    return [
        OTHERS, f"1 caption has letters that are not Latin: {first}", f"1 caption is empty: {last}",
        '1 caption is the same for several persons: "a young woman in a white dress." (2 persons)',
    ]  # fmt: skip


VARIANTS = {
    "CUHK-PEDES": Variant("cuhk", "reid_raw.json", raw(CUHK, tokens=True), **cuhk),
    "CUHK-PEDES, no tokens, capitals": Variant("cuhk", "reid_raw.json", raw(CUHK, capital=True), **cuhk),
    "CUHK-PEDES, processed": Variant("cuhk", "cuhk_pedes_att.json", with_attributes(processed(CUHK)), **cuhk),
    "ICFG-PEDES": Variant("icfg", "ICFG-PEDES.json", raw(ICFG_RECORDS, tokens=True), **icfg_raw),
    "ICFG_PEDES": Variant("icfg", "ICFG_PEDES.json", raw(ICFG_RECORDS), **icfg_raw),
    "ICFG-PEDES, processed": Variant(
        "icfg", "ICFG_PEDES_VISTXT.json", with_query_and_gallery(processed(ICFG_RECORDS)),
        icfg_read(copies=1), [],  # a record is a caption's here: two are no fault
        {"train": (40, 80, 81), "test": (3, 6, 6)}, ["not as published: train, test"],
        {"val": (5, 4, 2), "test": (6, 6, 3)},
    ),
    "RSTPReid": Variant(
        "rstp", "data_captions.json", raw(RSTP_RECORDS, "img_path"), said=rstp_said("record 11"),
        warnings=rstp_warnings("record 0", "record 11"), **rstp,
    ),
    "RSTPReid, processed": Variant(
        "rstp", "rstpreid_vistxt.json", processed(RSTP_RECORDS, "img_path"),
        said=rstp_said("test record 4, test record 5"),  # of one image
        warnings=rstp_warnings("train record 0, train record 1", "test record 4, test record 5"), **rstp,
    ),
    "UFine6926": Variant(
        "synth", "data_captions.json", raw(UFINE), UFINE, [],
        {"train": (3, 6, 12), "val": (3, 6, 12), "test": (3, 6, 12)},
        ["1 caption has over 98 words and marks: the rest is cut off: record 2"],
        {"val": (12, 6, 3), "test": (12, 6, 3)},
    ),
}  # fmt: skip


def write(root, file, document, paths=()):
    """The annotations, and a picture of noise for each path, each of another size."""
    beside = bool(paths) and all(path.startswith("images/") for path in paths)
    (root / "imgs").mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number % 11, 20 + number % 7, 3), np.uint8)
        image = root / path if beside else root / "imgs" / path
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(image)
    content = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
    (root / file).write_bytes(content)
    return root


def pictures(records):
    return sorted({row.path for row in records})


THREE = {"cuhk": ("CUHK-PEDES", CUHK), "icfg": ("ICFG-PEDES", ICFG), "rstp": ("RSTPReid", RSTP_RECORDS)}


def write_three(folder):
    """CUHK-PEDES, ICFG-PEDES and RSTPReid in their raw layouts, below the folder; returns their roots by short name."""
    return {
        name: write(folder / name, VARIANTS[title].file, VARIANTS[title].document, pictures(records))
        for name, (title, records) in THREE.items()
    }


def joint_config(roots, **changes):
    """The config of a training on all of them, with the same program as `tiny`."""
    config = tiny("cuhk", "")
    sources = tuple(f"{name}:{root}" for name, root in roots.items())
    config.update_from_flattened_dict({"data.name": "joint", "data.sources": sources, **changes})
    return config


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def root(variant, tmp_path_factory):
    everything = {"cuhk": CUHK, "icfg": ICFG, "rstp": RSTP_RECORDS, "synth": UFINE}[variant.dataset]
    return write(tmp_path_factory.mktemp("variant"), variant.file, variant.document, pictures(everything))


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The runs of this file and training/test_joint.py have one program: from the second on, JAX finds it on disk."""
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}
    for key, value in zip(keys, (os.environ["JAX_COMPILATION_CACHE_DIR"], 0.0), strict=True):
        jax.config.update(key, value)
    compilation_cache.reset_cache()
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()


# ---- each variant, stage by stage


def test_the_reader(variant, root, capsys):
    os.utime(root / variant.file)  # so that it is read anew
    annotations = read_annotations(root, DATASETS[variant.dataset])
    assert annotations.path == root / variant.file
    assert annotations.images == (root if variant.dataset == "synth" else root / "imgs")
    got = [Row(r.split, r.person_id, r.image_path, list(r.captions), r.copies) for r in annotations.records]
    assert got == [row._replace(split="train") if held_out(variant, row) else row for row in variant.read]
    assert capsys.readouterr().err == "".join(f"{root / variant.file}: {line}\n" for line in variant.said)


def held_out(variant, row):
    return variant.dataset == "icfg" and row.split == "val"


def test_the_doctor(variant, root, capsys):
    assert doctor.main([f"--dataset={variant.dataset}", f"--root={root}", "--workers=1"]) == 1
    out = capsys.readouterr().out
    for split, counts in variant.counts.items():
        persons, images, captions = map(str, counts)
        assert f"\n{split:8}{persons:>10}{images:>10}{captions:>10}" in out
    warnings = [line.removeprefix("warning: ") for line in out.splitlines() if line.startswith("warning: ")]
    assert set(warnings) >= set(variant.warnings)
    assert "error: " not in out


def test_the_builder(variant, root):
    """Every record comes back in its order, and its image with the pixels of the file."""
    name = DATASETS[variant.dataset]
    builder, images = prepare(root, name), read_annotations(root, name).images
    rows_of = {split: [] for split in variant.counts}
    for row in variant.read:
        rows_of["train" if held_out(variant, row) else row.split].append(row)
    assert set(builder.info.splits) == set(rows_of)
    for split, expected in rows_of.items():
        data = builder.as_data_source(split)
        assert len(data) == len(expected)
        for number, row in enumerate(expected):
            example = data[number]
            assert (example["path"].decode(), int(example["person_id"])) == (row.path, row.person)
            assert [caption.decode() for caption in example["captions"]] == row.captions
            pixels, source = Image.open(io.BytesIO(example["image"])), Image.open(images / row.path)
            assert (pixels.format == source.format) != row.path.endswith(".bmp")  # which TensorFlow would not read
            np.testing.assert_array_equal(np.array(pixels), np.array(source))


def tiny(dataset, root, **changes):
    """A config whose program is the same for all variants; batches are of two persons, four pairs of each."""
    config = synth.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": DATASETS[dataset], "data.root": str(root), "data.batch_size": 8, "data.instances": 4,
            "text.length.sentence": 16, "text.length.phrase": 12, "text.length.word": 12,
            "model.image_size": (12, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 8, "model.depth": 1,
            "model.num_heads": 2, "model.remat": False, "bmm.rows": 8, "bmm.patch_weight": 0.0,
            "optimizer.warmup_epochs": 0.0, "mla.levels": ("sentence", "word"),
            "train.steps": 2, "train.eval_every": 2, "runtime.log_every": 1, "runtime.eval_batch_size": 2,
            "evaluation.robustness": False, **changes,
        }
    )  # fmt: skip
    return config


def test_the_splits(variant, root):
    """Persons are numbered from 0 in each split, whatever their ids; nobody is in two."""
    config, seen = tiny(variant.dataset, root), []
    for split in ("train", "val", "test"):
        source = opening.open_split(config, split)
        expected = [row for row in variant.read if row.split == split]
        assert source.paths == [row.path for row in expected]
        ids = sorted({row.person for row in expected})
        assert source.persons.tolist() == ids
        assert source.person_ids.tolist() == [ids.index(row.person) for row in expected]
        seen += ids
    assert len(seen) == len(set(seen))


def test_training_and_evaluation(variant, root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda workdir: "")  # test_report has it
    loop.train_and_evaluate(tiny(variant.dataset, root), tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in steps if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    for split, scored in variant.scored.items():
        summary = read_json(tmp_path / split / "summary.json")
        assert (summary["queries"], summary["gallery"], summary["persons"]) == scored
        assert all(math.isfinite(value) for way in ("t2i", "i2t") for value in summary[way].values())
        items, expected = (
            read_json(tmp_path / split / "items.json"),
            [row for row in variant.read if row.split == split],
        )
        assert items["paths"] == [row.path for row in expected]
        assert items["captions"] == [caption for row in expected for caption in row.captions]
    said = "ICFG-PEDES.json has no val split; held out in its place: 2 training persons (data.val_persons)\n"
    assert (said.replace("ICFG-PEDES.json", variant.file) in capsys.readouterr().err) == (variant.dataset == "icfg")


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


# ---- what one variant alone has


def test_the_phrases_of_the_processed_file_are_what_the_word_level_draws(tmp_path):
    """They are in no caption. A caption without any gives its own words."""
    document = VARIANTS["CUHK-PEDES, processed"].document
    config = tiny("cuhk", write(tmp_path, "cuhk_pedes_att.json", document, pictures(CUHK)))
    source, tokenizer = JointSource(opening.open_parts(config, "train")), load_tokenizer()
    plans = EpochPlans(source.person_of_pair, 8, "identity", 4, config.seed)
    drawn: dict[int, set[str]] = {pair: set() for pair in range(12)}
    for batch in itertools.islice(pipeline.train_batches(config, source, tokenizer, plans), 40):
        assert sorted(np.bincount(batch["person_ids"], minlength=3)) == [0, 4, 4]
        for pair, ids in zip(batch["pair_ids"].tolist(), batch["text"]["word"], strict=True):
            drawn[pair].add(tokenizer.decode(ids))
    for pair, record in enumerate(document["train"]):
        upper, lower = f"{COLOURS[pair % 11]} jacket", f"{COLOURS[pair // 11]} jeans"
        if pair in (0, 3, 6, 9):  # the numbers of their colours add up to a multiple of 3
            assert record["att"] == {}
            own = record["captions"].lower().replace(".", " .")
            assert all(part in own for text in drawn[pair] for part in text.split(" , "))
        else:
            assert drawn[pair] == {upper, lower, f"{upper} , {lower}"}


def test_another_share_of_persons_is_held_out(tmp_path):
    """10% are the two of 5% and two more, by the same order."""
    root = write(tmp_path, "ICFG-PEDES.json", raw(ICFG_RECORDS), pictures(ICFG))
    config = tiny("icfg", root, **{"data.val_persons": 0.1})
    assert opening.open_split(config, "val").persons.tolist() == [10, 16, 31, 39]
    assert default.get_config().data.val_persons == 0.05


def test_without_validation_the_last_step_is_evaluated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda workdir: "")
    root = write(tmp_path / "data", "ICFG_PEDES.json", raw(ICFG_RECORDS), pictures(ICFG))
    config = tiny("icfg", root, **{"data.val_persons": 0.0, "train.eval_every": 1})
    assert opening.open_split(config, "train").persons.tolist() == list(range(40))
    loop.train_and_evaluate(config, tmp_path / "run")
    said = "ICFG_PEDES.json has no val split; data.val_persons is 0: all persons train"
    printed = capsys.readouterr().err
    assert f"{said}\n" in printed and "no val split: the last step counts as the best\n" in printed
    summary = read_json(tmp_path / "run/test/summary.json")
    assert (summary["step"], summary["queries"], summary["gallery"], summary["persons"]) == (2, 6, 6, 3)
    assert not (tmp_path / "run/val").exists()


NO_SPLIT = (
    'record 0 has no "split". This looks like caption_all.json, which has no splits. '
    "Use reid_raw.json, which has them; see docs/datasets.md"
)


def test_captions_alone_are_refused_by_all(tmp_path, capsys):
    """caption_all.json, as CUHK-PEDES is sent by its authors."""
    records = [{"id": r.person, "file_path": r.path, "captions": r.captions} for r in CUHK]
    root = write(tmp_path / "CUHK-PEDES", "caption_all.json", records, pictures(CUHK))
    message = (
        f"{root}/reid_raw.json not found: --config.data.root expects the CUHK-PEDES folder with reid_raw.json or "
        f"cuhk_pedes_att.json and imgs/; see docs/datasets.md; another JSON file: {root}/caption_all.json: {NO_SPLIT}"
    )
    for use in (
        lambda: read_annotations(root, "cuhk_pedes"),
        lambda: prepare(root, "cuhk_pedes"),
        lambda: loop.train_and_evaluate(tiny("cuhk", root), tmp_path / "run"),
    ):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value) == message
    assert not (tmp_path / "run").exists()
    assert doctor.main(["--dataset=cuhk", f"--root={root}"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(UserError) as error:
        read_annotations(root / "caption_all.json", "cuhk_pedes")
    assert str(error.value) == f"{root}/caption_all.json: {NO_SPLIT}"


# ---- damaged images


def test_a_damaged_image_of_test_is_refused_until_the_fix_list_leaves_it_out(tmp_path, capsys):
    root = write(tmp_path, "data_captions.json", raw(UFINE), pictures(UFINE))
    (root / "images/15.jpg").write_bytes(b"")  # the second of person 7
    message = f"{root}/images/15.jpg (record 13) is not a readable image: cannot be identified"
    config, call = tiny("synth", root), ["--dataset=synth", f"--root={root}", "--workers=1"]
    with pytest.raises(UserError) as error:
        opening.open_split(config, "train")
    assert str(error.value) == message
    assert doctor.main(call) == 2 and not (root / "quarantine.txt").exists()
    capsys.readouterr()
    assert doctor.main([*call, "--fix_list"]) == 2
    out = capsys.readouterr().out
    assert f"images to leave out are listed in {root}/quarantine.txt\n" in out
    assert "error: 1 image is an empty file: images/15.jpg\n" in out
    assert (root / "quarantine.txt").read_text() == "images/15.jpg\n"
    test = opening.open_split(config, "test")
    assert test.paths == [f"images/{i}.jpg" for i in (14, 16, 17, 18, 19)]
    assert f"{root}/quarantine.txt leaves out images: 1 of test\n" in capsys.readouterr().err
    assert doctor.main(call) == 1


@pytest.mark.parametrize("damaged", [1, 2])
def test_the_default_bears_one_damaged_training_image_of_200(tmp_path, damaged, capsys):
    table = [("train", i // 4, f"{i}.jpg", 1) for i in range(100)]
    records = rows(*table) + [r._replace(path=f"b{r.path}") for r in rows(*table)]
    root = write(tmp_path, "data_captions.json", raw(records, "img_path"), [row.path for row in records])
    for number in range(damaged):
        (root / "imgs" / f"{7 * number}.jpg").write_bytes(b"GIF")
    config = tiny("rstp", root)
    assert config.data.max_damaged == 0.005
    if damaged == 1:
        assert opening.open_split(config, "train").damaged.sum() == 1
        assert "1 damaged training image: other images of the same person are used instead\n" in capsys.readouterr().err
    else:
        with pytest.raises(UserError) as error:
            opening.open_split(config, "train")
        assert str(error.value) == (
            f"{root}/imgs/7.jpg (record 7) is not a readable image: cannot be identified. More than 0.50% of the "
            "training images are damaged (data.max_damaged); restore them and start again, or leave them out with "
            "`python -m input_pipeline.doctor --dataset=NAME --root=DIR --fix_list`, which lists all in "
            "quarantine.txt, or allow more"
        )


def test_a_folder_of_images_that_is_a_link_out_is_refused_and_never_opened(tmp_path, capsys, monkeypatch):
    root = write(tmp_path / "data", "reid_raw.json", raw(CUHK), pictures(CUHK))
    (root / "imgs/Market").rename(tmp_path / "elsewhere")
    (root / "imgs/Market").symlink_to(tmp_path / "elsewhere")
    opened, original = [], open

    def watched(file, *args, **kwargs):
        opened.append(str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", watched)  # Pillow's
    monkeypatch.setattr(io, "open", watched)  # pathlib's
    with pytest.raises(UserError) as error:
        prepare(root, "cuhk_pedes", max_damaged=1.0)
    image = "Market/0005_c1s1_000151_01.jpg"
    out_of = f"is a link that leads out of {root}/imgs; put the image itself there"
    assert str(error.value) == f"{root}/imgs/{image} (record 4) {out_of}"
    assert doctor.main(["--dataset=cuhk", f"--root={root}", "--workers=1"]) == 2
    line = f"error: 2 images are a link that leads out of the folder of images: {image}, "
    assert line in capsys.readouterr().out
    assert opened.count(f"{root}/imgs/cam_a/000_45.bmp") == 2  # once by each, so it would be seen
    assert not [path for path in opened if "Market" in path or "elsewhere" in path]


# ---- faulty annotations: the whole line, from the reader and from the doctor


GOOD = {"split": "train", "captions": ["A woman.", "She."], "file_path": "cam_a/000_45.bmp", "id": 1}
AGAIN = '"file_path": "a.jpg", "captions": "A hat."'
SEE = "see docs/datasets.md"
DEFECTS = {
    "not UTF-8": (b'[{"split": "\xe9', "{file} is not UTF-8 text (byte 12); convert it, or unpack it again"),
    "truncated": (
        b'[{"split": "tr',
        "{file} is not valid JSON (Unterminated string starting at: line 1 column 12 (char 11)); it may be truncated: "
        "unpack it again",
    ),
    "key twice": (
        b'[{"split": "train", "id": 1, "id": 2, %b}]' % AGAIN.encode(),
        '{file}: record 0 has "id" twice; remove one of them',
    ),
    "split twice": (b'{"train": [], "train": []}', '{file} has "train" twice; remove one of them'),
    "attribute twice": (
        b'{"train": [{"id": 1, "att": {"hat": "a hat", "hat": "a cap"}, %b}]}' % AGAIN.encode(),
        '{file}: train record 0: "att" has "hat" twice; remove one of them',
    ),
    "no records": ([], "{file} holds no records"),
    "no list": (
        {"records": []},
        "{file} holds an object; expected a list of records, or an object of such lists named train, val, test; "
        "see docs/datasets.md",
    ),
    "no object": ([GOOD, "A man."], f"{{file}}: record 1 is a text; expected an object; {SEE}"),
    "no id": ([GOOD, {k: v for k, v in GOOD.items() if k != "id"}], f'{{file}}: record 1 has no "id"; {SEE}'),
    "no split": ([{k: v for k, v in GOOD.items() if k != "split"}], f"{{file}}: {NO_SPLIT}"),
    "other split": ([GOOD | {"split": 1}], '{file}: record 0 has "split" 1; expected one of train, val, test'),
    "captions": (
        [GOOD | {"captions": 7}],
        f'{{file}}: record 0 has "captions" that are neither a text nor a list of at least one text; {SEE}',
    ),
    "id": (
        {"train": [GOOD, GOOD | {"id": "p1"}]},
        '{file}: train record 1 has "id" "p1"; expected a whole number from 0 to 2^31 - 1',
    ),
    "path": ([GOOD | {"file_path": []}], '{file}: record 0 has "file_path" []; expected the path of an image'),
    "attributes": (
        {"train": [GOOD | {"att": "a hat"}]},
        f'{{file}}: train record 0: "att" is a text; expected an object; {SEE}',
    ),
    "absolute path": (
        [GOOD, GOOD | {"file_path": "/etc/passwd"}],
        '{file}: record 1 has "file_path" "/etc/passwd"; expected a path inside the folder of images',
    ),
    "climbing path": (
        [{"split": "val", "captions": "A hat.", "img_path": "a/../../b.jpg", "id": 0}],
        '{file}: record 0 has "img_path" "a/../../b.jpg"; expected a path inside the folder of images',
    ),
    "two persons": (
        [GOOD, GOOD | {"id": 2}],
        '{file}: record 0 and record 1 (cam_a/000_45.bmp) are one image with "id" 1 and 2; remove the wrong record',
    ),
    "two splits": (
        [GOOD, GOOD | {"split": "test"}],
        '{file}: record 0 and record 1 (cam_a/000_45.bmp) are one image with "split" train and test; '
        "remove the wrong record",
    ),
}


@pytest.mark.parametrize(("document", "message"), DEFECTS.values(), ids=DEFECTS)
def test_a_faulty_file_is_one_line_with_file_and_record(tmp_path, document, message, capsys):
    root = write(tmp_path, "reid_raw.json", document)
    line = message.format(file=root / "reid_raw.json")
    with pytest.raises(UserError) as error:
        read_annotations(root, "cuhk_pedes")
    assert str(error.value) == line
    assert doctor.main(["--dataset=cuhk", f"--root={root}"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
