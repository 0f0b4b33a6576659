"""docs/extending.md, followed on a copy of the code: new files are written, changes applied, the trials run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    for package in ("ivt_jax", "input_pipeline", "configs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("section", SECTIONS)
def test_the_addition_works_as_written(section, copy):
    blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    assert [kind for kind, path, _ in blocks if kind == "python" and not path] == ["python"]
    for kind, path, content in blocks:
        if kind == "diff":
            run = subprocess.run(["git", "apply", "-"], cwd=copy, input=content, capture_output=True, text=True)
        elif path:
            (copy / path).write_text(content, encoding="utf-8")
            continue
        else:
            environment = {**os.environ, "PYTHONPATH": str(copy)}
            command = [sys.executable, "-c", content]
            run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr
