import csv
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import augment
from input_pipeline.joint import JointSource
from input_pipeline.pairs import index, parts, store
from input_pipeline.pairs.index import index_pairs
from input_pipeline.pairs.rows import DIRECT, FILE, JSON, ROW
from input_pipeline.pairs.source import IndexedPairs
from input_pipeline.prepare import main
from input_pipeline.source import key_of_bytes, key_of_caption
from ivt_jax.common.errors import DataError, UserError


def picture(number, format="JPEG", mode="RGB", size=(12, 20), **options):
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 3, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, format, **options)
    return file.getvalue()


def write_tar(path, members, end=True, **options):
    """Writes (name, content) members; end: with the blocks of zeros that end an archive."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        size = archive.offset
    if not end:
        path.write_bytes(path.read_bytes()[:size])
    return path


def members(numbers, caption="A picture of number {}."):
    """Members of pairs as img2dataset writes them."""
    for number in numbers:
        about = {"caption": caption.format(number), "status": "success", "width": 12}
        yield f"{number:09d}.jpg", picture(number)
        yield f"{number:09d}.json", json.dumps(about).encode()
        yield f"{number:09d}.txt", caption.format(number).encode()


def build(*patterns, folder, longest=1000, val_pairs=0, workers=1):
    return index_pairs([str(pattern) for pattern in patterns], folder, longest, val_pairs, workers)


def set_aside(folder):
    entries = map(json.loads, (folder / "set_aside.jsonl").read_text().splitlines())
    return {(Path(entry["shard"]).name, entry["member"]): entry["reason"] for entry in entries}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of 30 pairs each with their index; 3 pairs are held out."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(2):
        write_tar(root / f"{number:05d}.tar", members(range(30 * number, 30 * number + 30)))
    assert main(["--pairs", str(root / "*.tar"), "--val_pairs=3", "--workers=1"]) == 0
    return root


def test_rows_are_where_tarfile_finds_the_members(shards):
    rows = {split: np.load(shards / "pairs" / f"{split}.npy") for split in ("train", "val")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 57, "val": 3}
    keys = sorted(int(row["image_key"]) for found in rows.values() for row in found)
    assert rows["val"]["image_key"].max() == keys[2]
    expected = []
    for shard in range(2):
        with tarfile.open(shards / f"{shard:05d}.tar") as archive:
            found = {member.name: member for member in archive}
            for number in range(30 * shard, 30 * shard + 30):
                image, text = found[f"{number:09d}.jpg"], found[f"{number:09d}.txt"]
                hashes = key_of_bytes(picture(number)), key_of_caption(f"a  picture of NUMBER {number}.")
                place = image.offset_data, text.offset_data, *hashes, shard, image.size, text.size, DIRECT
                expected.append(place)
    held_out = [row for row in expected if row[2] in rows["val"]["image_key"]]
    np.testing.assert_array_equal(rows["val"], np.array(held_out, ROW))
    np.testing.assert_array_equal(rows["train"], np.array([row for row in expected if row not in held_out], ROW))


def test_a_source_gives_images_captions_and_ids(shards):
    source = IndexedPairs(str(shards / "pairs"))
    assert (source.name, source.split, source.num_pairs) == ("pairs", "train", 57)
    pairs = np.array([40, 3, 3, 56, 0])
    images, texts = source.encoded(pairs), source.texts(pairs)
    numbers = [int(caption.split()[-1][:-1]) for caption, _ in texts]
    assert [picture(number) for number in numbers] == images
    assert numbers[1] == numbers[2] and len({*numbers}) == 4
    assert [phrases for _, phrases in texts] == [()] * 5
    assert JointSource({"": source}).ids(pairs).tolist() == [0, 1, 1, 2, 3]
    assert source.texts(np.array([5, 3]))[1] == texts[1]  # of another batch, in part
    assert source.intact(pairs).all() and source.stand_in(3, np.random.default_rng(0)) == 3


def test_a_batch_is_read_once(shards, monkeypatch):
    source, read = IndexedPairs(str(shards / "pairs")), []
    original = store.Files.read
    monkeypatch.setattr(store.Files, "read", lambda self, ranges: read.extend(ranges) or original(self, ranges))
    source.encoded(np.arange(8))
    assert len(read) == 8
    source.texts(np.arange(8))
    assert len(read) == 8


def test_validation_has_an_entry_for_each_image(tmp_path):
    """Pair 1 has the image of pair 0, pair 2 the caption of pair 1: one person with two images and three pairs."""
    first, second, third = picture(1), picture(2), picture(3)
    write_tar(tmp_path / "a.tar", [
        ("0.jpg", first), ("0.txt", b"red"), ("1.jpg", first), ("1.txt", b"green"), ("2.jpg", second),
        ("2.txt", b"Green "), ("3.jpg", third), ("3.txt", b"blue"), ("4.jpg", first), ("4.txt", b"red"),
    ])  # fmt: skip
    about = build(tmp_path / "a.tar", folder=tmp_path / "pairs")
    assert about["repeated_images"] == 2
    source = IndexedPairs(str(tmp_path / "pairs"))
    assert JointSource({"": source}).ids(np.array([3, 2, 0, 1])).tolist() == [0, 1, 1, 1]
    held = source.in_memory()
    assert held.captions == [("red", "green"), ("Green",), ("blue",)]
    assert held.persons[held.person_ids].tolist() == [0, 0, 1]
    assert [index.tolist() for index in held.pairs] == [[0, 0, 1, 2], [0, 1, 0, 0]]
    assert held.read([2, 0]) == [third, first]
    assert held.copies.tolist() == [1, 1, 1]


def test_an_image_is_never_in_both_splits(tmp_path):
    """Every picture comes twice, the second time with another caption, in another shard."""
    write_tar(tmp_path / "0.tar", members(range(60)))
    write_tar(tmp_path / "1.tar", members(range(60), "Again {}."))
    about = build(tmp_path / "*.tar", folder=tmp_path / "pairs", val_pairs=50)
    assert (about["train"], about["val"], about["repeated_images"]) == (114, 6, 60)
    train, val = (np.load(tmp_path / "pairs" / f"{split}.npy")["image_key"] for split in ("train", "val"))
    assert not {*train.tolist()} & {*val.tolist()}


@pytest.mark.parametrize(
    ("total", "asked", "expected"), [(19, 5, 0), (20, 5, 1), (21, 5, 1), (200, 5, 5), (200, 50, 10), (99, 0, 0)]
)
def test_at_most_a_twentieth_is_held_out(total, asked, expected):
    keys = np.random.default_rng(0).permutation(total).astype(np.uint64) * 7
    repeated, held_out = index._held_out(keys, asked)
    assert repeated == 0 and held_out.tolist() == [7 * i for i in range(expected)]


@pytest.mark.parametrize(
    ("counts", "asked", "repeated", "expected"),
    [
        ([11, 1, 2, *[1] * 97], 2, 11, [1]),  # image 0 is in eleven times as many rows as others, which have one
        ([5000, *[1] * 20_000], 3, 4999, [1, 2, 3]),  # in more rows than are looked at first
        ([1, 280, *[1] * 9_999], 3, 279, [0, 2, 3]),  # in the first 300 rows, which it fills up
        ([12] * 1000, 2000, 11_000, [*range(50)]),  # 5% of 12,000 rows are those of 50 images
        ([10] * 3, 2000, 27, [0]),  # one image at least
        ([30], 2000, 29, []),  # the only image is for training
    ],
)
def test_an_image_of_many_more_pairs_than_others_is_not_held_out(counts, asked, repeated, expected):
    keys = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    found, held_out = index._held_out(keys, asked)
    assert (found, held_out.tolist()) == (repeated, expected)


@pytest.mark.parametrize("name", ["my.csv", "train.npy", "lists/my.csv", "parts/0.tar", "parts/deep/a.npz"])
def test_a_folder_with_other_files_is_left_as_it_is(tmp_path, capsys, name):
    write_tar(tmp_path / "0.tar", members(range(3)))
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    assert main([f"--pairs={tmp_path}/0.tar", f"--out={tmp_path}/mine", "--workers=1"]) == 2
    first = file if name != "parts/deep/a.npz" else file.parent
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/mine has files of another kind, such as {first}: name an empty folder with --out\n"
    )
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [file]
    assert file.read_bytes() == b"mine"


def test_an_index_is_made_again_beside_hidden_files_and_without_its_parts(tmp_path):
    write_tar(tmp_path / "0.tar", members(range(3)))
    folder = tmp_path / "pairs"
    build(tmp_path / "0.tar", folder=folder)
    (folder / ".DS_Store").write_bytes(b"")
    for path in (folder / "parts").iterdir():
        path.unlink()
    (folder / "parts").rmdir()
    assert build(tmp_path / "0.tar", folder=folder)["train"] == 3 and (folder / ".DS_Store").exists()


@pytest.mark.parametrize(("name", "change"), [
    ("pairs.json", lambda about: about.pop("digests")), ("shards.json", lambda entries: entries[0].pop("size")),
    ("shards.json", lambda entries: entries.append(entries.pop()["path"])),
])  # fmt: skip
def test_an_index_whose_json_lacks_something_is_damaged(tmp_path, name, change):
    write_tar(tmp_path / "0.tar", members(range(3)))
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    content = json.loads((tmp_path / "pairs" / name).read_text())
    change(content)
    (tmp_path / "pairs" / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{name} is missing or damaged"):
        IndexedPairs(str(tmp_path / "pairs"))


def test_other_formats_are_given_as_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pictures = {
        "a.webp": picture(1, "WEBP", lossless=True), "b.png": picture(2, "PNG"), "c.jpeg": picture(3, exif=exif),
        "d.JPG": picture(4, mode="CMYK"), "e.gif": picture(5, "GIF"), "f.png": picture(6, "PNG", "L"),
    }  # fmt: skip
    captions = [(f"{name[0]}.txt", name.encode()) for name in pictures]
    write_tar(tmp_path / "0.tar", [*pictures.items(), *captions])
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    source = IndexedPairs(str(tmp_path / "pairs"))
    every = np.arange(source.num_pairs)
    assert [caption for caption, _ in source.texts(every)] == [*pictures]
    kept = source._rows[np.arange(source.num_pairs)]["flags"] & DIRECT
    assert kept[[1, 5]].all() and not kept[[0, 2, 4]].any()
    for encoded, content, turned in zip(source.encoded(every), pictures.values(), "001000", strict=True):
        expected = Image.open(io.BytesIO(content)).convert("RGB")
        expected = expected.transpose(Image.Transpose.ROTATE_270) if turned == "1" else expected
        np.testing.assert_array_equal(augment.decode(encoded).numpy(), np.asarray(expected))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_extended_headers(tmp_path, format):
    name = "folder/" * 12 + "n" * (90 if format == tarfile.USTAR_FORMAT else 150)
    options = (
        {"format": format, "pax_headers": {"comment": "ü" * 600}}
        if format == tarfile.PAX_FORMAT
        else {"format": format}
    )
    write_tar(tmp_path / "0.tar", [(f"{name}.jpg", picture(1)), (f"{name}.txt", b"One.")], **options)
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    source = IndexedPairs(str(tmp_path / "pairs"))
    assert source.encoded(np.array([0])) == [picture(1)] and source.texts(np.array([0])) == [("One.", ())]


def test_what_is_no_pair_is_listed_with_its_reason(tmp_path, capsys):
    link = tarfile.TarInfo("l.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    cut = picture(8)[:-200]
    write_tar(tmp_path / "0.tar", [
        ("a.jpg", picture(1)), ("a.txt", b"Fine."), ("b.jpg", b"no image"), ("b.txt", b"Text."),
        ("c.jpg", picture(2)), ("d.jpg", picture(3)), ("d.txt", b" ?! "), ("e.jpg", picture(4)), ("e.txt", b"x" * 41),
        ("f.json", b'{"caption": "Lost.", "status": "failed_to_download"}'), ("g.jpg", cut), ("g.txt", b"Cut."),
        ("h.jpg", b""), ("h.txt", b"Empty."), ("i.jpg", picture(5)), ("i.txt", b"\xff\xfe"),
        ("j.jpg", picture(6)), ("j.json", b"{"), ("k.jpg", picture(7)), ("k.png", picture(7, "PNG")), ("k.txt", b"K."),
        ("m.jpg", picture(9)), ("m.txt", b" \n"), ("n.cls", b"3"),
    ])  # fmt: skip
    with tarfile.open(tmp_path / "0.tar", "a") as archive:
        archive.addfile(link)
    assert main(["--pairs", str(tmp_path / "0.tar"), "--longest=40", "--workers=1"]) == 0
    assert set_aside(tmp_path / "pairs") == {("0.tar", member): reason for member, reason in {
        "b.jpg": "in no supported image format", "c.jpg": "no caption", "d.jpg": "empty caption",
        "e.jpg": "caption of over 40 characters", "f.json": "no image", "g.jpg": "cut short or damaged",
        "h.jpg": "an empty file", "i.jpg": "caption is not UTF-8", "j.jpg": "caption is not valid JSON",
        "k.png": "a second image", "l.jpg": "a link, a device or a sparse file", "m.jpg": "no caption",
    }.items()}  # fmt: skip
    printed = capsys.readouterr().out
    assert "2 pairs to train, 0 to validate, in 1 shard\n" in printed and "set aside: 2 x no caption\n" in printed
    source = IndexedPairs(str(tmp_path / "pairs"))
    assert [caption for caption, _ in source.texts(np.arange(2))] == ["Fine.", "K."]


def test_a_caption_of_json_alone_is_taken(tmp_path):
    about = json.dumps({"caption": " From JSON. ", "url": "x"}).encode()
    write_tar(tmp_path / "0.tar", [("a.json", about), ("a.jpg", picture(1)), ("b.jpg", picture(2)), ("b.json", b"[]")])
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    source = IndexedPairs(str(tmp_path / "pairs"))
    assert source._rows[np.arange(source.num_pairs)]["flags"].tolist() == [DIRECT | JSON]
    assert source.texts(np.array([0])) == [("From JSON.", ())] and source.encoded(np.array([0])) == [picture(1)]
    assert set_aside(tmp_path / "pairs") == {("0.tar", "b.jpg"): "no caption"}


def test_an_image_far_from_its_caption_is_set_aside(tmp_path):
    far = [
        ("a.jpg", picture(1)),
        ("b.jpg", picture(2)),
        ("b.txt", b"Near."),
        ("big.bin", bytes(2 << 20)),
        ("a.txt", b"Far."),
    ]
    write_tar(tmp_path / "0.tar", far)
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    assert set_aside(tmp_path / "pairs") == {("0.tar", "a.jpg"): "image and caption are over 1 MiB apart"}


@pytest.mark.parametrize(("lost", "pairs", "reason"), [
    (0, 5, "cut short or damaged after 15 members"),  # the blocks of zeros at the end are missing
    (700, 5, "cut short or damaged after 14 members"),  # a.txt is; a.json has the caption
    (2900, 4, "cut short or damaged after 13 members"),  # within the image
    (None, 0, "not a tar archive"),
])  # fmt: skip
def test_a_shard_that_is_cut_short_gives_its_whole_pairs(tmp_path, lost, pairs, reason):
    write_tar(tmp_path / "0.tar", members([7]))
    path = write_tar(tmp_path / "1.tar", members(range(5)), end=False)
    content = path.read_bytes()
    path.write_bytes(b"<html>Not found</html>" * 50 if lost is None else content[: len(content) - lost])
    about = build(tmp_path / "*.tar", folder=tmp_path / "pairs")
    assert about["train"] == 1 + pairs
    found = set_aside(tmp_path / "pairs")
    assert found.pop(("1.tar", "")) == reason
    assert found == ({("1.tar", "000000004.jpg"): "cut short or damaged"} if lost == 2900 else {})


@pytest.mark.parametrize(("header", "pairs", "aside"), [
    ({"size": "-1024"}, 1, {"": "cut short or damaged after 2 members"}),
    ({"size": "9" * 20}, 1, {"": "cut short or damaged after 3 members", "b.jpg": "over 200 MB"}),
    ({"GNU.sparse.size": "x"}, 1, {"": "cut short or damaged after 2 members"}),
    ({"GNU.sparse.map": "a,b"}, 1, {"": "cut short or damaged after 2 members"}),
    ({"path": ""}, 2, {"": "no name"}),
])  # fmt: skip
def test_a_damaged_header_ends_a_shard(tmp_path, header, pairs, aside):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(("a.jpg", "a.txt", "b.jpg", "c.jpg", "c.txt")):
            content = b"Text." if name.endswith(".txt") else picture(number)
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), header if name == "b.jpg" else {}
            archive.addfile(info, io.BytesIO(content))
    assert build(tmp_path / "0.tar", folder=tmp_path / "pairs")["train"] == pairs
    assert set_aside(tmp_path / "pairs") == {("0.tar", member): reason for member, reason in aside.items()}


def test_half_of_a_character_is_no_caption(tmp_path):
    about = json.dumps({"caption": "\ud83d car"}).encode()  # half of an emoji, as a tool that cuts texts leaves it
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(1)), ("a.json", about), *members([7])])
    assert build(tmp_path / "0.tar", folder=tmp_path / "pairs")["train"] == 1
    assert set_aside(tmp_path / "pairs") == {("0.tar", "a.jpg"): "caption is not UTF-8"}


def test_an_image_that_cannot_be_read_is_set_aside(tmp_path, monkeypatch):
    """Of a list: a URL that is refused or of an unknown scheme, a name that no file can have."""
    import fsspec

    def refuse(system, path, **options):
        raise PermissionError("403, Forbidden") if "refused" in path else FileNotFoundError(path)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", refuse)
    (tmp_path / "0.jpg").write_bytes(picture(0))
    places = ("memory://refused.jpg", "none://host/a.jpg", "a\0.jpg", "memory://missing.jpg", "0.jpg")
    lines = [json.dumps({"image": place, "caption": "Text."}) + "\n" for place in places]
    (tmp_path / "some.jsonl").write_text("".join(lines))
    assert build(tmp_path / "some.jsonl", folder=tmp_path / "pairs")["train"] == 1
    assert [*set_aside(tmp_path / "pairs").values()] == [*["cannot be read"] * 3, "missing"]


def test_lists_name_images_beside_them(tmp_path):
    (tmp_path / "imgs").mkdir()
    for number in range(4):
        (tmp_path / "imgs" / f"{number}.jpg").write_bytes(picture(number))
    (tmp_path / "outside.jpg").write_bytes(picture(9))
    folder = tmp_path / "lists"
    folder.mkdir()
    (tmp_path / "imgs").rename(folder / "imgs")
    with (folder / "some.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["image", "caption"], ["imgs/0.jpg", 'A "red",\nlong coat.'], ["imgs/7.jpg", "Missing."]])
        writer.writerows([["../outside.jpg", "Outside."], ["imgs/1.jpg", ""], ["", "Nothing."]])
    lines = [
        {"image": "imgs/2.jpg", "caption": ["One.", "Zwei ü."]},
        {"image": str(folder / "imgs/3.jpg"), "caption": "Three."},
    ]
    (folder / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["--pairs", str(folder / "some.csv"), str(folder / "*.jsonl"), "--workers=1"]) == 0
    assert set_aside(folder / "pairs") == {("some.csv", member): reason for member, reason in {
        "line 4: imgs/7.jpg": "missing", "line 5: ../outside.jpg": "outside of the list's folder",
        "line 6: imgs/1.jpg": "no caption", "line 7: ": "no image",
    }.items()}  # fmt: skip
    source = IndexedPairs(str(folder / "pairs"))
    every = np.arange(4)
    assert source.encoded(every) == [picture(number) for number in (0, 2, 2, 3)]
    captions = [caption for caption, _ in source.texts(every)]
    assert captions == ['A "red",\nlong coat.', "One.", "Zwei ü.", "Three."]
    assert JointSource({"": source}).ids(every).tolist() == [0, 1, 1, 2]
    assert (source._rows[np.arange(source.num_pairs)]["flags"] == DIRECT | JSON | FILE).all()
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(DataError, match=r"lists/imgs/3\.jpg cannot be read any more \(No such file"):
        IndexedPairs(str(moved / "pairs")).encoded(every)  # an absolute path stays
    assert IndexedPairs(str(moved / "pairs")).encoded(every[:3])[0] == picture(0)
    (moved / "imgs/0.jpg").write_bytes(picture(0) + b" ")
    with pytest.raises(DataError, match=r"imgs/0\.jpg is not as it was when it was indexed"):
        IndexedPairs(str(moved / "pairs")).encoded(every[:1])
    build(moved / "some.csv", folder=moved / "pairs")  # notices the changed image
    assert IndexedPairs(str(moved / "pairs")).encoded(every[:1]) == [picture(0) + b" "]


def test_long_lists_are_cut_into_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("input_pipeline.pairs.tasks.BLOCK", 2)
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    path = tmp_path / "a.csv"
    path.write_text("path;caption\n" + "".join(f"{number}.jpg;Nr {number}\n" for number in range(5)))
    assert build(path, folder=tmp_path / "pairs")["shards"] == 3
    source = IndexedPairs(str(tmp_path / "pairs"))
    assert source.encoded(np.arange(5)) == [picture(number) for number in range(5)]
    path.write_text("path;caption\n0.jpg;Nr 0\n")
    assert build(path, folder=tmp_path / "pairs")["shards"] == 1
    assert len([*(tmp_path / "pairs/lists").iterdir()]) == len([*(tmp_path / "pairs/parts").iterdir()]) == 1


def test_an_interrupted_indexing_goes_on_where_it_was(tmp_path, monkeypatch):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", members([number]))
    folder, original, made = tmp_path / "pairs", parts.make_part, []

    def killed_at_the_third(folder, longest, task, state):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(task.path)
        return original(folder, longest, task, state)

    monkeypatch.setattr(index, "make_part", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "*.tar", folder=folder)
    with pytest.raises(DataError, match="no complete index of pairs"):
        IndexedPairs(str(folder))
    kept = sorted((folder / "parts").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:50])  # as after a power cut
    made.clear()
    monkeypatch.setattr(index, "make_part", lambda *arguments: made.append(arguments[2].path) or original(*arguments))
    build(tmp_path / "*.tar", folder=folder)
    assert len(made) == 2 and str(tmp_path / "2.tar") in made
    whole = (folder / "train.npy").read_bytes()
    made.clear()
    build(tmp_path / "*.tar", folder=folder)
    assert made == [] and (folder / "train.npy").read_bytes() == whole
    build(tmp_path / "*.tar", folder=folder, longest=100)
    assert len(made) == 3


@pytest.mark.faults  # each process imports TensorFlow
def test_processes_make_the_same_index(shards, tmp_path):
    build(shards / "*.tar", folder=tmp_path / "pairs", val_pairs=3, workers=2)
    for name in ("train.npy", "val.npy", "set_aside.jsonl"):
        assert (tmp_path / "pairs" / name).read_bytes() == (shards / "pairs" / name).read_bytes()


@pytest.fixture
def one(tmp_path):
    """A shard of three pairs and its index."""
    write_tar(tmp_path / "0.tar", members(range(3)))
    build(tmp_path / "0.tar", folder=tmp_path / "pairs")
    return tmp_path


def test_a_shard_of_another_size_or_time_is_noticed_at_the_start(one, capsys):
    path = one / "0.tar"
    path.touch()
    IndexedPairs(str(one / "pairs"))
    assert "1 shard written since the index was made" in capsys.readouterr().err
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(DataError, match=r"0\.tar has .* bytes, .* when it was indexed: make the index again"):
        IndexedPairs(str(one / "pairs"))
    path.unlink()
    with pytest.raises(DataError, match=r"0\.tar is missing: restore it, or make the index again"):
        IndexedPairs(str(one / "pairs"))


def test_a_shard_that_changes_during_training_is_an_error(one):
    source, path = IndexedPairs(str(one / "pairs")), one / "0.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1  # in the first image
    path.write_bytes(content)
    source.encoded(np.array([1, 2]))
    with pytest.raises(DataError, match=r"0\.tar is not as it was when it was indexed"):
        source.encoded(np.array([0]))
    content[600] ^= 1
    place = content.index(b"A picture of number 1.", content.index(b"000000001.txt"))
    path.write_bytes(content.replace(b"number 1.", b"number 7.")[: len(content)])
    assert source.encoded(np.array([1])) and place
    with pytest.raises(DataError, match="not as it was"):
        source.texts(np.array([1]))
    path.write_bytes(content[:1000])
    with pytest.raises(DataError, match="not as it was"):
        source.encoded(np.array([2]))


def test_rows_that_are_cut_short_are_an_error(one):
    path = one / "pairs/train.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train\.npy is missing or damaged: make the index again"):
        IndexedPairs(str(one / "pairs"))


@pytest.mark.parametrize("name", ["pairs.json", "shards.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_index_is_an_error(one, name, content):
    path = one / "pairs" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"(pairs is no complete|json is missing or damaged).*: make the index again"):
        IndexedPairs(str(one / "pairs"))


def test_damaged_rows_are_an_error(one):
    path = one / "pairs/train.npy"
    content = path.read_bytes()
    for place in (7, 15, 35):  # the last bytes of the place of the image, of the text, and of the number of the shard
        damaged = bytearray(content)
        damaged[len(content) - 3 * ROW.itemsize + place] = 255
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train\.npy is missing or damaged: make the index again"):
            IndexedPairs(str(one / "pairs")).encoded(np.arange(3))


def test_damaged_parts_are_made_again(one, monkeypatch):
    (part,) = (one / "pairs/parts").iterdir()
    np.savez(part, about=np.load(part)["about"])
    assert build(one / "0.tar", folder=one / "pairs")["train"] == 3


def test_what_a_killed_indexing_left_is_removed(one):
    end, folder = f"{'0' * 32}.partial", one / "pairs"
    left = [folder / f".train.npy.{end}", folder / f".pairs.json.{end}", folder / f"parts/.{'a' * 24}.npz.{end}"]
    foreign = folder / f".mine.{end}"
    for path in (*left, foreign):
        path.write_bytes(b"x")
    build(one / "0.tar", folder=folder)
    assert not any(path.exists() for path in left) and foreign.exists()


def test_a_shard_that_vanishes_while_it_is_indexed_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"0\.tar vanished while it was indexed: run the command again"):
        parts.make_part(tmp_path, 1000, parts.Task(str(tmp_path / "0.tar")), store.State(1, ""))


def test_a_shard_that_vanishes_is_an_error(one):
    source = IndexedPairs(str(one / "pairs"))
    (one / "0.tar").unlink()
    with pytest.raises(DataError, match=r"0\.tar cannot be read any more \(No such file or directory\)"):
        source.encoded(np.array([0]))


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--pairs=none/*.tar"], "error: --pairs=none/*.tar matches no file"),
    (["--pairs", "a.zip"], "a.zip is no .tar, .csv or .jsonl"),
    (["--pairs", "bad.csv"], "bad.csv: the first line has no column caption; it has image, title"),
    (["--pairs", "empty.tar"], "empty.tar: no pair in 1 shard (empty shards); --pairs expects images with captions"),
    (["--pairs=memory://none/*.tar"], "--out is missing"),
    (["--pairs=none://bucket/*.tar", "--out=x"], "none://bucket/*.tar needs another library"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    (tmp_path / "bad.csv").write_text("image,title\na.jpg,Text\n")
    write_tar(tmp_path / "empty.tar", [])
    assert main([*arguments, "--workers=1"]) == 2
    error = re.sub(r"^indexing: 1 shards in \S+ s\n", "", capsys.readouterr().err)
    assert expected in error and error.count("\n") == 1 and error.startswith("error: ")


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--pairs=a.tar", "--root=data"], "--pairs indexes pairs of any source: leave --dataset and --root out"),
    (["--dataset=cuhk"], "--dataset and --root are missing, or --pairs"),
    (["--pairs=a.tar", "--max_damaged=0.1"], "--max_damaged is for --dataset alone: leave it out"),
    (["--dataset=cuhk", "--root=data", "--val_pairs=5"], "--val_pairs is for --pairs alone: leave it out"),
])  # fmt: skip
def test_flags_of_the_other_kind_of_data_are_refused(capsys, arguments, expected):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.endswith(f"error: {expected}\n")


def test_a_library_of_a_bucket_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"gs://bucket/\*\.tar needs another library .*pip install -e '\.\[gcs\]'"):
        store.find("gs://bucket/*.tar")


def test_shards_and_index_in_a_bucket(shards, tmp_path, monkeypatch, capsys):
    """The same rows, from fsspec's file system in memory; the index is fetched once."""
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        bucket.put_file(str(path), f"/bucket/{path.name}")
    arguments = ["--pairs", "memory://bucket/*.tar", "--out=memory://bucket/pairs/", "--val_pairs=3", "--workers=1"]
    assert main(arguments) == 0
    for name in ("train.npy", "val.npy"):
        assert bucket.cat_file(f"/bucket/pairs/{name}") == (shards / "pairs" / name).read_bytes()
    source, local = IndexedPairs("memory://bucket/pairs"), IndexedPairs(str(shards / "pairs"))
    pairs = np.array([0, 30, 56])
    assert source.encoded(pairs) == local.encoded(pairs) and source.texts(pairs) == local.texts(pairs)
    assert main(arguments) == 0  # nothing is indexed anew
    assert "indexing" not in capsys.readouterr().err.rpartition("SHA256SUMS")[0].rpartition("SHA256SUMS")[2]
    bucket.rm_file("/bucket/00001.tar")
    with pytest.raises(DataError, match=r"memory:///bucket/00001\.tar cannot be read any more"):
        source.encoded(pairs)
    with pytest.raises(DataError, match=r"memory:///bucket/00001\.tar is missing"):
        IndexedPairs("memory://bucket/pairs")


def test_a_table_is_no_index(tmp_path):
    with pytest.raises(DataError, match=r"my.csv is a table, .* python -m input_pipeline.prepare --pairs .*my.csv, or"):
        IndexedPairs(str(tmp_path / "my.csv"))
