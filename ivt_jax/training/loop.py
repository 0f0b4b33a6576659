"""The run: set up, train, select on validation, test once, report."""

import collections
import concurrent.futures
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from input_pipeline import opening, pipeline
from input_pipeline.annotations import read_annotations
from input_pipeline.datasets import datasets_of, folder_of, shared_warning
from input_pipeline.joint import JointSource
from input_pipeline.own import splits_table
from input_pipeline.tokenizer import Tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, refuse_path, write_text
from ivt_jax.evaluation.run import evaluate
from ivt_jax.pages.report import reported_split, write_report
from ivt_jax.run import preemption
from ivt_jax.run.checkpoint import Checkpoints, holds_params_alone
from ivt_jax.run.digests import set_damaged_aside
from ivt_jax.run.watchdog import Watchdog
from ivt_jax.run.workdir import (
    folder_tokenizer,
    hold_workdir,
    load_config,
    make_workdir,
    record_config,
    recorded_images_digests,
    refuse_other_config,
    refuse_other_data,
)
from ivt_jax.training.config_check import check_config, edge_notice, persons_notice, scale_notice
from ivt_jax.training.freezing import rate_notes
from ivt_jax.training.init_from import NOTHING, Initial, initial_params
from ivt_jax.training.metrics import Progress, ScalarLog, format_seconds, parameter_table
from ivt_jax.training.optimizer import make_schedules
from ivt_jax.training.program import Program, batch_shapes, build_program
from ivt_jax.training.sharding import global_batch, paths_of, sharding_table
from ivt_jax.training.train_step import TrainState
from ivt_jax.training.validation import format_scores, is_due, make_validation, refuse_empty_selection


class Run(NamedTuple):
    """A config with its data, its order of batches and its program."""

    config: ConfigDict
    workdir: Path
    source: JointSource
    tokenizer: Tokenizer
    plans: pipeline.Plans
    epoch_starts: np.ndarray  # the step at which each epoch starts
    total_steps: int
    program: Program
    progress: Progress


def train_and_evaluate(config: ConfigDict, workdir: Path) -> None:
    """Trains or resumes the run of `workdir`, evaluates its best checkpoint, writes report.html.

    A complete run that was tested is left unchanged. A preempted run saves its step and exits with 75.
    """
    run = set_up(config, workdir)
    # Read before the workdir is created, so that an error leaves none. A run with checkpoints does not need it.
    initial = NOTHING if (workdir / "checkpoints").exists() else initial_params(config)
    checkpoints = open_checkpoints(run)
    start = checkpoints.latest_step() or 0
    refuse_other_length(run, start)
    reported = start == run.total_steps and (workdir / "report.html").exists()
    if reported and reported_split(workdir)[1].get("last", {}).get("step") == start:
        run.progress.say(f"complete: {start} steps, tested; report: {workdir / 'report.html'}")
        return
    if not start and initial is NOTHING:  # stopped before its first checkpoint
        initial = initial_params(config)
    announce(run, start, initial.summary)
    train(run, checkpoints, start, initial)
    preemption.over()
    test_and_report(run)


def set_up(config: ConfigDict, workdir: Path) -> Run:
    """Checks the config against the devices and the workdir, opens the data, builds the program. Does not write."""
    check_config(config, jax.device_count(), resumed=(workdir / "config.json").exists())
    refuse_path(workdir, UNWRITABLE)
    if holds_params_alone(workdir):
        raise UserError(
            f"{workdir} holds parameters, not a run; to train from them, set --config.train.init_from to it"
        )
    refuse_other_config(workdir, config)
    source = JointSource(opening.open_parts(config, "train", recorded_images_digests(workdir)))
    refuse_other_data(workdir, source.annotations)
    refuse_empty_selection(config, source)
    tokenizer = folder_tokenizer(workdir, config)
    plans = pipeline.plan_epochs(config, source)
    epoch_starts = plans.epoch_starts(config.train.epochs + 1 - config.train.first_epoch)
    total_steps = config.train.steps or int(epoch_starts[-1])
    persons = source.num_persons if config.id.weight else 0
    refuse_unattended_padding(config, tokenizer)
    program = build_program(config, epoch_starts, total_steps, _mask_id(config, tokenizer), persons)
    progress = Progress(total_steps, config.data.batch_size)
    return Run(config, workdir, source, tokenizer, plans, epoch_starts, total_steps, program, progress)


