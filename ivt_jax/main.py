"""The command line: flags, distributed start, and which mode runs.

python -m ivt_jax.main --config=configs/cuhk.py --workdir=runs/cuhk --config.data.root=DATA/CUHK-PEDES
"""

import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ivt_jax.common.compilation_cache import keep_compiled
from ivt_jax.common.config_flag import faults_in_one_line
from ivt_jax.common.errors import DISK, UserError
from ivt_jax.common.files import printable
from ivt_jax.common.startup import platform_fault, set_environment
from ivt_jax.run import preemption, watchdog

CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with a variant: configs/cuhk.py:release")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; runs/NAME of the config by default")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "export"],
    "train: train or resume, then report test once; evaluate: score the checkpoints on val and test, or on --datasets; "
    "export: write the best checkpoint as a folder that can be taken elsewhere",
)  # fmt: skip
DATASETS = flags.DEFINE_list(
    "datasets", [], "with --mode=evaluate: test on these instead, DATASET:DIR,... such as icfg:data/ICFG-PEDES"
)  # fmt: skip
RUNS = flags.DEFINE_list("runs", [], "with --datasets: workdirs of further runs to test beside this one")
FORMATS = flags.DEFINE_list(
    "formats", ["orbax", "safetensors"], "with --mode=export: orbax, safetensors, stablehlo, saved_model, onnx"
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print config, parameters, FLOPs and memory; touch no data")
DEVICES = flags.DEFINE_integer("devices", 1, "with --dry_run: as if on so many devices", lower_bound=1)
PLAN = flags.DEFINE_bool(
    "plan", False, "with --dry_run: memory and FLOPs of ViT-B and L, batch 64 to 16,384, 1 to 256 devices, by formula; "
    "then what XLA says of the config as given, compiled for this machine",
)  # fmt: skip
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no platform tells it")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "number of processes, with --coordinator", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "number of this process, from 0, with --coordinator", lower_bound=0
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "several processes, whose addresses the platform tells")


def main(argv: list[str]) -> None:
    """Runs the mode that the flags name; `argv` holds what is left beside them, which must be the program alone."""
    if len(argv) > 1:
        raise UserError(f"unexpected arguments: {' '.join(argv[1:])}")
    check_flags()
    config = CONFIG.value
    workdir = Path(WORKDIR.value or default_workdir(config_flags.get_config_filename(flags.FLAGS["config"])))
    set_environment(config)
    keep_compiled()
    from ivt_jax.training.config_check import check_keys  # imports JAX, which reads the environment set above

    check_keys(config)
    if DRY_RUN.value:
        from ivt_jax.cost import dry_run

        for text in dry_run.dry_run_plan(config) if PLAN.value else [dry_run.dry_run(config, DEVICES.value)]:
            print(text, flush=True)
        return
    start_distributed(config)
    if MODE.value == "train":
        from ivt_jax.training import loop

        loop.train_and_evaluate(config, workdir)
        return
    from ivt_jax.run.workdir import config_of_run

    config = config_of_run(workdir, config, config_flags.get_override_values(flags.FLAGS["config"]))
    if MODE.value == "export":
        from ivt_jax.export.run import export

        print(export(workdir, FORMATS.value))
    else:
        evaluate(workdir, config)


def evaluate(workdir: Path, config: Any) -> None:
    """Scores the run on its own dataset, or it and the other --runs on --datasets; prints it and renews the report.

    With several processes all score, for all read the checkpoint; the first alone writes and prints.
    """
    import jax

    from ivt_jax.evaluation import cross_domain, run
    from ivt_jax.pages.report import write_report
    from ivt_jax.run.workdir import write_json

    first = jax.process_index() == 0
    if DATASETS.value:
        datasets = cross_domain.parse_datasets(DATASETS.value)
        cells = cross_domain.cross_domain([workdir, *map(Path, RUNS.value)], datasets, config)
        table, files = cross_domain.matrix(cells), [workdir / "cross_domain.json"]
        if first:
            write_json(workdir / "cross_domain.json", cells)
    else:
        summaries = run.evaluate(workdir, config, write=first)
        table, files = run.score_table(summaries), [workdir / split / "summary.json" for split in summaries]
    if first:
        print(table)
        print(f"all figures: {' '.join(map(str, files))}")
        print(f"report: {write_report(workdir)}", file=sys.stderr)


