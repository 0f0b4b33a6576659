import os
import shutil
import subprocess
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(tmp_path):
    """A copy of the launchers, with a PATH whose tools are stubs that record how they are called.

    bench.stub(tool, *lines): the tool records its arguments, then does what the lines of shell say, in tmp_path.
    bench.run(command, **environment): runs it where the copy is. bench.calls(): the recorded calls, each a list.
    """
    repository, tools = tmp_path / "repository", tmp_path / "tools"
    shutil.copytree(ROOT / "launch", repository / "launch")
    tools.mkdir()
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "POLL_SECONDS": "0.01"}

    def stub(tool, *lines):
        record = f"""cd {tmp_path}; printf '%s\\0' "${{0##*/}}" "$@" $'\\x1e' >>calls"""  # at once: others write, too
        (tools / tool).write_text("\n".join(["#!/usr/bin/env bash", record, *lines]) + "\n")
        (tools / tool).chmod(0o755)
        return str(tools / tool)

    def run(command, **more):
        return subprocess.run(
            command, cwd=repository, env={**environment, **more}, capture_output=True, text=True, timeout=120
        )

    def calls():
        """The calls since the last look."""
        recorded = tmp_path / "calls"
        text = recorded.read_text() if recorded.exists() else ""
        recorded.unlink(missing_ok=True)
        return [call.split("\0")[:-1] for call in text.split("\x1e\0")[:-1]]

    return types.SimpleNamespace(
        stub=stub, run=run, calls=calls, folder=tmp_path, repository=repository, environment=environment
    )
