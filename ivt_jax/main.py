"""Trains, evaluates and exports: flags, start of the processes, exit codes.

python -m ivt_jax.main --config=configs/cuhk.py --workdir=runs/cuhk --config.data.root=DATA/CUHK-PEDES
"""

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ivt_jax.common.command import MISTAKE
from ivt_jax.common.compilation_cache import keep_compiled
from ivt_jax.common.config_flag import faults_in_one_line
from ivt_jax.common.errors import DISK, UserError
from ivt_jax.common.files import printable
from ivt_jax.common.startup import platform_fault, set_environment
from ivt_jax.cost.topologies import Topology, read_topology
from ivt_jax.run import preemption, watchdog

CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with a variant: configs/cuhk.py:release")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/NAME, after the config's file")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "export"],
    "train: train or resume, then evaluate test once; evaluate: score the checkpoints on val and test, or on "
    "--datasets; export: write the best checkpoint as a portable folder",
)  # fmt: skip
DATASETS = flags.DEFINE_list(
    "datasets", [], "with --mode=evaluate: test on these instead, DATASET:DIR,... such as icfg:data/ICFG-PEDES"
)  # fmt: skip
RUNS = flags.DEFINE_list("runs", [], "with --datasets: workdirs of other runs to test too")
FORMATS = flags.DEFINE_list(
    "formats", ["orbax", "safetensors"], "with --mode=export: orbax, safetensors, stablehlo, saved_model, onnx"
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print config, parameters, FLOPs and memory; read no data")
DEVICES = flags.DEFINE_integer("devices", 1, "with --dry_run: number of devices to compute for", lower_bound=1)
PLAN = flags.DEFINE_bool(
    "plan", False, "with --dry_run: memory and FLOPs by formula of ViT-B and L, batch 64 to 16,384, 1 to 256 devices; "
    "then XLA's own figures of the config as given, compiled for this machine",
)  # fmt: skip
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "with --dry_run: compile for this accelerator, which need not be here, and print memory, FLOPs, "
    "collectives and the least time of a step: v5e:4x4, v5p:2x4x4, v6e:8x8, h100:8, h200:1; with --plan a table",
)  # fmt: skip
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if the platform does not know it")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "number of processes, with --coordinator", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "this process's number from 0, with --coordinator", lower_bound=0)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "run several processes, whose addresses the platform knows")


def main(argv: list[str]) -> None:
    """Runs the mode that the flags name. argv: the program; other arguments that are no flags are refused."""
    if len(argv) > 1:
        raise UserError(f"unexpected arguments: {' '.join(argv[1:])}")
    check_flags()
    config = CONFIG.value
    workdir = Path(WORKDIR.value or default_workdir(config_flags.get_config_filename(flags.FLAGS["config"])))
    topology = read_topology(TOPOLOGY.value) if TOPOLOGY.value is not None else None
    set_environment(config, topology.platform if topology else "")
    keep_compiled()
    from ivt_jax.training.config_check import check_keys  # imports JAX, which reads the environment set above

    check_keys(config)
    if DRY_RUN.value:
        for text in dry_run_texts(config, topology):
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


def dry_run_texts(config: Any, topology: Topology | None) -> Iterable[str]:
    """Returns the texts that --dry_run prints, one after the other."""
    from ivt_jax.cost import dry_run

    if topology:
        return (dry_run.dry_run_topology_plan if PLAN.value else dry_run.dry_run_topology)(config, topology)
    return dry_run.dry_run_plan(config) if PLAN.value else [dry_run.dry_run(config, DEVICES.value)]


def evaluate(workdir: Path, config: Any) -> None:
    """Scores the run on its own dataset, or it and --runs on --datasets; prints the scores and rewrites the report.

    Every process computes all scores; only the first writes and prints.
    """
    import jax

    from input_pipeline.datasets import parse_datasets
    from ivt_jax.evaluation import cross_domain, run
    from ivt_jax.pages.report import write_report
    from ivt_jax.run.workdir import write_json

    first = jax.process_index() == 0
    if DATASETS.value:
        datasets = parse_datasets(DATASETS.value, "--datasets")
        cells = cross_domain.cross_domain([workdir, *map(Path, RUNS.value)], datasets, config)
        table, files = cross_domain.matrix(cells), [workdir / "cross_domain.json"]
        if first:
            write_json(workdir / "cross_domain.json", cells)
    else:
        summaries = run.evaluate(workdir, config, write=first)
        table, files = run.score_table(summaries), [workdir / split / "summary.json" for split in summaries]
    if first:
        print(table)
        if files:
            print(f"all figures: {' '.join(map(str, files))}")
        print(f"report: {write_report(workdir)}", file=sys.stderr)