def check_flags() -> None:
    """Raises UserError where a flag would do nothing."""
    if DATASETS.value and MODE.value != "evaluate":
        raise UserError("--datasets goes with --mode=evaluate: training reads config.data alone")
    if RUNS.value and not DATASETS.value:
        raise UserError("--runs goes with --datasets: name what the runs are to be tested on")
    if (PLAN.value or DEVICES.present) and not DRY_RUN.value:
        raise UserError("--plan and --devices go with --dry_run: a run takes the devices that it finds")
    if PLAN.value and DEVICES.present:
        raise UserError("--devices goes with --dry_run alone: --plan has its own numbers of devices")
    if FORMATS.present and MODE.value != "export":
        raise UserError("--formats goes with --mode=export: nothing else writes them")


def default_workdir(config_file: str) -> str:
    """configs/cuhk.py -> runs/cuhk, configs/cuhk.py:release -> runs/cuhk-release."""
    path, _, variant = config_file.partition(":")
    return f"runs/{Path(path).stem}" + (f"-{variant}" if variant else "")


def start_distributed(config: Any) -> None:
    """Joins the other processes, before JAX touches a device."""
    together = [COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value]
    if None in together and together != [None] * 3:
        raise UserError("--coordinator, --num_processes and --process_id go together: set all three, or none")
    number, count = PROCESS_ID.value, NUM_PROCESSES.value
    if number is not None and count is not None and number >= count:
        raise UserError(f"--process_id={number} is not below --num_processes={count}: processes are numbered from 0")
    if COORDINATOR.value or DISTRIBUTED.value:
        import jax

        watchdog.answer_abort()
        jax.distributed.initialize(COORDINATOR.value, count, number, heartbeat_timeout_seconds=config.runtime.heartbeat)
        preemption.share()


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser and the config's own checks; what they refuse becomes a UserError."""
    try:
        with faults_in_one_line():
            rest = flags.FLAGS(argv)
            CONFIG.value.to_dict()  # a config that cannot be loaded says so only when it is read
    except SystemExit:  # absl has printed the help that was asked for, and would exit with 1
        sys.exit(0)
    return rest


def run() -> None:
    """Runs `main`. Exit codes: 0 complete; 1 an unexpected error; 2 a user's mistake, or a disk that is full or cannot
    be written, in one line; 75 preempted; 76 another process is gone, or the run hangs.
    """
    preemption.listen()
    flags.mark_flag_as_required("config")
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is as it should be
    try:
        app.run(main, flags_parser=parse_flags)
    except Exception as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """Says what went wrong and exits, without waiting for threads of a save or for processes that wait for this one.

    A user's mistake alone lets a checkpoint under way end, where there is one process and the disk takes it.
    """
    error = platform_fault(error) or error
    together = flags.FLAGS.is_parsed() and (COORDINATOR.value or DISTRIBUTED.value)
    disk = next((line for line in str(error).splitlines() if any(reason in line for reason in DISK)), None)
    if isinstance(error, UserError) or disk:
        print(f"error: {printable(disk or error)}", file=sys.stderr)
    elif together and watchdog.is_lost_process(error):
        watchdog.lost_process(error)
    else:
        traceback.print_exception(error)
    code = 2 if isinstance(error, UserError) or disk else 1
    if isinstance(error, UserError) and not (together or disk):
        sys.exit(code)
    watchdog.leave(code)


if __name__ == "__main__":
    run()
