"""The command `ivt`: one verb for each program of the project."""

import importlib.util
import itertools
import runpy
import sys
from pathlib import Path

# Verb: the module that runs, flags in front of the user's, one line of help.
VERBS: dict[str, tuple[str, list[str], str]] = {
    "train": ("ivt_jax.main", ["--mode=train"], "train, or resume, the run of a config, and test it"),
    "evaluate": ("ivt_jax.main", ["--mode=evaluate"], "score a run's checkpoints, also on other datasets"),
    "export": ("ivt_jax.main", ["--mode=export"], "write a run's best model to a folder, in several formats"),
    "convert": ("ivt_jax.convert", [], "turn weights of other programs into a folder to start from"),
    "index": ("ivt_jax.index", [], "make or update an index of pictures"),
    "search": ("ivt_jax.search", [], "search an index, or a folder, by sentences and pictures"),
    "serve": ("ivt_jax.serve", [], "open a page and an API that search an index"),
    "embed": ("ivt_jax.embed", [], "embed a gallery of any size, in shards"),
    "doctor": ("input_pipeline.doctor", [], "check a dataset before you train on it"),
    "prepare": ("input_pipeline.prepare", [], "prepare a dataset ahead of the first training; index image-text pairs"),
    "report": ("ivt_jax.report", [], "write the report of a run, one HTML file"),
    "bench": ("ivt_jax.bench", [], "measure training, encoders, ranking and search on this machine"),
}
HELP = "\n".join(
    ["usage: ivt VERB [FLAGS]      (ivt VERB --help lists the flags)", ""]
    + [f"  {verb:<9} {about}" for verb, (_, _, about) in VERBS.items()]
    + [
        "",
        "Each verb is also a module: `ivt search` is `python -m ivt_jax.search`. But train, evaluate and export are",
        "`python -m ivt_jax.main --mode=VERB`; `python -m input_pipeline.doctor` is doctor, and prepare likewise.",
    ]
)


def installed_config(argument: str, previous: str = "") -> str:
    """Returns an argument with the path of the installed config if it names configs/NAME.py, missing in this folder.

    argument: --config=configs/NAME.py, or configs/NAME.py if the previous one is --config.
    """
    flag = "" if previous == "--config" else "--config="
    name = argument.removeprefix(flag)
    if not argument.startswith(flag) or not name.startswith("configs/") or Path(name.partition(":")[0]).exists():
        return argument
    package = importlib.util.find_spec("configs")
    return f"{flag}{Path(package.origin).parents[1] / name}" if package and package.origin else argument


def main() -> int:
    """Runs the program of the verb. Returns 2 without one; otherwise the program's exit code ends the process."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in ("--help", "-h", "help"):
        print(HELP)
        return 0
    if verb not in VERBS:
        print(f"error: no verb {verb!r}; ivt --help lists them" if verb else HELP, file=sys.stderr)
        return 2
    module, flags, _ = VERBS[verb]
    sys.argv = [f"ivt {verb}", *flags, *(installed_config(b, a) for a, b in itertools.pairwise(sys.argv[1:]))]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
