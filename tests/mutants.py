"""Mutation testing: puts small faults into the core, one at a time, and counts those that the fast tests kill.

    make mutants                        # 300 mutants, two at a time; started again, it resumes
    make mutants MUTANTS=24 SEED=1      # fewer, and others
    .venv/bin/python tests/mutants.py --groups guard --again      # known survivors of one group again, after a new test

Cosmic Ray makes the mutants: an arithmetic operator or a comparison replaced, a number one more or less, a condition
negated, True for False, `and` for `or`, a loop without iterations, a decorator removed. It leaves out annotations,
joined text, messages (arguments of raise, print and warn), `strict=`, `if __name__ == "__main__"`, mutants that do not
compile, and the lines of tests/mutants.json without an "is", which affect speed, memory or looks and no result.
Each mutant is made in a copy of the tree, where the tests of its group in GROUPS run until one fails; a time-out counts
as killed. The other tests do not run on it, so the whole suite kills at least the share that is printed.

Exit code 1: fewer than 95% were killed, or a survivor has no reason in tests/mutants.json. Results: runs/mutants.
"""

import argparse
import ast
import contextlib
import fcntl
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cosmic_ray import plugins
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code, use_mutation
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult

ROOT = Path(__file__).parent.parent
STATE = ROOT / "runs" / "mutants"
REASONS = Path(__file__).with_suffix(".json")  # reasons of survivors, by file and changed line; lines to leave out
AT_ONCE = 2
WANTED = 95  # percent that the tests must kill

# The modules of each group and the tests that run on their mutants; those named after the module go first.
GROUPS = {
    "losses": (
        "ivt_jax/losses/*.py",
        "tests/losses/test_contrastive.py tests/losses/test_mla.py tests/losses/test_bmm.py "
        "tests/losses/test_matching.py tests/losses/test_identity.py tests/losses/test_itm.py "
        "tests/losses/test_heads.py",
    ),
    "objective": (
        "ivt_jax/training/objective.py",
        "tests/training/test_objective.py tests/training/test_gradient_cache.py tests/training/test_pretraining.py",
    ),
    "negatives": ("ivt_jax/training/negatives.py", "tests/training/test_pretraining.py"),
    "draws": ("ivt_jax/training/draws.py", "tests/training/test_objective.py"),
    "train_step": ("ivt_jax/training/train_step.py", "tests/training/test_train_step.py"),
    "optimizer": (
        "ivt_jax/training/optimizer.py",
        "tests/training/test_optimizer.py tests/training/test_train_step.py",
    ),
    "gradient_cache": (
        "ivt_jax/training/gradient_cache.py",
        "tests/training/test_gradient_cache.py tests/training/test_pretraining.py",
    ),
    "evaluation": ("ivt_jax/evaluation/*.py", "tests/evaluation/test_*.py"),
    "sampling": ("input_pipeline/sampling.py", "tests/input_pipeline/test_sampling.py"),
    "keyed_order": ("input_pipeline/keyed_order.py", "tests/input_pipeline/test_keyed_order.py"),
    "pairs": ("input_pipeline/pairs/*.py", "tests/input_pipeline/pairs/test_*.py"),
    "pipeline": ("input_pipeline/pipeline.py", "tests/input_pipeline/test_pipeline.py"),
    "text_levels": ("input_pipeline/text_levels.py", "tests/input_pipeline/test_text_levels.py"),
    "conversion": ("ivt_jax/conversion/*.py", "tests/conversion/test_*.py tests/training/test_init_from.py"),
    "retrieval": ("ivt_jax/retrieval/**/*.py", "tests/retrieval/**/test_*.py tests/test_search.py"),
    "guard": ("ivt_jax/serve/guard.py", "tests/serve/test_guard.py tests/serve/test_public.py tests/serve/test_api.py"),
}

BINARY = (
    "Add_Sub|Add_Mul|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|FloorDiv_Div|Mod_FloorDiv|Pow_Mul|BitAnd_BitOr|BitOr_BitAnd"
)
COMPARISON = "Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_Gt|LtE_Lt|LtE_GtE|Gt_GtE|Gt_Lt|GtE_Gt|GtE_LtE|Is_IsNot|IsNot_Is"
OPERATORS = (
    f"ReplaceBinaryOperator_({BINARY})|ReplaceComparisonOperator_({COMPARISON})"
    "|ReplaceUnaryOperator_(USub_UAdd|USub_Invert|Delete_Not|Delete_Invert)|AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    "|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ExceptionReplacer"
    "|NumberReplacer|RemoveDecorator|ZeroIterationForLoop"
)

running: set[subprocess.Popen] = set()
ending = threading.Event()


