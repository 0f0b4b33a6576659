"""launch/Dockerfile and its lock files: pins, hashes, what it copies, and the linter's opinion."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "launch/locks"
PLATFORMS = "cpu", "cuda", "tpu"
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.0"}


def pins(name):
    """The packages of a lock file and their versions. Fails if a line is neither a pin nor a hash of the pin before."""
    found = {}
    text = re.sub(r"^#.*\n", "", (LOCKS / name).read_text(), flags=re.MULTILINE).replace("\\\n", "")
    for line in text.splitlines():
        package, version, hashes = re.fullmatch(
            r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line
        ).groups()
        assert hashes and package not in found
        found[package] = version
    return found


def requirements():
    lines = (re.sub(r"\s*#.*", "", line) for line in (ROOT / "requirements.txt").read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return [one for one in wanted if not one.marker or one.marker.evaluate(PYTHON)]


def instructions():
    """The Dockerfile's instructions, each a list of words."""
    text = re.sub(r"^#.*\n", "", (ROOT / "launch/Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line]


def copied(platform):
    """The sources that the Dockerfile copies for a platform."""
    lines = [words[1:] for words in instructions() if words[0] == "COPY"]
    return [word.replace("${PLATFORM}", platform) for words in lines for word in words[:-1] if word[:2] != "--"]


def ignored(path):
    """Whether .dockerignore keeps a path out: the last pattern that matches it or a folder above it decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and line[0] != "#":
            parts = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
            if re.fullmatch(f"{parts}(?:/.*)?", path):
                out = line[0] != "!"
    return out


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_locked_versions_are_those_of_the_requirements(platform):
    locked = pins(f"{platform}.txt")
    for one in requirements():
        version = locked[one.name.lower().replace("_", "-")]
        assert one.specifier.contains(version), f"{one} but {version} in {platform}.txt: run make lock"


def test_the_lock_files_differ_in_the_accelerator_alone():
    cpu, cuda, tpu = (pins(f"{platform}.txt") for platform in PLATFORMS)
    assert cuda.items() >= cpu.items() and tpu.items() >= cpu.items()
    assert set(tpu) - set(cpu) == {"libtpu"}
    assert all(re.match("jax-cuda13-|nvidia-", name) for name in set(cuda) - set(cpu))
    assert cuda["jax-cuda13-plugin"] == cuda["jax-cuda13-pjrt"] == cuda["jaxlib"] == cuda["jax"]
    assert pins("build.txt").items() <= cpu.items()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_the_image_copies_exists_and_is_not_ignored(platform):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    for source in copied(platform):
        files = [path for path in tracked if path == source or path.startswith(f"{source}/")]
        assert files and not [path for path in files if ignored(path)], source


def test_data_runs_and_secrets_stay_outside():
    for path in (
        "data/CUHK-PEDES/imgs/a.jpg", "runs/cuhk/config.json", ".git/config", ".env", ".venv/bin/python", "key.json",
        "ivt_jax/__pycache__/main.cpython-312.pyc", "ivt_jax/run/__pycache__/a.pyc", "ivt_jax/.env", "launch/.netrc",
    ):  # fmt: skip
        assert ignored(path), path
    assert not ignored("ivt_jax/main.py") and not ignored("launch/locks/cpu.txt")


def test_the_image_needs_no_root_and_runs_ivt():
    lines = instructions()
    assert lines[-4:] == [
        ["VOLUME", '["/home/ivt",', '"/tmp"]'],
        ["USER", "1000:1000"],
        ["ENTRYPOINT", '["python",', '"-m",', '"ivt_jax"]'],
        ["CMD", '["--help"]'],
    ]
    environment = dict(word.split("=", 1) for words in lines if words[0] == "ENV" for word in words[1:])
    assert (environment["HOME"], environment["PYTHONPATH"]) == ("/home/ivt", "/ivt_jax")
    for words in lines:  # every installation is by hash
        assert " ".join(words).count("pip install") == " ".join(words).count("--require-hashes")


def test_the_linter_has_no_complaint():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("hadolint is not installed")
    checked = subprocess.run([hadolint, "launch/Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")
