"""The documents: their links, lengths, commands, and the lines of Python on the first page."""

import importlib.util
import re
from pathlib import Path

import pytest

from ivt_jax.__main__ import VERBS
from ivt_jax.retrieval.indexing.build import Options, build
from ivt_jax.retrieval.indexing.sources import read_folder
from tests.gallery.conftest import picture, write_model

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_link_leads_somewhere(path):
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_command_exists(path):
    text = path.read_text()
    assert not set(re.findall(r"(?:^|`)ivt (\w+)", text, re.MULTILINE)) - {*VERBS, "VERB"}
    for module in re.findall(r"python -m ((?:ivt_jax|input_pipeline|tests)[\w.]*)", text):
        assert importlib.util.find_spec(module), module


def test_the_first_page_and_the_table_of_figures_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    assert len((ROOT / "BENCHMARKS.md").read_text().splitlines()) <= 120


def test_the_index_names_every_document():
    text = (ROOT / "docs/README.md").read_text()
    assert all(f"]({path.name})" in text for path in ROOT.glob("docs/*.md") if path.name != "README.md")


def test_the_lines_of_python_on_the_first_page_run(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(import ivt_jax\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "runs/demo")
    (tmp_path / "crops").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture(0, "JPEG"))
        (tmp_path / "crops" / name).write_bytes(picture(0, "JPEG"))
    build("INDEX", read_folder(Path("crops")), Options(Path("runs/demo")))
    exec(code, {})
    assert capsys.readouterr().out.count("jpg") == 2