def modules(group: str) -> list[Path]:
    """Returns the group's modules, relative to the tree."""
    return sorted(path.relative_to(ROOT) for path in ROOT.glob(GROUPS[group][0]))


def tests(group: str, module: Path) -> list[str]:
    """Returns the group's test files, the module's own first."""
    files = [path for pattern in GROUPS[group][1].split() for path in sorted(ROOT.glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in sorted(files, key=lambda path: path.stem != f"test_{module.stem}")]


def left_out(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns the (line, column) of beginning and end of the parts of a module that are not mutated."""
    text = path.read_text()
    spans: list[Any] = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.AnnAssign(annotation=span) | ast.arg(annotation=span) | ast.FunctionDef(returns=span) if span:
                spans.append(span)
            case (
                ast.BinOp(right=ast.Constant(str()))
                | ast.keyword(arg="strict")
                | ast.Raise()
                | ast.Call(func=ast.Name("print") | ast.Attribute(attr="warn"))
                | ast.If(test=ast.Compare(left=ast.Name("__name__")))
            ):
                spans.append(node)
    whole = {
        r["was"] for r in json.loads(REASONS.read_text()) if r["file"] == str(path.relative_to(ROOT)) and not r["is"]
    }
    lines = [((n, 0), (n + 1, 0)) for n, line in enumerate(text.splitlines(), 1) if line.strip() in whole]
    return lines + [((s.lineno, s.col_offset), (s.end_lineno, s.end_col_offset)) for s in spans]


def compiles(mutation: Any) -> bool:
    """Whether the mutant is valid Python and more than a `*` among the parameters turned into a `/`.

    Cosmic Ray itself raises AttributeError where an `except` names an exception with a dot.
    """
    operator = plugins.get_operator(mutation.operator_name)()
    try:
        tree = ast.parse(mutate_code((ROOT / mutation.module_path).read_text(), operator, mutation.occurrence))
    except (AttributeError, SyntaxError):
        return False
    return not any(node.posonlyargs for node in ast.walk(tree) if isinstance(node, ast.arguments))


def draw(db: Any, count: int, seed: int) -> None:
    """Fills an empty database with mutants, equally many of each group."""
    core = plugins.OPERATOR_PROVIDERS["core"]
    plugins.OPERATOR_PROVIDERS["core"] = {name: core[name] for name in core if re.fullmatch(OPERATORS, name)}
    sample: list[WorkItem] = []
    for group in GROUPS:
        spans = {path: left_out(ROOT / path) for path in modules(group)}
        with use_db(":memory:") as every:
            init(modules(group), every, {})
            mutations = [item.mutations[0] for item in every.work_items]
        mutations = [m for m in mutations if not any(a <= m.start_pos < b for a, b in spans[m.module_path])]
        mutations.sort(key=lambda m: (str(m.module_path), m.operator_name, m.occurrence))
        random.Random(f"{seed} {group}").shuffle(mutations)
        drawn = list(itertools.islice(filter(compiles, mutations), count // len(GROUPS)))
        sample += [WorkItem.single(f"{group} {number}", mutation) for number, mutation in enumerate(drawn)]
        print(f"{group:16}{len(drawn):4} of {len(mutations)} mutants", flush=True)
    db.add_work_items(sample)


def copy_trees() -> SimpleQueue:
    """Makes AT_ONCE copies of the files that git tracks or would add."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    trees: SimpleQueue = SimpleQueue()
    for tree in (STATE / f"tree-{number}" for number in range(AT_ONCE)):
        shutil.rmtree(tree, ignore_errors=True)
        for name in names:
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
        trees.put(tree)
    return trees


def run_tests(tree: Path, files: list[str], limit: float | None) -> str:
    """Runs test files in a tree until a test fails. Returns how they failed, in one line; "" if they passed."""
    environment = {  # compiled programs are kept, in a folder per tree; bytecode is not: its times are whole seconds
        **os.environ, "PYTHONDONTWRITEBYTECODE": "1", "JAX_COMPILATION_CACHE_DIR": f"{tree}-compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", *files]
    with tempfile.TemporaryFile() as out:
        if ending.is_set():
            return "stopped"
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=out, stderr=out, start_new_session=True)
        running.add(process)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"no end within {limit:.0f} s"
        finally:
            stop(process)
        out.seek(0)
        output = out.read().decode(errors="replace")
    if process.returncode == 0:
        return ""
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)", output, re.MULTILINE)
    return (failed or output.strip().splitlines() or [f"exit code {process.returncode}"])[-1]


