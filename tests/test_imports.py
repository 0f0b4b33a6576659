import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ivt_jax", "input_pipeline", "configs")
# What is slow to import, or wrapped so that it can be replaced: the modules that may import it.
CONFINED = {
    "tensorflow": {
        "input_pipeline.builders",
        "input_pipeline.augment",
        "input_pipeline.pipeline",
        "input_pipeline.portable",
        "input_pipeline.benchmark",
        "input_pipeline.pairs.benchmark",
        "input_pipeline.saved_model",
    },
    "tensorflow_datasets": {"input_pipeline.builders", "input_pipeline.augment", "input_pipeline.pipeline"},
    "orbax": {"ivt_jax.run.checkpoint"},
    "clu": {"ivt_jax.training.metrics"},
    "torch": {"ivt_jax.conversion.files", "ivt_jax.benchmarks.conversion", "ivt_jax.benchmarks.torch_reference"},
    "safetensors": {
        "ivt_jax.conversion.files",
        "ivt_jax.benchmarks.conversion",
        "ivt_jax.benchmarks.transfer",
        "ivt_jax.gallery.vectors",
        "ivt_jax.run.parameter_file",
    },
    "huggingface_hub": {"ivt_jax.common.hub", "ivt_jax.conversion.hub"},
    "transformers": set(),  # of the tests alone
    "fsspec": {"input_pipeline.pairs.store"},
    "webdataset": {"input_pipeline.pairs.benchmark"},  # no requirement of the project
    "pillow_heif": {"input_pipeline.decoding"},
    "onnx": {"ivt_jax.export.onnx_graph"},
    "apache_beam": {"ivt_jax.gallery.beam"},
    "lance": {"ivt_jax.retrieval.stores.lance"},
    "pyarrow": {"ivt_jax.retrieval.stores.lance"},
    "qdrant_client": {"ivt_jax.retrieval.stores.qdrant"},
    "fastapi": {"ivt_jax.serve.app"},
    "starlette": {f"ivt_jax.serve.{name}" for name in ("app", "clients", "guard", "logins", "metrics", "server")},
    "prometheus_client": {"ivt_jax.serve.metrics"},
    "rapidfuzz": {"ivt_jax.retrieval.queries.spelling"},
    "uvicorn": {"ivt_jax.serve.server"},
}
WITHOUT_TENSORFLOW = [
    "input_pipeline.doctor", "input_pipeline.pairs.source",
    "input_pipeline.prepare", "input_pipeline.sampling", "input_pipeline.statistics",
    "input_pipeline.synthetic.parts", "input_pipeline.text_levels", "input_pipeline.tokenizer", "ivt_jax.bench",
    "ivt_jax.benchmarks.grounding", "ivt_jax.benchmarks.index", "ivt_jax.benchmarks.queries",
    "ivt_jax.common.startup", "ivt_jax.conversion.files",
    "ivt_jax.conversion.vit", "ivt_jax.convert", "ivt_jax.cost.bound", "ivt_jax.cost.compiled", "ivt_jax.cost.flops",
    "ivt_jax.cost.plan", "ivt_jax.embed", "ivt_jax.encoding.images", "ivt_jax.encoding.pixels",
    "ivt_jax.evaluation.split",
    "ivt_jax.export.onnx_graph", "ivt_jax.export.run", "ivt_jax.export.saved_model", "ivt_jax.export.stablehlo",
    "ivt_jax.gallery.nearest", "ivt_jax.gallery.shard", "ivt_jax.index", "ivt_jax.losses.bmm",
    "ivt_jax.losses.contrastive", "ivt_jax.losses.mla", "ivt_jax.models.ivt", "ivt_jax.report",
    "ivt_jax.retrieval.explain", "ivt_jax.retrieval.indexing.build", "ivt_jax.retrieval.indexing.sources",
    "ivt_jax.retrieval.searcher",
    "ivt_jax.search", "ivt_jax.serve.__main__", "ivt_jax.serve.app", "ivt_jax.training.objective",
    "ivt_jax.training.optimizer", "ivt_jax.training.program", "ivt_jax.training.sharding",
    "ivt_jax.training.train_step",
]  # fmt: skip


# The folders, from the ground up: a module imports from its own folder and from lower floors.
FLOORS = [
    ("ivt_jax.common",),
    ("configs",),
    ("input_pipeline", "ivt_jax.models", "ivt_jax.losses"),
    ("ivt_jax.conversion",),
    ("ivt_jax.run",),
    ("ivt_jax.encoding",),
    ("ivt_jax.evaluation", "ivt_jax.gallery"),
    ("ivt_jax.pages",),
    ("ivt_jax.retrieval.stores",),
    ("ivt_jax.retrieval.indexing", "ivt_jax.retrieval.queries"),
    ("ivt_jax.training", "ivt_jax.export", "ivt_jax.retrieval"),
    ("ivt_jax.cost", "ivt_jax.serve"),
    ("ivt_jax.benchmarks",),
    ("ivt_jax",),
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def folder_of(name):
    """The folder of a module; a package belongs to itself, and input_pipeline has one floor."""
    if name.startswith("input_pipeline."):
        return "input_pipeline"
    return name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]


