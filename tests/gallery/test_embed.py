"""A gallery embedded shard by shard: whole or not at all, once, in any division of labour, as `search` embeds."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ivt_jax import embed, search
from ivt_jax.common.errors import DataError
from ivt_jax.encoding.embedding import embed_texts
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import load_image
from ivt_jax.export.run import export
from ivt_jax.gallery import shard as one_shard
from ivt_jax.gallery.crops import load_batches, read_crops
from ivt_jax.gallery.shard import embed_shard
from ivt_jax.gallery.vectors import read_gallery, read_vectors
from ivt_jax.run.workdir import folder_tokenizer
from tests.gallery.conftest import call, contents, picture, snapshot, write_tar

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def encoder(workdir):
    return Encoder(workdir)


@pytest.fixture(scope="session")
def expected(encoder):
    """The vectors of crops 0 to 8, each embedded by itself."""
    found = []
    for seed in range(9):
        pixels = load_image("crop", encoder.size, picture(seed))
        tokens = encoder.model.apply({"params": encoder.params}, pixels[None] / 127.5 - 1, method="encode_image")
        vector = np.asarray(tokens[0, 0], np.float64)
        found.append(vector / np.linalg.norm(vector))
    return np.stack(found)


def test_rows_names_and_order_are_those_of_the_archive(workdir, gallery, tmp_path, expected, capsys):
    out = tmp_path / "out"
    assert call(workdir, gallery, out) == 0
    assert capsys.readouterr().out == f"{out}: 3 shards of 9 crops\n"
    assert {path.name for path in out.iterdir()} == {"gallery.json", *(f"00{i}.tar.safetensors" for i in range(3))}
    for number, shard in enumerate(read_gallery(out)):
        seeds = [3 * number + 2, 3 * number, 3 * number + 1]
        assert shard.names == [f"crop_{seed}.png" for seed in seeds] and shard.unreadable == []
        assert shard.vectors.dtype == np.float32 and isinstance(shard.vectors, np.memmap)
        np.testing.assert_allclose(shard.vectors, expected[seeds], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(shard.vectors, axis=1), 1, atol=1e-6)
        digests = [hashlib.sha256(picture(seed)).digest() for seed in seeds]
        assert [row.tobytes() for row in shard.digests] == digests and shard.digests.shape == (3, 32)
        assert (shard.metadata["source"], shard.metadata["format"]) == (f"00{number}.tar", 2)
    assert np.abs(expected @ expected.T - np.eye(9)).max() < 0.999  # they are not all alike
    about = json.loads((out / "gallery.json").read_text())
    assert about["images"]["height"] == 14 and about["dtype"] == "float32" and about["dimension"] == 12


def test_every_device_takes_its_share_of_a_batch(encoder):
    pixels = np.stack([load_image("crop", encoder.size, picture(seed % 9)) for seed in range(11)])
    rows = encoder._encode(pixels)
    assert encoder.devices == len(rows.sharding.device_set) == 8
    assert {shard.data.shape[0] for shard in rows.addressable_shards} == {2}  # eleven and five of padding
    assert encoder.embed(iter([pixels])).shape == (11, 12)


def test_others_read_it_with_safetensors_alone(workdir, gallery, tmp_path):
    call(workdir, gallery, tmp_path / "out", "--dtype=float16")
    tensors = load_file(tmp_path / "out/000.tar.safetensors")
    assert json.loads(tensors["names"].tobytes()) == ["crop_2.png", "crop_0.png", "crop_1.png"]
    assert tensors["vectors"].dtype == np.float16 and tensors["vectors"].shape == (3, 12)
    np.testing.assert_array_equal(next(read_gallery(tmp_path / "out")).vectors, tensors["vectors"])


def test_rows_are_those_of_search(workdir, encoder, gallery, tmp_path):
    crops = tmp_path / "crops"
    crops.mkdir()
    for seed in range(9):
        (crops / f"crop_{seed}.png").write_bytes(picture(seed))
    call(workdir, gallery, tmp_path / "out")
    rows = {
        name: row
        for shard in read_gallery(tmp_path / "out")
        for name, row in zip(shard.names, shard.vectors, strict=True)
    }
    ids = folder_tokenizer(workdir, encoder.config).encode(["a red coat"], 24)
    query = embed_texts(encoder.model, encoder.params, ids, ids > 0, 1)[0]
    with search.index_folder(crops, workdir) as (searcher, problems):
        found = searcher.search("a red coat", top=20).results
    assert len(found) == 9 and not problems
    for result in found:
        assert result.score == pytest.approx(rows[result.path] @ query, abs=1e-6)


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_a_folder_and_a_list_give_the_same_rows_as_the_archive(workdir, tmp_path, expected, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["b/1.png", "a.PNG", "z.jpeg"]
    for seed, name in enumerate(names):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    (tmp_path / "crops/notes.txt").write_text("no picture")
    if kind == "list":
        listed = [f"crops/{name}" for name in names]
        (tmp_path / "crops.txt").write_text("\r\n".join(["", *listed]) + "\n")
        assert call(workdir, tmp_path, tmp_path / "out", pattern="crops.txt") == 0
        order = [0, 1, 2]
    else:
        assert call(workdir, tmp_path, tmp_path / "out", pattern="crops") == 0
        order, listed = [1, 0, 2], [names[1], names[0], names[2]]
    (shard,) = read_gallery(tmp_path / "out")
    assert shard.names == listed
    np.testing.assert_allclose(shard.vectors, expected[order], atol=1e-6)


def test_names_in_a_list_may_hold_other_line_breaks(tmp_path):
    names = ["a\u2028b.png", "c\x85d.png", "e\rf.png", "\u3000", " g.png "]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join([*names, "  ", ""]).encode())
    assert read_crops(tmp_path / "list.txt").names == names


@pytest.mark.parametrize(("encoding", "mark"), [("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")])
def test_a_list_in_utf_16_is_read_by_its_byte_order_mark(tmp_path, encoding, mark):
    listed, names = tmp_path / "list.txt", ["a.png", "grün 🧢.png"]
    listed.write_bytes(mark + "\r\n".join([*names, ""]).encode(encoding))
    assert read_crops(listed).names == names
    listed.write_bytes(listed.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"list.txt is neither UTF-8 nor UTF-16 text: save the list as UTF-8$"):
        read_crops(listed)


def test_what_is_done_is_skipped_and_what_changed_is_done_again(workdir, gallery, tmp_path, capsys):
    out = tmp_path / "out"
    call(workdir, gallery, out)
    before = snapshot(out)
    capsys.readouterr()
    assert call(workdir, gallery, out) == 0
    assert snapshot(out) == before
    assert capsys.readouterr().out == f"{out}: 0 shards of 0 crops, 3 shards done before\n"
    write_tar(gallery / "001.tar", {"new.png": picture(50)})
    (out / "002.tar.safetensors").write_bytes(before["002.tar.safetensors"][0][:-1])  # damaged
    assert call(workdir, gallery, out) == 0
    after = snapshot(out)
    assert {name for name in before if before[name] != after[name]} == {"001.tar.safetensors", "002.tar.safetensors"}
    assert after["002.tar.safetensors"][0] == before["002.tar.safetensors"][0]  # the same bits
    assert read_vectors(out / "001.tar.safetensors").names == ["new.png"]


def test_a_changed_file_of_a_folder_or_a_list_is_seen(encoder, tmp_path):
    crops = tmp_path / "crops"
    crops.mkdir()
    (crops / "a.png").write_bytes(picture(0))
    (tmp_path / "list.txt").write_text(f"{crops}/a.png\n{crops}/gone.png\n{crops}/nul\0.png\n")
    for shard, unreadable in ((crops, 0), (tmp_path / "list.txt", 2)):
        out = tmp_path / f"out_{shard.name}"
        assert embed_shard(encoder, shard, out)[1:3] == (1, unreadable)
        assert embed_shard(encoder, shard, out).before
    (crops / "a.png").write_bytes(picture(1))
    for shard in (crops, tmp_path / "list.txt"):
        assert not embed_shard(encoder, shard, tmp_path / f"out_{shard.name}").before


def test_tasks_share_the_work_without_rest(workdir, gallery, tmp_path):
    call(workdir, gallery, tmp_path / "whole")
    for task, names in (("0/2", {"000", "002"}), ("1/2", {"000", "001", "002"})):
        assert call(workdir, gallery, tmp_path / "out", f"--task={task}") == 0
        assert {path.name[:3] for path in (tmp_path / "out").glob("*.safetensors")} == names
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")
    assert call(workdir, gallery, tmp_path / "out", "--task=7/9") == 0  # more tasks than shards


def test_two_who_take_one_shard_do_no_harm(encoder, gallery, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: embed_shard(encoder, gallery / "000.tar", tmp_path / "out", "float32", 1), range(4)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gallery.json", "000.tar.safetensors"}
    assert next(read_gallery(tmp_path / "out")).names == ["crop_2.png", "crop_0.png", "crop_1.png"]


def test_another_model_is_refused_in_one_line(workdir, other_workdir, gallery, tmp_path, capsys):
    out = tmp_path / "out"
    call(workdir, gallery, out)
    before = snapshot(out)
    for folder, more, told in (
        (other_workdir, (), f"{out} holds vectors of model "),
        (workdir, ("--dtype=float16",), f"{out} holds vectors of dtype float32, not float16"),
    ):
        capsys.readouterr()
        assert call(folder, gallery, out, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {told}") and error.count("\n") == 1 and "another folder with --out" in error
    assert snapshot(out) == before
    call(other_workdir, gallery, tmp_path / "other")
    (out / "009.tar.safetensors").write_bytes((tmp_path / "other/000.tar.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"009.tar.safetensors is of model \w{12}, not \w{12}: remove it"):
        list(read_gallery(out))


def test_the_digest_is_the_models_wherever_it_lies(workdir, other_workdir, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ("params", "config.json"):
        os.symlink(workdir / path, copy / path)
    digests = {Encoder(folder).about["model"] for folder in (workdir, export(copy, ["safetensors"]))}
    assert len(digests) == 1 and Encoder(other_workdir).about["model"] not in digests


def test_an_unreadable_crop_is_named_and_its_neighbours_stay_in_line(encoder, tmp_path, expected, monkeypatch):
    monkeypatch.setattr("ivt_jax.gallery.crops.MAX_BYTES", 50_000)
    good = [picture(seed) for seed in range(3)]
    write_tar(tmp_path / "a.tar", {
        "0.png": good[0], "cut.png": good[1][:60], "1.png": good[1], "empty.jpg": b"", "big.png": b"x" * 50_001,
        "text.png": b"hello", "2.png": good[2],
    })  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert embed_shard(encoder, tmp_path / "a.tar", tmp_path / "out")[1:3] == (3, 5)
    (shard,) = read_gallery(tmp_path / "out")
    assert shard.names == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(shard.vectors, expected[:3], atol=1e-6)
    reasons = dict(shard.unreadable)
    assert set(reasons) == {"cut.png", "empty.jpg", "big.png", "text.png", "link.png"}
    assert reasons["empty.jpg"] == "an empty file"
    assert reasons["text.png"] == "not a readable image" and "too many" in reasons["big.png"]


def test_a_shard_without_a_readable_crop_is_an_empty_one(encoder, tmp_path):
    for files in ({}, {"a.png": b"no picture"}):
        write_tar(tmp_path / f"{len(files)}.tar", files)
        embed_shard(encoder, tmp_path / f"{len(files)}.tar", tmp_path / "out")
    for shard in read_gallery(tmp_path / "out"):
        assert shard.vectors.shape == (0, 12) and shard.names == []


@pytest.fixture
def crops(tmp_path):
    """A folder of three crops."""
    (tmp_path / "crops").mkdir()
    for seed in range(3):
        (tmp_path / f"crops/{seed}.png").write_bytes(picture(seed))
    return tmp_path / "crops"


@contextlib.contextmanager
def dropped(folder):
    """Puts an empty folder in its place, as a mount point without its share."""
    away = folder.rename(folder.with_name("away"))
    folder.mkdir()
    yield away
    shutil.rmtree(folder)
    away.rename(folder)


def test_a_folder_out_of_reach_keeps_its_vectors(encoder, crops, tmp_path):
    """When its crops are back, nothing is embedded again."""
    out = tmp_path / "out"
    embed_shard(encoder, crops, out)
    before = snapshot(out)
    told = (
        f"{crops}: no crop can be read; {out}/crops.safetensors stays as it is: remove it if these crops were deleted$"
    )
    with dropped(crops), pytest.raises(DataError, match=told):
        embed_shard(encoder, crops, out)
    assert snapshot(out) == before and embed_shard(encoder, crops, out).before
    (crops / "0.png").write_bytes(b"damaged")
    assert embed_shard(encoder, crops, out)[1:3] == (2, 1)


def test_a_list_of_crops_out_of_reach_keeps_its_vectors(encoder, crops, tmp_path):
    """When its crops are back, nothing is embedded again."""
    shard, out = tmp_path / "list.txt", tmp_path / "out"
    shard.write_text("".join(f"{crops}/{seed}.png\n" for seed in range(3)))
    embed_shard(encoder, shard, out)
    before = snapshot(out)
    told = f"{shard}: 3 embedded crops cannot be reached, the first is {crops}/0.png; {out}/list.txt.safetensors stays"
    with dropped(crops) as away:
        with pytest.raises(DataError, match=told):
            embed_shard(encoder, shard, out)
        shutil.copy(away / "0.png", crops)
        with pytest.raises(DataError, match="2 embedded crops cannot be reached"):
            embed_shard(encoder, shard, out)
    assert snapshot(out) == before and embed_shard(encoder, shard, out).before
    (crops / "0.png").write_bytes(b"damaged")
    (out / "list.txt.safetensors").unlink()  # as the line says
    assert embed_shard(encoder, shard, out)[1:3] == (2, 1)


def test_vectors_stay_where_a_folder_of_their_shard_is_missing_or_empty(encoder, tmp_path):
    """Such as the mount point of a dropped share. Crops that were moved or deleted one by one are not waited for."""
    crops, away, out = tmp_path / "crops", tmp_path / "away", tmp_path / "out"
    for seed in range(6):
        path = crops / f"camera {seed % 2}/day/{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))

    def names():
        embed_shard(encoder, crops, out)
        return read_vectors(out / "crops.safetensors").names

    assert len(names()) == 6
    before = snapshot(out)
    (crops / "camera 1").rename(away)
    told = f"{crops}: 3 embedded crops cannot be reached, the first is camera 1/day/1.png; {out}/crops.safetensors st"
    for _ in ("missing", "empty"):
        with pytest.raises(DataError, match=told):
            embed_shard(encoder, crops, out)
        assert snapshot(out) == before
        (crops / "camera 1").mkdir(exist_ok=True)
    (crops / "camera 1").rmdir()
    away.rename(crops / "camera 2")
    (crops / "camera 2/day/1.png").rename(crops / "1.png")
    (crops / "camera 0/day/0.png").unlink()
    rest = [f"camera 0/day/{seed}.png" for seed in (2, 4)] + [f"camera 2/day/{seed}.png" for seed in (3, 5)]
    assert names() == ["1.png", *rest]


def test_crops_that_are_passed_over_now_are_not_waited_for(encoder, crops, tmp_path, monkeypatch):
    """An older ivt_jax embedded what is in hidden folders and @eaDir/."""
    for place in ("@eaDir", ".hidden/deep"):
        (crops / place).mkdir(parents=True)
        (crops / place / "small.png").write_bytes(picture(9))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("ivt_jax.gallery.walk.is_passed_folder", lambda name: False)
        assert embed_shard(encoder, crops, out).crops == 5
    done = embed_shard(encoder, crops, out)
    assert done.crops == 3 and done.line.endswith("; passed over: 1 in .hidden/, 1 in @eaDir/")
    assert read_vectors(out / "crops.safetensors").names == ["0.png", "1.png", "2.png"]


def test_a_shard_whose_crops_vanish_while_it_is_read_is_not_taken_for_done(encoder, crops, tmp_path, monkeypatch):
    out, read = tmp_path / "out", one_shard.read_crops

    def drop(folder):
        found = read(folder)
        crops.rename(tmp_path / "away")
        return found

    told = "list.txt changed while it was read: run the command again when its crops can be reached"
    (tmp_path / "list.txt").write_text("".join(f"{crops}/{seed}.png\n" for seed in range(3)))
    for listed, message in ((crops, r"crops cannot be read \(No such file"), (tmp_path / "list.txt", told)):
        with monkeypatch.context() as patch:
            patch.setattr(one_shard, "read_crops", drop)
            with pytest.raises(DataError, match=message):
                embed_shard(encoder, listed, out)
        (tmp_path / "away").rename(crops)
        assert embed_shard(encoder, listed, out)[1:3] == (3, 0)


def test_a_folder_with_a_folder_that_cannot_be_listed_is_refused(encoder, tmp_path, monkeypatch):
    (tmp_path / "crops/closed").mkdir(parents=True)
    (tmp_path / "crops/a.png").write_bytes(picture(0))
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"crops cannot be read \(Permission denied\)"):
        embed_shard(encoder, tmp_path / "crops", tmp_path / "out")


# In the header of the second member, in its data, after it (no end of the archive), and garbage in place of a header.
@pytest.mark.parametrize("cut", [1500, 2100, 3072, None, 0])
def test_an_archive_that_is_cut_short_is_refused_whole_and_the_others_are_done(workdir, gallery, tmp_path, capsys, cut):
    content = bytearray((gallery / "001.tar").read_bytes())
    if cut is None:
        content[2048:2560] = b"\xff" * 512
    (gallery / "001.tar").write_bytes(content[:cut] if cut is not None else content)
    assert call(workdir, gallery, tmp_path / "out") == 2
    assert {path.name[:3] for path in (tmp_path / "out").glob("*.safetensors")} == {"000", "002"}
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "001.tar" in errors[0] and "create it again" in errors[0]
    assert errors[1] == "error: 1 shard not embedded, for the reasons above; the others are done"


def test_a_gallery_of_which_no_crop_can_be_read_is_a_mistake(workdir, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("elsewhere/a.png\nelsewhere/b.png\n")
    assert embed.main([f"--workdir={workdir}", f"--out={tmp_path}/out", f"--shards={tmp_path}/list.txt"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: no crop can be read, for the reasons listed in the shards; the paths of a .txt list are relative to "
        "the working directory"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards=GALLERY/*.zip"], "matches nothing"),
        (["--shards=GALLERY/*.png"], "is no .tar, no .txt list of paths and no folder"),
        (["--shards=GALLERY/**/000.tar"], "would write the same file"),
        (["--shards=GALLERY/*.tar", "--out=GALLERY/x.png/out"], "x.png/out cannot be made: Not a directory"),
        (["--shards=GALLERY/*.tar", "--workdir=nowhere"], "nowhere is not the workdir of a run"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(workdir, gallery, tmp_path, capsys, arguments, message):
    (gallery / "x.png").write_bytes(picture(0))
    (gallery / "sub").mkdir()
    write_tar(gallery / "sub/000.tar", {})
    arguments = [argument.replace("GALLERY", str(gallery)) for argument in arguments]
    assert embed.main([f"--workdir={workdir}", f"--out={tmp_path}/out", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--task=2/2"], ["--task=1"], ["--batch=0"], ["more.tar"]])
def test_flags_that_make_no_sense_are_refused(workdir, gallery, tmp_path, arguments):
    with pytest.raises(SystemExit, match="2"):
        call(workdir, gallery, tmp_path / "out", *arguments)


def test_a_full_disk_is_one_line_and_leaves_nothing_half(workdir, gallery, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    call(workdir, gallery, tmp_path / "out", "--task=0/3")
    capsys.readouterr()
    monkeypatch.setattr("os.fsync", full)
    assert call(workdir, gallery, tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {tmp_path}/out/001.tar.safetensors cannot be written: No space left on device"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gallery.json", "000.tar.safetensors"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ivt_jax import embed\n"
        "try: embed.main(['--help'])\n"
        "finally: print([m for m in ('jax', 'flax', 'tensorflow', 'orbax') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.startswith("usage: python -m ivt_jax.embed") and output.endswith("[]\n")


def test_a_killed_task_leaves_no_half_shard_and_goes_on(workdir, gallery, tmp_path):
    """kill -9 while the second shard is under way; the command is then given again."""
    out = tmp_path / "out"
    code = (
        "import sys, time\n"
        "from ivt_jax import embed\n"
        "from ivt_jax.common import startup\n"
        "from ivt_jax.gallery import shard\n"
        "write, done, startup.FLAGS = shard.write_vectors, [], ()\n"  # to the bit as this process, which has no flags
        "def slow(*given):\n"
        "    if done: time.sleep(60)\n"
        "    done.append(write(*given))\n"
        "shard.write_vectors = slow\n"
        "embed.main(sys.argv[1:])"
    )
    flags = [f"--workdir={workdir}", f"--shards={gallery}/*.tar", f"--out={out}", "--batch=1"]
    with subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (out / "000.tar.safetensors").exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert {path.name for path in out.iterdir()} == {"gallery.json", "000.tar.safetensors"}
    assert embed.main(flags) == 0
    call(workdir, gallery, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_decoding_stays_a_little_ahead_and_no_more(encoder, tmp_path):
    """A shard of any size needs the memory of a few batches."""
    (tmp_path / "crop.png").write_bytes(picture(0))
    taken = []

    def contents():
        for number in range(100):
            taken.append(number)
            yield str(number), tmp_path / "crop.png"

    batches = load_batches(contents(), encoder.size, 4, [], [])
    assert next(batches).shape == (4, *encoder.size, 3)
    assert len(taken) <= 4 + 2 * 4 + 1
    batches.close()


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_what_a_shard_passes_over_is_counted(encoder, tmp_path, kind):
    files = {
        "a.png": picture(0), "b.jfif": picture(1, "JPEG"), "c.tif": picture(2, "TIFF"), "sub/d.png": picture(4),
        "a.json": b"{}", "b.json": b"{}", "film.mp4": b"x", "__MACOSX/._a.png": b"x", "sub/@eaDir/a.png": picture(3),
        "._a.png": b"x",
    }  # fmt: skip
    shard = tmp_path / ("crops" if kind == "folder" else "crops.tar")
    if kind == "archive":
        write_tar(shard, {f"./{name}": content for name, content in files.items()})
    else:
        for name, content in files.items():
            (shard / name).parent.mkdir(parents=True, exist_ok=True)
            (shard / name).write_bytes(content)
    done = embed_shard(encoder, shard, tmp_path / "out")
    told = "3 of no picture format (.json 2, .mp4 1), 1 in @eaDir/, 1 in __MACOSX/, 1 hidden"
    assert done[1:3] == (4, 0) and done.line.endswith(f"; passed over: {told}")
    (found,) = read_gallery(tmp_path / "out")
    assert found.metadata["passed_over"] == told
    assert {Path(name).as_posix() for name in found.names} == {"a.png", "b.jfif", "c.tif", "sub/d.png"}
