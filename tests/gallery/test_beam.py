"""The same shards by Apache Beam's local runner; runs where Beam is installed (pip install -e '.[beam]')."""

import sys

import pytest

from ivt_jax import embed
from tests.gallery.conftest import call, contents, write_tar


def test_without_beam_the_command_says_what_to_install(workdir, gallery, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "ivt_jax.gallery.beam", raising=False)
    assert call(workdir, gallery, tmp_path / "out", "--beam") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --beam: Apache Beam is not installed: pip install -e '.[beam]'")
    assert error.count("\n") == 1


def test_the_pipeline_writes_what_the_command_writes(workdir, gallery, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    call(workdir, gallery, tmp_path / "here")
    assert call(workdir, gallery, tmp_path / "beam", "--beam", "--runner=DirectRunner") == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/beam: 3 shards of 9 crops\n" in told and f"{gallery}/000.tar: 3 crops" in told
    assert contents(tmp_path / "here") == contents(tmp_path / "beam")
    assert call(workdir, gallery, tmp_path / "beam", "--beam", "--runner=DirectRunner") == 0
    assert "0 shards of 0 crops, 3 shards done before\n" in capsys.readouterr().out


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(workdir, gallery, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    (gallery / "001.tar").write_bytes(b"no archive")
    write_tar(gallery / "003.tar", {"bad.png": b"no picture"})
    assert call(workdir, gallery, tmp_path / "out", "--beam", "--runner=DirectRunner") == 2
    output = capsys.readouterr()
    assert "3 shards of 6 crops, 1 unreadable crop (listed in the shards)\n" in output.out
    assert "error: 1 shard not embedded, for the reasons above; the others are done\n" in output.err
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3


def test_a_flag_that_beam_does_not_know_is_refused(workdir, gallery, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        embed.main([f"--workdir={workdir}", f"--shards={gallery}/*.tar", f"--out={tmp_path}/out", "--runner=Direct"])