def imports(name):
    """Every module that a module imports, at the top or within a function; ours by their full names."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {module for module in whole if module in FILES}
            found |= ours if ours == whole else ours | {node.module}
    return found


IMPORTS = {name: imports(name) for name in FILES}
OURS = {name: {module for module in found if module in FILES} for name, found in IMPORTS.items()}


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_where_they_belong(library):
    users = {name for name, found in IMPORTS.items() if library in {module.split(".")[0] for module in found}}
    assert users <= CONFINED[library]


def names_of(path):
    """What a module can be asked for: names bound outside of its functions and classes."""
    names, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                nodes += ast.iter_child_nodes(node)
    return names


def test_names_imported_from_our_modules_exist():
    """Also those that a function imports, and those of tests that another environment runs."""
    modules = FILES | {module_name(path): path for path in sorted((ROOT / "tests").rglob("*.py"))}
    names = {module: names_of(path) for module, path in modules.items()}
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in names:
                wanted = {alias.name for alias in node.names}
                missing = {name for name in wanted - names[node.module] if f"{node.module}.{name}" not in modules}
                assert not missing, f"{path}: {node.module} has no {missing}"


@pytest.mark.parametrize("folder", ["ivt_jax.models", "ivt_jax.losses"])
def test_models_and_losses_import_nothing_of_ours_outside_their_folder(folder):
    for name in FILES:
        if name.startswith(folder):
            outside = {module for module in OURS[name] if not module.startswith(folder)}
            assert not outside, name


def test_the_input_pipeline_knows_of_ivt_jax_the_common_code_alone():
    for name in FILES:
        if name.startswith("input_pipeline"):
            ours = {module for module in OURS[name] if module.startswith("ivt_jax")}
            assert all(module.startswith("ivt_jax.common.") for module in ours), name


def test_imports_lead_to_the_own_folder_or_to_a_lower_one():
    floors = [folder_of(name) for name in FILES]
    assert set(floors) == {folder for floor in FLOORS for folder in floor}
    height = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
    upward = [
        f"{name} -> {module}"
        for name, modules in OURS.items()
        for module in modules
        if folder_of(name) != folder_of(module) and height[folder_of(name)] <= height[folder_of(module)]
    ]
    assert not upward


def test_the_top_of_ivt_jax_holds_at_most_ten_modules():
    assert len(list((ROOT / "ivt_jax").glob("*.py"))) <= 10


def test_nobody_imports_a_command():
    commands = {name for name in FILES if name.split(".")[-1] == "__main__" or folder_of(name) == "ivt_jax"}
    assert "ivt_jax.main" in commands
    assert not [(name, commands & OURS[name]) for name in FILES if commands & OURS[name]]


def test_imports_run_in_no_circle():
    TopologicalSorter(OURS).prepare()  # raises CycleError, which names the circle


def loaded_by(*command):
    """The modules that a Python command imports, and its output."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert lines and not result.returncode, result.stderr
    others = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    return {line.split("|")[-1].strip() for line in lines}, result.stdout, "\n".join(others)


def test_model_losses_search_and_report_run_without_tensorflow():
    code = "import " + ", ".join(WITHOUT_TENSORFLOW)
    loaded, _, errors = loaded_by("-c", code)
    assert set(WITHOUT_TENSORFLOW) <= loaded, errors
    assert not loaded & {"tensorflow", "tensorflow_datasets", "clu"}


def test_the_formulas_run_without_jax():
    loaded, _, _ = loaded_by("-c", "import ivt_jax.cost.flops")
    assert "ivt_jax.cost.flops" in loaded and "jax" not in loaded


def test_help_answers_without_jax():
    loaded, output, errors = loaded_by("-m", "ivt_jax.main", "--help")
    assert "--workdir" in output, errors
    assert not loaded & {"jax", "tensorflow"}


def test_no_text_says_to_install_this_project_from_an_index():
    """It is on none: whoever registered the name there could have their code installed. Extras come from the clone."""
    wrong = re.compile(r"ivt[_-]jax\[\w|pip3? install[^\n`]*['\" ]ivt[_-]jax\b")
    folders = (*PACKAGES, "docs", "launch", "tests", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix not in (".pyc", ".npz")]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt") or path.name == "Makefile"]
    texts = {path.relative_to(ROOT): path.read_text(errors="ignore") for path in files if path.is_file()}
    assert Path("README.md") in texts and Path("tests/requirements.txt") in texts
    assert [path for path, text in texts.items() if wrong.search(text)] == []