def check_flags() -> None:
    """Raises UserError for a flag that would have no effect."""
    if DATASETS.value and MODE.value != "evaluate":
        raise UserError("--datasets goes with --mode=evaluate: training reads only config.data")
    if RUNS.value and not DATASETS.value:
        raise UserError("--runs goes with --datasets: name the datasets to test the runs on")
    if (PLAN.value or DEVICES.present or TOPOLOGY.value is not None) and not DRY_RUN.value:
        raise UserError("--plan, --devices and --topology go with --dry_run: a run uses all devices of the machine")
    if TOPOLOGY.value is not None and DEVICES.present:
        raise UserError("--devices does not go with --topology: --topology has its own number of devices")
    if PLAN.value and DEVICES.present:
        raise UserError("--devices does not go with --plan: --plan has its own numbers of devices")
    if FORMATS.present and MODE.value != "export":
        raise UserError("--formats goes with --mode=export")


def default_workdir(config_file: str) -> str:
    """Returns runs/cuhk for configs/cuhk.py, runs/cuhk-release for configs/cuhk.py:release."""
    path, _, variant = config_file.partition(":")
    return f"runs/{Path(path).stem}" + (f"-{variant}" if variant else "")


def start_distributed(config: Any) -> None:
    """Joins the other processes, if the flags ask for several; to be called before JAX uses a device."""
    number, count = PROCESS_ID.value, NUM_PROCESSES.value
    if len({value is None for value in (COORDINATOR.value, number, count)}) == 2:
        raise UserError("--coordinator, --num_processes and --process_id go together: set all three, or none")
    if number is not None and count is not None and number >= count:
        raise UserError(f"--process_id={number} is not below --num_processes={count}: processes are numbered from 0")
    if COORDINATOR.value or DISTRIBUTED.value:
        import jax

        watchdog.answer_abort()
        jax.distributed.initialize(COORDINATOR.value, count, number, heartbeat_timeout_seconds=config.runtime.heartbeat)
        preemption.share()


def required() -> str:
    """Returns the error for a command without --config."""
    run = ": the config that the run was started with" if flags.FLAGS["mode"].value != "train" else ""
    return f"--config is required{run}, such as --config=configs/cuhk.py"


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags and loads the config; raises their errors as UserError."""
    try:
        with faults_in_one_line(argv):
            rest = flags.FLAGS(argv)
            if not flags.FLAGS["config"].present:
                raise UserError(required())
            CONFIG.value.to_dict()  # a config that cannot be loaded raises only when it is read
    except UserError as error:
        alone = "Unknown command line flag 'config." in str(error)  # --config.KEY=VALUE without --config
        raise UserError(required()) if alone else error from None
    except SystemExit:  # after --help, for which absl would exit with 1
        sys.exit(0)
    return rest


def run() -> None:
    """Runs `main`. Exit codes: 0 complete; 1 an unexpected error; 2 a mistake of the user or a disk that is full or
    cannot be written, in one line; 75 preempted; 76 another process is lost, or the run hangs.
    """
    preemption.listen()
    logging.set_verbosity(logging.ERROR)  # Orbax warns about things that are as they should be
    try:
        app.run(main, flags_parser=parse_flags)
    except Exception as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """Prints the error and exits without waiting for threads that save or for processes that wait for this one.

    Only after a UserError in a single process does a save in progress finish first.
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
    code = MISTAKE if isinstance(error, UserError) or disk else 1
    if isinstance(error, UserError) and not (together or disk):
        sys.exit(code)
    watchdog.leave(code)


if __name__ == "__main__":
    run()