def stop(process: subprocess.Popen) -> None:
    """Kills a run of the tests and the programs that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    running.discard(process)


def try_unchanged(trees: SimpleQueue, group: str) -> float:
    """Returns the seconds that the group's tests take without a mutant. Raises RuntimeError if they fail."""
    tree, start = trees.get(), time.monotonic()
    failed = run_tests(tree, tests(group, Path()), None)
    trees.put(tree)
    if failed:
        raise RuntimeError(f"the tests of {group} fail without a mutant: {failed}")
    return time.monotonic() - start


def try_mutant(trees: SimpleQueue, item: WorkItem, limit: float) -> WorkResult:
    """Runs the tests on one mutant, in a tree that no other mutant uses meanwhile."""
    tree, (m,) = trees.get(), item.mutations
    with use_mutation(tree / m.module_path, plugins.get_operator(m.operator_name)(), m.occurrence) as codes:
        failed = run_tests(tree, tests(item.job_id.split()[0], m.module_path), limit)
    trees.put(tree)
    pairs = enumerate(zip(*(code.splitlines() for code in codes), strict=False), 1)
    line, (was, now) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    change = {"file": str(m.module_path), "line": line, "was": was.strip(), "is": now.strip()}
    outcome = TestOutcome.KILLED if failed else TestOutcome.SURVIVED
    return WorkResult(WorkerOutcome.NORMAL, failed, outcome, json.dumps(change))


def try_all(db: Any, items: list[WorkItem]) -> None:
    """Tries mutants and stores each result."""
    trees = copy_trees()
    groups = [group for group in GROUPS if any(item.job_id.split()[0] == group for item in items)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            limits = {}
            for group, seconds in zip(groups, pool.map(lambda g: try_unchanged(trees, g), groups), strict=True):
                print(f"{group:16}{seconds:6.0f} s without a mutant", flush=True)
                limits[group] = 60 + 3 * seconds
            start = time.monotonic()
            futures = {pool.submit(try_mutant, trees, i, limits[i.job_id.split()[0]]): i for i in items}
            for done, future in enumerate(as_completed(futures), 1):
                result = future.result()
                db.set_result(futures[future].job_id, result)
                left = (time.monotonic() - start) / done * (len(items) - done) / 60
                said = result.output or f"SURVIVED {result.diff}"
                print(f"{done} of {len(items)}, {left:.0f} min left: {futures[future].job_id}: {said}", flush=True)
        finally:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in [*running]:
                stop(process)


def report(db: Any) -> int:
    """Prints the survivors with their reasons, and the table. Returns the exit code."""
    reasons = {(r["file"], r["was"], r["is"]): r["reason"] for r in json.loads(REASONS.read_text())}
    results = [(item.job_id.split()[0], result) for item, result in db.completed_work_items]
    changes = sorted((json.loads(r.diff) for _, r in results if not r.is_killed), key=lambda c: (c["file"], c["line"]))
    reasons_of = [reasons.get((c["file"], c["was"], c["is"])) for c in changes]
    for c, reason in zip(changes, reasons_of, strict=True):
        print(f"{c['file']}:{c['line']} survived: {reason or 'NO REASON YET'}\n  - {c['was']}\n  + {c['is']}")
    print(f"\n{'group':16}{'mutants':>8}{'killed':>8}{'survived':>10}")
    for name in [*GROUPS, "all"]:
        killed = [result.is_killed for group, result in results if name in (group, "all")]
        print(f"{name:16}{len(killed):8}{sum(killed):8}{len(killed) - sum(killed):10}")
    share, missing = 100 * sum(killed) / max(len(killed), 1), reasons_of.count(None)
    survivors = "survivor" if missing == 1 else "survivors"
    print(f"{share:.1f}% killed, {WANTED}% wanted; {missing} {survivors} without a reason in {REASONS.name}")
    return int(share < WANTED or missing > 0)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/mutants.py")
    parser.add_argument("--count", type=int, default=300, help="mutants, equally many of each group (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="only these groups")
    parser.add_argument("--again", action="store_true", help="try the known survivors again")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    STATE.mkdir(parents=True, exist_ok=True)
    sources = zlib.crc32(b"".join((ROOT / path).read_bytes() for group in GROUPS for path in modules(group)))
    with (STATE / "lock").open("w") as lock, use_db(STATE / f"{sources:08x}-{args.count}-{args.seed}.sqlite") as db:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would share the trees
        if not db.num_work_items:
            draw(db, args.count, args.seed)
        survivors = [item for item, result in db.completed_work_items if args.again and not result.is_killed]
        items = [i for i in [*survivors, *db.pending_work_items] if i.job_id.split()[0] in args.groups]
        try:
            if items:
                try_all(db, items)
        finally:
            for tree in STATE.glob("tree-?"):
                shutil.rmtree(tree, ignore_errors=True)
        return report(db)


if __name__ == "__main__":
    sys.exit(main())
