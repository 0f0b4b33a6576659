"""Pictures in tar archives: their lists, and what is left out."""

import io
import os
import tarfile

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.gallery import archives
from ivt_jax.gallery.archives import NO_FILE, find_slice, read_archive
from ivt_jax.gallery.crops import UnreachableError, is_unreachable, read_content
from tests.gallery.conftest import write_tar

OUT = "its name has .. or begins with /"


def write_members(path, members):
    """members: (TarInfo or name, bytes) in this order."""
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member = tarfile.TarInfo(member) if isinstance(member, str) else member
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def contents(archive):
    return {name: piece.read() for name, piece in archive.pictures.items()}


def test_pictures_are_listed_in_the_order_of_the_archive_and_captions_are_passed_over(tmp_path):
    write_tar(tmp_path / "x.tar", {"b.jpg": b"one", "b.txt": b"A text.", "./a//2.PNG": b"two", "@eaDir/t.jpg": b"3"})
    archive = read_archive(tmp_path / "x.tar")
    assert contents(archive) == {"b.jpg": b"one", "a/2.PNG": b"two"} and [*archive.pictures] == ["b.jpg", "a/2.PNG"]
    assert archive.passed == {("suffix", ".txt"): 1, ("folder", "@eaDir"): 1}
    assert not archive.unreadable and not archive.fault


def test_links_names_that_lead_out_and_names_twice_are_named_and_never_followed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    members = [
        ("a.jpg", b"first"), (link("l.jpg", f"{tmp_path}/secret.jpg"), b""),
        (link("h.jpg", "a.jpg", tarfile.LNKTYPE), b""), (link("p.jpg", "", tarfile.FIFOTYPE), b""),
        (f"{tmp_path}/secret.jpg", b"abs"), ("../secret.jpg", b"up"), ("b/../../c.jpg", b"up"), ("b/../c.jpg", b"up"),
        ("caf\udce9.jpg", b"latin"), ("./a.jpg", b"second"), ("../notes.txt", b"passed over"),
    ]  # fmt: skip
    with_folder = tarfile.TarInfo("b")
    with_folder.type = tarfile.DIRTYPE
    write_members(tmp_path / "x.tar", [(with_folder, b""), *members])
    archive = read_archive(tmp_path / "x.tar")
    assert contents(archive) == {"a.jpg": b"second"} and archive.passed == {("suffix", ".txt"): 1}
    assert archive.unreadable == [
        ("l.jpg", NO_FILE), ("h.jpg", NO_FILE), ("p.jpg", NO_FILE), (f"{tmp_path}/secret.jpg", OUT),
        ("../secret.jpg", OUT), ("b/../../c.jpg", OUT), ("b/../c.jpg", OUT),
        ("caf\udce9.jpg", "its name is not UTF-8, which an index cannot store"),
        ("a.jpg", "a later entry of the archive has the same name, and counts"),
    ]  # fmt: skip


def test_of_an_archive_that_is_cut_anywhere_the_whole_pictures_before_the_cut_are_listed(tmp_path):
    """Three pictures of 600 bytes: a header and two blocks each, so they end before 1536, 3072 and 4608."""
    pictures = {f"{number}.jpg": bytes([number]) * 600 for number in range(3)}
    write_tar(tmp_path / "x.tar", pictures)
    whole = (tmp_path / "x.tar").read_bytes()
    assert len(whole) == 10_240  # tar fills up to a record
    for cut in (*range(0, 5121, 128), 511, 513, 1111, 1112):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        archive = read_archive(tmp_path / "cut.tar")
        complete = sum(cut >= 1536 * number + 512 + 600 for number in range(3))
        assert contents(archive) == {f"{number}.jpg": pictures[f"{number}.jpg"] for number in range(complete)}, cut
        entries = "1 entry" if complete == 1 else f"{complete} entries"
        fault = f"cut short or damaged after {entries}" if cut >= 512 else "no tar archive"
        assert archive.fault == ("" if cut >= 5120 else fault), cut


@pytest.mark.parametrize("damage", [b"\xff" * 512, b"x" * 512])
def test_after_a_damaged_header_the_rest_is_not_taken_for_the_end(tmp_path, damage):
    write_tar(tmp_path / "x.tar", {f"{number}.jpg": bytes([number]) * 600 for number in range(3)})
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:1536] + damage + content[2048:])
    archive = read_archive(tmp_path / "x.tar")
    assert [*archive.pictures] == ["0.jpg"] and archive.fault == "cut short or damaged after 1 entry"


def test_a_picture_in_an_archive_is_read_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write_tar(tmp_path / "sub/x.TAR", {"a/b.jpg": b"one"})
    (tmp_path / "y.tar").mkdir()  # a folder of this name
    (tmp_path / "y.tar/c.jpg").write_bytes(b"plain")
    path = tmp_path / "sub/x.TAR/a/b.jpg"
    assert read_content("b", path) == b"one" and not is_unreachable(path)
    assert read_content("c", tmp_path / "y.tar/c.jpg") == b"plain" and find_slice(tmp_path / "y.tar/c.jpg") is None
    monkeypatch.setattr(archives, "read_archive", lambda archive: pytest.fail("it is listed again"))
    assert read_content("b", path) == b"one"
    with pytest.raises(UnreachableError, match=r"^b: No such file or directory$"):
        read_content("b", tmp_path / "sub/x.TAR/a/other.jpg")
    monkeypatch.undo()
    write_tar(tmp_path / "sub/x.TAR", {"z.jpg": b"zero", "a/b.jpg": b"two"})
    os.utime(tmp_path / "sub/x.TAR", ns=(0, 1))
    assert read_content("b", path) == b"two"


def test_an_archive_that_changes_after_it_is_listed_is_not_read(tmp_path):
    write_tar(tmp_path / "x.tar", {"a.jpg": b"one", "b.jpg": b""})
    archive = read_archive(tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"^b: an empty file$"):
        read_content("b", archive.pictures["b.jpg"])
    os.utime(tmp_path / "x.tar", ns=(0, 1))
    with pytest.raises(UnreachableError, match=r"^a: the archive has changed since it was listed: run the command"):
        read_content("a", archive.pictures["a.jpg"])