def refuse_unattended_padding(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raises UserError if the model pools the last token of a text, but does not attend to the tokenizer's padding.

    Search and evaluation cut such padding off, so they would pool another token than training.
    """
    model = config.model
    if model.towers == 2 and model.text.pooling == "last" and not tokenizer.attends_to_padding:
        raise UserError(
            "model.text.pooling last needs a tokenizer whose padding is attended to, such as SigLIP's; "
            f'that of "{config.text.tokenizer}" is not: set --config.model.text.pooling=end'
        )


def _mask_id(config: ConfigDict, tokenizer: Tokenizer) -> int:
    """Returns the id of the mask token, -1 if the tokenizer has none. Raises UserError if words are reconstructed."""
    if tokenizer.mask_id is not None:
        return tokenizer.mask_id
    if config.bmm.word_weight:
        raise UserError(
            f'the tokenizer "{config.text.tokenizer}" has no mask token, which hides words to reconstruct: '
            "set --config.bmm.word_weight=0"
        )
    return -1


def open_checkpoints(run: Run) -> Checkpoints:
    """Creates and locks the workdir, moves damaged checkpoints away, opens the others."""
    make_workdir(run.workdir)
    if jax.process_index() == 0:
        hold_workdir(run.workdir.resolve())
    set_damaged_aside(run.workdir, run.config.runtime.on_damage, run.progress.say)
    return Checkpoints(run.workdir, run.config.train.select_on)


def announce(run: Run, start: int, initial: str) -> None:
    """Logs where training starts and what to know about its figures. initial: the line about `train.init_from`."""
    first = f"{'resuming at' if start else 'training from'} step {start} of {run.total_steps}: {run.workdir}"
    warning = "warning: train.select_on is test: the best checkpoint's test figures will be too good"
    names = [dataset.name for dataset in datasets_of(run.config.data)]
    shared = shared_warning(names, names)
    notes = (notice(run.config) for notice in (edge_notice, scale_notice, persons_notice))
    for line in (
        first,
        *notes,
        shared and f"warning: {shared}",
        run.config.train.select_on == "test" and warning,
        initial,
    ):
        if line:
            run.progress.say(line)


def train(run: Run, checkpoints: Checkpoints, start: int, initial: Initial) -> None:
    """Trains from step `start` to the last one, saving and validating. initial: of step 0.

    Metrics are read one step late, so that the device never waits for the host.
    """
    config, program, progress = run.config, run.program, run.progress
    first, run_step = jax.process_index() == 0, None
    if start < run.total_steps:  # in a thread, while this one creates the state and the first batch
        compiling = concurrent.futures.ThreadPoolExecutor(1).submit(compile_step, program, config, progress)
    hyperparameters = program.hyperparameters()  # copied to the devices once: no step waits for a transfer
    state = checkpoints.restore(start, program.target) if start else start_state(program, initial.params)
    if first:
        record(run, initial.origin)
    log = ScalarLog(run.workdir, start, enabled=first)
    validate = make_validation(run)
    host = jax.process_index(), jax.process_count()
    batches = pipeline.train_batches(config, run.source, run.tokenizer, run.plans, start, host)
    pending: collections.deque[tuple[int, Any]] = collections.deque()
    # `batches` must be closed before Python ends, or TensorFlow's threads could not be stopped.
    with contextlib.closing(batches), Watchdog(config.runtime.watchdog) as watchdog:
        timed = progress.timed(batches, lambda: bool(pending) and not pending[-1][1]["loss"].is_ready())
        for step, batch in zip(range(start + 1, run.total_steps + 1), timed, strict=False):
            batch = global_batch(program.mesh, batch)
            if not run_step:
                run_step = compiling.result()
                progress.start(step - 1)
            state, metrics = run_step(state, batch, hyperparameters)
            watchdog.feed()
            pending.append((step, metrics))
            validates = is_due(step, every=config.train.eval_every, starts=run.epoch_starts, last=run.total_steps)
            preempted = preemption.reached(step)
            saves = validates or preempted or step % config.runtime.checkpoint_every == 0
            while len(pending) > (0 if saves else 1):  # all are logged before a checkpoint is saved
                report_step(*pending.popleft(), config, log, progress)
            if saves:
                with watchdog.resting():
                    scores = validate(state) if validates else {}
                if scores:
                    log.write(step, scores)
                    progress.say(f"step {step}: {format_scores(scores)}")
                checkpoints.save(step, state, scores or None)
                progress.resume(step)
            if preempted:
                checkpoints.close()
                progress.say(f"preempted: step {step} is saved; the same command resumes")
                sys.exit(preemption.EXIT_CODE)
        checkpoints.close()


def test_and_report(run: Run) -> None:
    """Evaluates the best checkpoint on test, or without a test split on val, and writes report.html."""
    first = jax.process_index() == 0
    if first:
        (run.workdir / "report.html").unlink(missing_ok=True)  # one of fewer steps has other test figures
    summaries = evaluate(run.workdir, run.config, first, run.source.images_digests)
    if not summaries:
        run.progress.say("not evaluated: the data have no split for it; the report has the curves alone")
    last = [*summaries][-1] if summaries else ""  # test, or val without any test split
    for split, summary in summaries.items():
        if split.partition("-")[0] == last:
            scores = "  ".join(f"t2i/{name} {value:.1f}" for name, value in summary["t2i"].items())
            run.progress.say(f"{split}, step {summary['step']}: {scores}")
    if first:
        run.progress.say(f"report: {write_report(run.workdir)}")


def refuse_other_length(run: Run, taken: int) -> None:
    """Raises UserError if a run at step `taken` cannot continue with the config's `train.steps`.

    It can if the schedules give the steps already taken the same rates under the old and the new `train.steps`.
    """
    if not taken or not (run.workdir / "config.json").exists():
        return
    before, now = load_config(run.workdir).train.steps, run.config.train.steps
    if before == now:  # comparing rates would delay every resumed run
        return
    if run.total_steps < taken:
        raise UserError(
            f"{run.workdir} is at step {taken} already, train.steps is {run.total_steps}: set {taken} or more"
        )
    lengths = before or int(run.epoch_starts[-1]), run.total_steps
    old, new = (make_schedules(run.config, run.epoch_starts, length) for length in lengths)
    steps = np.arange(taken)
    if any(not np.array_equal(old[group](steps), new[group](steps)) for group in old):
        raise UserError(
            f"{run.workdir} belongs to another config: train.steps was {before}, is {now}. With optimizer.schedule "
            f"{run.config.optimizer.schedule} this changes the learning rates of the {taken} steps already taken. "
            "Choose another --workdir"
        )


def record(run: Run, origin: Mapping[str, Any]) -> None:
    """Writes config.json, parameters.txt, sharding.txt and, for each table of own data, splits.csv or splits-LABEL.csv.

    origin: of the initial parameters, {} in a resumed run.
    """
    source = run.source
    record_config(run.workdir, run.config, source.annotations, run.tokenizer, source.images_digests, origin)
    for dataset in datasets_of(run.config.data):
        if dataset.name == "own":
            records = opening.divided_records(read_annotations(source.annotations[dataset.label], "own"), run.config)
            write_text(run.workdir / f"{folder_of('splits', dataset.label)}.csv", splits_table(records))
    params = run.program.target.params
    table = parameter_table(params, rate_notes(paths_of(params), run.config))
    write_text(run.workdir / "parameters.txt", f"{table}\n")
    write_text(run.workdir / "sharding.txt", sharding_table(run.program.mesh.shape, run.program.target) + "\n")


def start_state(program: Program, params: Mapping[str, np.ndarray]) -> TrainState:
    """Returns the state of step 0: parameters from `params`, by path, and random ones for all other paths."""
    state = program.init()
    if not params:
        return state
    flat = flatten_dict(state.params, sep="/")
    for path, value in params.items():
        flat[path] = jax.make_array_from_callback(value.shape, flat[path].sharding, value.__getitem__)
    placed = unflatten_dict(flat, sep="/")
    return state.replace(params=placed, ema=jax.tree.map(jnp.copy, placed) if state.ema else {})


def compile_step(program: Program, config: ConfigDict, progress: Progress) -> Callable:
    """Returns the compiled step, which JAX takes from its compilation cache if it is there."""
    progress.say("compiling the training step, or loading it from the compilation cache")
    began = time.perf_counter()
    shapes = program.target, batch_shapes(config, program.mesh), program.hyperparameter_shapes
    compiled = program.step.lower(*shapes).compile()
    progress.say(f"training step ready in {format_seconds(time.perf_counter() - began)}")
    return compiled


def report_step(step: int, metrics: Any, config: ConfigDict, log: ScalarLog, progress: Progress) -> None:
    """Logs a step's metrics every `runtime.log_every` steps. Raises UserError after too many non-finite steps."""
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = int(scalars.pop("bad_steps"))
    if bad >= config.train.max_bad_steps:
        names = ", ".join(name for name, value in scalars.items() if not np.isfinite(value))
        raise UserError(
            f"step {step}: not finite: {names}; {bad} such steps in a row (train.max_bad_steps), their updates were "
            "withheld. In another --workdir, lower the learning rate or use model.dtype float32"
        )
    if step % config.runtime.log_every == 0:
        speed = progress.measure(step)
        log.write(step, {**scalars, **speed})
        scalars.pop("learning_rate")
        progress.show(step, scalars, speed["pairs_per_second"], speed["input_wait"])
