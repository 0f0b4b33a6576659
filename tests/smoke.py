"""Tries an installed wheel from an empty folder: the import, the command, an index of drawn pictures, a search.

    .venv-wheel/bin/python -I tests/smoke.py

Python's -I keeps the folders of this file and of the caller off the path. Exit code 1, with a traceback, on a failure.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("PYTHONPATH", None)
IVT = Path(sys.executable).with_name("ivt")
PERSONS = ("--persons=5", "--val_persons=1", "--test_persons=1")
VERBS = "train evaluate export convert index search serve embed doctor prepare report bench"


def run(*command: object) -> str:
    """Runs a command in the current folder and returns what it printed. Raises CalledProcessError if it fails."""
    return subprocess.run(list(map(str, command)), check=True, text=True, stdout=subprocess.PIPE).stdout


def write_model(folder: Path) -> None:
    """Writes a model of random parameters, of the demo's size, as `ivt_jax.convert` does."""
    import jax

    from configs import synth
    from input_pipeline.tokenizer import load_tokenizer
    from ivt_jax.models.build import build_model
    from ivt_jax.run.checkpoint import export_params
    from ivt_jax.run.workdir import write_record

    config = synth.get_config()
    model = build_model(config.model)
    export_params(folder / "params", jax.jit(model.init)(jax.random.key(0))["params"])
    write_record(folder, {"config": config.to_dict()}, load_tokenizer())


def main() -> None:
    """Tries everything in a folder that is removed at the end."""
    checkout = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="ivt_jax-smoke-") as folder:
        os.chdir(folder)
        import ivt_jax

        assert "jax" not in sys.modules and Path(ivt_jax.__file__).parents[1] != checkout, ivt_jax.__file__
        assert all(f"\n  {verb} " in run(IVT, "--help") for verb in VERBS.split())
        for verb in VERBS.split():
            run(IVT, verb, "--help")
        run(IVT, "train", "--config=configs/synth.py", "--dry_run")
        run(sys.executable, "-I", "-m", "input_pipeline.synthetic", "--out=data", *PERSONS, "--size=96x48")
        write_model(Path("model"))
        run(IVT, "index", "--workdir=model", "--images=data/imgs", "--index=index")
        assert run(IVT, "search", "--index=index", "--paths", "--top=3", "a woman in a red coat").count("\n") == 3
        files = sorted(Path("data/imgs").rglob("*.jpg"))
        model = ivt_jax.load("model")
        assert model.embed_images(files).shape == (len(files), 128)
        assert model.embed_texts(["a woman in a red coat", "a man"]).shape == (2, 128)
        answer = ivt_jax.open_index("index").search("a man in a black jacket")
        assert answer.searched == len(files) and len(answer.results) == 10
    print(f"the wheel works: {len(files)} pictures embedded, indexed and searched from another folder")


if __name__ == "__main__":
    main()
