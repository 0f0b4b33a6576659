"""Every config resolves, and every key does something: change it, and what it governs changes."""

import inspect
import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import cuhk, default, icfg, joint, pretrain, rstp, synth
from input_pipeline import opening, pipeline
from input_pipeline.annotations import dataset_name, title_of
from input_pipeline.joint import JointSource
from input_pipeline.tokenizer import SHIPPED, load_tokenizer
from ivt_jax import ablation, main
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.pixels import normalise
from ivt_jax.evaluation import run as evaluation_of_run
from ivt_jax.evaluation import split as evaluation
from ivt_jax.evaluation.protocols import Embeddings
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import export_params
from ivt_jax.training import loop, validation
from ivt_jax.training.config_check import check_config
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.program import batch_shapes, build_program
from ivt_jax.training.sharding import make_mesh


def flatten(config, prefix=""):
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key: value}
    return flat


# ---- each config


@pytest.mark.parametrize(
    ("module", "name", "root", "batch", "stride", "first_epoch"),
    [
        (cuhk, "cuhk_pedes", "data/CUHK-PEDES", 28, 12, 1),
        (icfg, "icfg_pedes", "data/ICFG-PEDES", 28, 12, 0),
        (rstp, "rstp_reid", "data/RSTPReid", 48, 16, 0),
    ],
)
def test_the_datasets_differ_as_released(module, name, root, batch, stride, first_epoch):
    config, released = module.get_config(), module.get_config("release")
    assert flatten(config).keys() == flatten(default.get_config()).keys()
    assert (config.data.name, config.data.root) == (name, root)
    assert (config.data.batch_size, config.model.stride, config.train.first_epoch) == (batch, stride, first_epoch)
    assert config.bmm.patch_block == (2 if stride < 16 else 1)
    changed = {key for key, value in flatten(released).items() if value != flatten(config)[key]}
    assert changed == {"bmm.word_weight", "bmm.patch_weight", "text.word_rule"}
    assert released.bmm.word_weight == released.bmm.patch_weight == 0


SIZES = {
    "data.batch_size", "data.instances", "augment.pad", "text.tokenizer", "text.length.sentence", "text.length.phrase",
    "text.length.word", "model.image_size", "model.width", "model.depth", "model.num_heads", "model.vocab_size",
    "model.max_text_length", "model.dtype", "train.steps", "evaluation.robustness", "runtime.log_every",
}  # fmt: skip


@pytest.mark.parametrize("module", [cuhk, icfg, rstp, joint])
def test_a_smoke_run_is_the_same_program_at_a_tiny_size(module):
    whole, smoke = flatten(module.get_config()), flatten(module.get_config("smoke"))
    assert {key for key in whole if whole[key] != smoke[key]} == SIZES
    check_config(module.get_config("smoke"))


def test_the_joint_config_is_that_of_cuhk_on_three_datasets():
    one, several = flatten(cuhk.get_config()), flatten(joint.get_config())
    assert {key for key in one if one[key] != several[key]} == {"data.name", "data.root", "data.sources"}
    for variant in ("", "release", "clip", "siglip", "vlmo"):
        check_config(joint.get_config(variant))


def test_a_smoke_run_trains_and_scores_test_without_the_hub(pedes_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = cuhk.get_config("smoke")
    config.data.root, config.runtime.prepared = str(pedes_root), str(tmp_path / "prepared")
    loop.train_and_evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/test/summary.json").read_text())["last"]["step"] == config.train.steps


def test_the_ablation_changes_nothing_but_its_terms():
    variants = {variant: flatten(synth.get_config(variant)) for variant in synth.TERMS}
    full = variants["full"]
    terms = {"mla.levels", "bmm.align", "bmm.word_weight", "bmm.patch_weight"}
    for variant, flat in variants.items():
        assert {key for key in full if flat[key] != full[key]} <= terms, variant
    assert {key for key in terms if variants["mla"][key] != variants["baseline"][key]} == {"mla.levels"}


def test_the_optimisers_differ_in_nothing_else():
    demo = flatten(synth.get_config())
    for variant in synth.OPTIMIZERS:
        changed = {key for key, value in flatten(synth.get_config(variant)).items() if value != demo[key]}
        assert all(key.startswith("optimizer.") for key in changed) and bool(changed) == (variant != "muon")


def test_the_losses_differ_in_nothing_else():
    demo = flatten(synth.get_config())
    for name in synth.LOSSES:
        changed = {key for key, value in flatten(synth.get_config(name)).items() if value != demo[key]}
        assert changed == {"match.loss", "match.temperature"}
    assert demo["match.loss"] == "cmpm"
    assert ablation.STUDIES["losses"] == ("full", "sdm", "itc", "tal")


def test_pretraining_differs_in_its_losses():
    configs = {name: synth.get_config(name) for name in synth.PRETRAINING}
    weights = {name: (c.mla.weight, c.itm.weight, c.bmm.word_weight, c.bmm.patch_weight) for name, c in configs.items()}
    assert weights == {"pretrain_itc": (0.5, 0, 0, 0), "pretrain_itc_mlm": (0.5, 0, 1, 0), "pretrain": (0.5, 1, 1, 0)}
    keys = {
        key for c in configs.values() for key, value in flatten(c).items() if value != flatten(configs["pretrain"])[key]
    }
    assert keys == {"itm.weight", "bmm.word_weight"}


def test_pretraining_as_released_has_the_values_of_its_table():
    usual = flatten(default.get_config())
    changed = {key: value for key, value in flatten(pretrain.get_config("release")).items() if value != usual[key]}
    assert changed == {
        "data.name": "pairs", "data.root": "data/pairs", "data.identities": False, "data.batch_size": 512,
        "data.sampling": "uniform", "data.instances": 1, "text.clean": "released", "text.length.sentence": 50,
        "mla.levels": ("sentence",), "mla.views": 1, "mla.weight": 0.5, "match.loss": "itc",
        "match.normalise": "neither", "match.temperature": 0.5, "match.learned": True, "itm.weight": 1.0,
        "bmm.align": "off", "bmm.word_ratio": 0.25, "bmm.patch_weight": 0.0, "evaluation.robustness": False,
    }  # fmt: skip
    own = {key for key, value in flatten(pretrain.get_config()).items() if value != {**usual, **changed}[key]}
    assert own - {"train.epochs", "match.normalise", "match.temperature", "text.clean"} == {
        f"optimizer.{key}" for key in (
            "name", "schedule", "learning_rate", "bias_learning_rate", "start", "floor", "warmup_epochs",
            "weight_decay", "clip_norm",
        )
    }  # fmt: skip


def test_a_choice_is_one_key_and_the_demo_has_two_of_them():
    demo = flatten(synth.get_config())
    changed = {
        name: {key for key, value in flatten(synth.get_config(name)).items() if value != demo[key]}
        for name in synth.CHOICES
    }
    assert changed == {
        "align_off": {"bmm.align"}, "align_exact": {"bmm.align"}, "align_fast": set(), "one_view": set(),
        "three_views": {"mla.views"}, "sentence_level": {"mla.levels"},
        "no_reconstruction": {"bmm.word_weight", "bmm.patch_weight"},
    }  # fmt: skip
    assert set(ablation.CHOICES) == {"full"} | {name for name, keys in changed.items() if keys}


@pytest.mark.parametrize(
    ("module", "known"),
    [
        (cuhk, "(none), :release, :smoke, :clip, :siglip, :vlmo"),
        (
            synth,
            "(none), :baseline, :mla, :bmm_align, :bmm_reconstruct, :full, :sgd, :adamw, :layer_decay, :ema, :muon, "
            ":align_off, :align_exact, :align_fast, :one_view, :three_views, :sentence_level, :no_reconstruction, "
            ":sdm, :itc, :tal, :two_towers, :pretrain_itc, :pretrain_itc_mlm, :pretrain",
        ),
    ],
)
def test_an_unknown_variant_is_one_line(module, known):
    with pytest.raises(ValueError, match=r"^this config has no variant :fast; it has ") as error:
        module.get_config("fast")
    assert str(error.value).endswith(known)


@pytest.mark.parametrize("module", [default, cuhk, icfg, rstp, joint, synth, pretrain])
def test_a_config_opens_with_its_command(module):
    line = next(line.strip() for line in inspect.getdoc(module).splitlines() if "ivt_jax.main" in line)
    path = line.split("--config=")[1].split()[0].partition(":")[0]
    assert line.startswith("python -m ivt_jax.main --config=") and Path(path).exists()


# ---- each key: probes, which return what the keys govern


def batch(config):
    """The third training batch: images, boxes, texts, pairs."""
    source = JointSource(opening.open_parts(config, "train"))
    plans = pipeline.plan_epochs(config, source)
    tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size, config.text.clean)
    return next(itertools.islice(pipeline.train_batches(config, source, tokenizer, plans), 2, None))


def order(config):
    """The pairs of the first steps."""
    plans = pipeline.plan_epochs(config, JointSource(opening.open_parts(config, "train")))
    return np.concatenate([plans.rows(step)[2] for step in range(4)])


def parameters(config):
    model = build_model(config.model)
    return jax.eval_shape(lambda: model.init(jax.random.key(0))["params"])


def title(config):
    """The dataset's name in a report."""
    return title_of(dataset_name(config.data))


def initial(config):
    """The parameters that training starts from."""
    model = build_model(config.model)
    return jax.jit(lambda: model.init(jax.random.key(config.seed))["params"])()


def loss(config):
    """The objective and its gradient as a program, traced: another dtype, rate, term or shape is another program."""
    rows, views, size = config.data.batch_size, config.mla.views, config.model.image_size
    text = {level: np.ones((rows, config.text.length[level]), np.int32) for level in ("sentence", "phrase", "word")}
    inputs = {
        "images": np.zeros((rows, views, *size, 3), np.uint8), "erase": np.zeros((rows, views, 4), np.int32),
        "text": text, "mask": {level: ids > 0 for level, ids in text.items()},
        "words": np.ones_like(text["sentence"]), "person_ids": np.zeros(rows, np.int32),
    }  # fmt: skip
    model = build_model(config.model)

    def total(params, inputs):
        return Objective(model, config, mask_id=4)(params, inputs, jax.random.key(0))[0]

    return str(jax.make_jaxpr(jax.grad(total))(parameters(config), inputs))


def pixels(config):
    """White pixels as the model takes them."""
    return np.asarray(normalise(np.full((1, 1, 3), 255, np.uint8), config.model))


def start(config):
    """The parameters of the state at step 0."""
    program = build_program(config, np.array([0, 10]), 10, mask_id=4)
    return jax.tree.map(np.asarray, loop.start_state(program, loop.initial_params(config).params).params)


def start_state(config):
    """What a training keeps from step to step."""
    return build_program(config, np.array([0, 10]), 10, mask_id=4).target


def step(config):
    """The training step on all devices as a program, traced."""
    program = build_program(config, np.array([0, 10]), 10, mask_id=4)
    shapes = program.target, batch_shapes(config, program.mesh), program.hyperparameter_shapes
    return str(program.step.trace(*shapes).jaxpr)


STEPS = (0, 3, 10, 25, 39)  # of an optimiser with ten steps per epoch
PARAMS = {"blocks": {"norm1": {"scale": np.ones(2, np.float32)}, "fc1": {"kernel": np.array([1.0, -2.0], np.float32)}},
          "image_embedding": {"bias": np.array([0.5], np.float32)}}  # fmt: skip


def updates(config):
    """Parameters after updates at rates of several steps, with gradients that change."""
    epochs = config.train.epochs + 1 - config.train.first_epoch
    tx = make_optimizer(config, make_schedules(config, np.arange(epochs + 1) * 10, config.train.steps or epochs * 10))
    state, trace = tx.init(PARAMS), []
    for number in range(max(STEPS) + 1):
        gradients = jax.tree.map(lambda x, n=number: np.float32(0.3) * x * (n % 3 - 0.5), PARAMS)
        changes, state = tx.update(gradients, state, PARAMS)
        trace += [changes] if number in STEPS else []
    return trace


def splits(config):
    """Who is in each split."""
    return [opening.open_split(config, split).person_ids for split in ("train", "val")]


def tokens(config):
    return load_tokenizer(config.text.tokenizer, config.model.vocab_size, config.text.clean).digest


def mesh(config):
    return make_mesh(config.runtime.mesh).devices.shape


def prepared(config):
    """Where the prepared data of a split lie."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = opening.prepare
        patch.setattr(opening, "prepare", lambda *args: seen.append(original(*args)) or seen[0])
        opening.open_split(config, "train")
    return str(seen[0].data_path.parent)


def evaluation_batches(config):
    """How many images and texts validation embeds at once."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        images = lambda model, params, batches: seen.append([len(rows) for rows in batches])  # noqa: E731
        patch.setattr(evaluation, "embed_images", images)
        patch.setattr(evaluation, "embed_texts", lambda model, params, ids, mask, size: seen.append(size))
        tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size, config.text.clean)
        evaluation.embed_split(None, None, opening.open_split(config, "val"), tokenizer, config)
    return seen


SPLIT = Embeddings(
    image=np.eye(4, dtype=np.float32), text=np.eye(4, dtype=np.float32)[::-1].copy(), image_person=np.arange(4) // 2,
    text_person=np.arange(4) // 2, text_image=np.arange(4), image_copies=np.ones(4, int),
)  # fmt: skip


def selection(config):
    """The scores that choose a checkpoint."""
    source = SimpleNamespace(images_digests={})
    run = SimpleNamespace(config=config, program=SimpleNamespace(model=None, mesh=None), source=source, tokenizer=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "embed_split", lambda *args, **options: SPLIT)
        patch.setattr(validation, "gather_params", lambda mesh, params: params)
        return sorted(validation.make_validation(run)(SimpleNamespace(learned={})))


def told(config):
    """What the evaluation of a run tells."""
    restored, width = SimpleNamespace(params={}, step=1), SPLIT.text.shape[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_of_run, "restore_params", lambda workdir, best=True, shapes_alone=False: restored)
        patch.setattr(evaluation_of_run, "embed_split", lambda *args, **options: SPLIT)
        patch.setattr(evaluation_of_run, "embed_captions", lambda *args: np.resize(SPLIT.text, (len(args[2]), width)))
        patch.setattr(evaluation_of_run, "split_captions", lambda source: ["A man in black."] * 4)
        summary = evaluation_of_run.evaluate(Path("nowhere"), config, write=False)["test"]
    return sorted(summary), sorted(summary["protocols"])


def flags(config):
    """The flags that XLA gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setattr(main, "CONFIG", SimpleNamespace(value=config))
        patch.setattr(main, "WORKDIR", SimpleNamespace(value="runs/x"))
        for name, value in (("DRY_RUN", True), ("PLAN", False), ("DEVICES", 1), ("TOPOLOGY", None)):
            patch.setattr(main, name, SimpleNamespace(value=value))
        patch.setattr("ivt_jax.cost.dry_run.dry_run", lambda config, devices: "")
        patch.setattr(main, "check_flags", lambda: None)
        main.main(["main"])
        return os.environ["XLA_FLAGS"]


def heartbeat(config):
    """What the processes of a run agree on when they join."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.distributed, "initialize", lambda *args, **more: seen.append(more))
        patch.setattr(main.watchdog, "answer_abort", lambda: None)
        patch.setattr(main.preemption, "share", lambda: None)
        for name, value in (("COORDINATOR", "host:1"), ("NUM_PROCESSES", 2), ("PROCESS_ID", 0)):
            patch.setattr(main, name, SimpleNamespace(value=value))
        main.start_distributed(config)
    return str(seen)


def watched(config):
    """After how long the loop counts as hung."""
    seen = []

    class Watching(loop.Watchdog):
        def __init__(self, limit):
            seen.append(limit)
            super().__init__(limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Watchdog", Watching)
        run(config)
    return seen


def damage(config):
    """What a run is to do about a damaged checkpoint."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "set_damaged_aside", lambda workdir, on_damage, say: seen.append(on_damage))
        run(config)
    return str(seen)


def run(config):
    """What the loop does and when, with a device that computes nothing; the loss is not finite from step 3 on."""
    events = []

    def step(state, batch, hyperparameters):
        number = state["step"] + 1
        metrics = {"loss": jax.numpy.ones(()), "learning_rate": 1.0, "bad_steps": max(0, number - 2)}
        return {"step": number}, metrics

    class Nothing:
        def __init__(self, *args, **kwargs):
            pass

        def latest_step(self):
            return None

        def save(self, step, state, metrics=None):
            events.append(("save", step, metrics))

        def write(self, step, scalars):
            events.append(("log", step, "val" in scalars))

        def close(self):
            events.append("close")

    target = SimpleNamespace(params={}, opt_state={}, ema={})
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 1})
    program = SimpleNamespace(
        mesh=mesh, init=lambda: {"step": 0}, target=target, hyperparameters=dict, hyperparameter_shapes={}
    )
    program.step = SimpleNamespace(lower=lambda *args: SimpleNamespace(compile=lambda: step))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("Checkpoints", Nothing), ("ScalarLog", Nothing), ("build_program", lambda *args: program),
            ("record_config", lambda *args: None), ("global_batch", lambda mesh, batch: batch),
            ("batch_shapes", lambda config, mesh: {}),
            ("make_validation", lambda *args: lambda state: {"val": 1.0}), ("write_report", lambda workdir: None),
            ("evaluate", lambda *args: {"test": {"step": 0, "t2i": {}}}),
            ("make_workdir", lambda workdir: workdir), ("hold_workdir", lambda workdir: None),
            ("write_text", lambda *args: None),
        ):  # fmt: skip
            patch.setattr(loop, name, value)
        patch.setattr(pipeline, "train_batches", lambda *args: ({} for _ in itertools.count()))
        try:
            loop.train_and_evaluate(config, Path("nowhere"))
        except UserError as error:
            events.append(str(error))
    return events


ADAMW = {"optimizer.name": "adamw"}
TWO_TOWERS = {
    "model.towers": 2, "model.projection": 8, "model.text.width": 8, "model.text.depth": 2, "model.text.num_heads": 2,
    "model.text.pooling": "end", "bmm.align": "fast", "bmm.word_weight": 0.0, "bmm.patch_weight": 0.0,
}  # fmt: skip
# key -> probe, the value it takes, and what else the probe needs in both configs
KEYS = {
    "seed": (batch, 5),
    "data.name": (prepared, "icfg_pedes"),
    "data.root": (splits, "nowhere"),
    "data.sources": (order, ("cuhk:ROOT", "synth:ROOT"), {"data.name": "joint", "data.sources": ("cuhk:ROOT",)}),
    "data.weights": (order, (1, 3), {"data.name": "joint", "data.sources": ("cuhk:ROOT", "synth:ROOT")}),
    "data.identities": (order, False),
    "data.title": (title, "Mine"),
    "data.val_persons": (splits, 0.5, {"data.root": "WITHOUT_VAL"}),
    "data.max_damaged": (splits, 0.5, {"data.root": "DAMAGED"}),
    "data.label_noise": (batch, 0.8),
    "data.batch_size": (batch, 16),
    "data.sampling": (batch, "uniform"),
    "data.instances": (batch, 2),
    "augment.pad": (batch, 5),
    "augment.flip": (batch, 0.0),
    "augment.erase": (batch, 0.0),
    "text.tokenizer": (tokens, "VOCABULARY"),
    "text.clean": (tokens, "released"),
    "text.phrase_rule": (batch, "clauses"),
    "text.word_rule": (batch, "released"),
    "text.length.sentence": (batch, 6),
    "text.length.phrase": (batch, 6),
    "text.length.word": (batch, 5),
    "model.image_size": (batch, (24, 18)),
    "model.patch_size": (parameters, 4),
    "model.stride": (parameters, 3),
    "model.width": (parameters, 16),
    "model.depth": (parameters, 3),
    "model.num_heads": (loss, 4),
    "model.mlp_ratio": (parameters, 2.0),
    "model.vocab_size": (parameters, 99),
    "model.max_text_length": (parameters, 20),
    "model.init_std": (initial, 0.1),
    "model.image_norm": (loss, True),
    "model.image_activation": (loss, "quick_gelu"),
    "model.norm_epsilon": (loss, 1e-5),
    "model.pixel_mean": (pixels, (0.4, 0.5, 0.5)),
    "model.pixel_deviation": (pixels, (0.4, 0.5, 0.5)),
    "model.relative_positions": (parameters, True),
    "model.projection": (parameters, 8),
    "model.towers": (parameters, 2),
    "model.pooling": (parameters, "attention", TWO_TOWERS),
    "model.text.width": (parameters, 16, TWO_TOWERS),
    "model.text.depth": (parameters, 3, TWO_TOWERS),
    "model.text.num_heads": (loss, 4, TWO_TOWERS),
    "model.text.mlp_ratio": (parameters, 2.0, TWO_TOWERS),
    "model.text.activation": (loss, "quick_gelu", TWO_TOWERS),
    "model.text.causal": (loss, True, TWO_TOWERS),
    "model.text.pooling": (loss, "last", TWO_TOWERS),
    "model.text.projection_bias": (parameters, True, TWO_TOWERS),
    "model.dropout": (loss, 0.3),
    "model.drop_path": (loss, 0.3),
    "model.dtype": (loss, "bfloat16"),
    "model.remat": (loss, True),
    "model.unroll": (loss, True),
    "model.attention": (run, "cudnn"),  # refused in float32
    "mla.weight": (loss, 0.5),
    "mla.levels": (loss, ("sentence",)),
    "mla.views": (batch, 1),
    "mla.groups": (loss, 2),
    "match.loss": (loss, "sdm"),
    "match.temperature": (loss, 0.5),
    "match.learned": (start_state, True),
    "match.normalise": (loss, "both"),
    "id.weight": (start_state, 0.5),
    "itm.weight": (start_state, 0.5),
    "bmm.align": (loss, "fast"),
    "bmm.align_ratio": (loss, 0.4),
    "bmm.word_weight": (loss, 0.5),
    "bmm.word_ratio": (loss, 0.4),
    "bmm.patch_weight": (loss, 0.5),
    "bmm.patch_ratio": (loss, 0.4),
    "bmm.patch_block": (loss, 2),
    "bmm.rows": (loss, 4),
    "optimizer.name": (updates, "adamw"),
    "optimizer.schedule": (updates, "smooth"),
    "optimizer.learning_rate": (updates, 0.5),
    "optimizer.bias_learning_rate": (updates, 0.5),
    "optimizer.start": (updates, 0.001),
    "optimizer.floor": (updates, 0.001),
    "optimizer.warmup_epochs": (updates, 1.0),
    "optimizer.momentum": (updates, 0.5),
    "optimizer.multipliers": (updates, ("bias=3",)),
    "optimizer.epsilon": (updates, 1e-3, ADAMW),
    "optimizer.b1": (updates, 0.5, ADAMW),
    "optimizer.b2": (updates, 0.5, ADAMW),
    "optimizer.weight_decay": (updates, 0.1),
    "optimizer.clip_norm": (updates, 0.1),
    "optimizer.layer_decay": (updates, 0.5),
    "optimizer.ema": (start_state, 0.9),
    "train.epochs": (run, 2),
    "train.first_epoch": (run, 0),
    "train.steps": (run, 4),
    "train.eval_every": (run, 2),
    "train.select_on": (selection, "test"),
    "train.init_from": (start, "WEIGHTS"),
    "train.freeze": (start_state, ("blocks/",)),
    "train.max_bad_steps": (run, 2),
    "train.spike_factor": (start_state, 5.0),
    "evaluation.robustness": (told, False),
    "evaluation.rerank": (told, True),
    "runtime.mesh.data": (mesh, 1, {"runtime.mesh.fsdp": 2}),
    "runtime.mesh.fsdp": (mesh, 4),
    "runtime.matching": (step, "sharded", {"data.batch_size": 16}),
    "runtime.microbatches": (step, 2, {"data.batch_size": 16}),
    "runtime.prepared": (prepared, "ELSEWHERE"),
    "runtime.log_every": (run, 2),
    "runtime.checkpoint_every": (run, 2),
    "runtime.eval_batch_size": (evaluation_batches, 4),
    "runtime.deterministic": (flags, True),
    "runtime.heartbeat": (heartbeat, 33),
    "runtime.on_damage": (damage, "stop"),
    "runtime.watchdog": (watched, 33),
}


@pytest.fixture(scope="module")
def places(pedes_root, tmp_path_factory):
    """The folders that the table names."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "without_val").mkdir()
    records = json.loads((pedes_root / "reid_raw.json").read_text())
    (folder / "without_val/reid_raw.json").write_text(json.dumps([r for r in records if r["split"] != "val"]))
    (folder / "without_val/imgs").symlink_to(pedes_root / "imgs")
    shutil.copytree(pedes_root / "imgs", folder / "damaged/imgs")
    (folder / "damaged/reid_raw.json").write_text(json.dumps(records))
    (folder / "damaged/imgs/00_0.jpg").write_bytes(b"")
    (folder / "vocabulary").mkdir()
    entries = SHIPPED.read_text().splitlines()
    (folder / "vocabulary/vocab.txt").write_text("\n".join([*entries[:-1], "zebra"]) + "\n")
    config = make_config({"ROOT": ""}, {})
    weights = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), parameters(config))
    export_params(folder / "weights/params", weights)
    (folder / "weights/config.json").write_text(json.dumps({"config": config.to_dict()}))
    return {
        "WEIGHTS": str(folder / "weights"),
        "WITHOUT_VAL": str(folder / "without_val"), "DAMAGED": str(folder / "damaged"),
        "VOCABULARY": str(folder / "vocabulary"),
        "ELSEWHERE": str(folder / "elsewhere"), "ROOT": str(pedes_root),
    }  # fmt: skip


def make_config(places, changes):
    """configs/default.py at a tiny size, on the tiny dataset."""
    config = default.get_config()
    values = {
        "data.root": "ROOT", "data.batch_size": 8, "text.tokenizer": "", "text.length.sentence": 8,
        "text.length.phrase": 7, "text.length.word": 6, "model.image_size": (24, 12), "model.patch_size": 6,
        "model.stride": 6, "model.width": 8, "model.depth": 2, "model.num_heads": 2,
        "model.vocab_size": len(SHIPPED.read_text().splitlines()), "model.max_text_length": 12,
        "model.dtype": "float32", "train.epochs": 3, "train.max_bad_steps": 1000, "runtime.log_every": 1,
        "optimizer.warmup_epochs": 2.0,
    }  # fmt: skip
    values |= changes
    if sources := values.get("data.sources"):
        values["data.sources"] = tuple(source.replace("ROOT", places["ROOT"]) for source in sources)
    config.update_from_flattened_dict({k: places.get(v, v) if isinstance(v, str) else v for k, v in values.items()})
    return config


def same(one, other):
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(x == y if isinstance(x, (str, jax.ShapeDtypeStruct)) else np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def observe(places):
    """observe(probe, changes): what the probe sees; a refusal in one line is something seen, too."""
    known = {}

    def look(probe, changes):
        key = probe.__name__, str(sorted(changes.items()))
        if key not in known:
            try:
                known[key] = probe(make_config(places, changes))
            except UserError as error:
                known[key] = f"refused: {error}"
        return known[key]

    return look


def test_the_table_has_every_key():
    assert KEYS.keys() == flatten(default.get_config()).keys()


@pytest.mark.parametrize("key", KEYS)
def test_every_key_does_something(observe, places, key):
    probe, value, *needed = KEYS[key]
    needed = needed[0] if needed else {}
    assert flatten(make_config(places, needed))[key] != value
    before, after = observe(probe, needed), observe(probe, {**needed, key: value})
    assert not str(before).startswith("refused") or key == "data.max_damaged"  # whose default refuses
    assert not same(before, after)


@pytest.mark.parametrize("probe", sorted({row[0] for row in KEYS.values()}, key=lambda probe: probe.__name__))
def test_what_nobody_changes_looks_the_same(places, observe, probe):
    """A probe that saw a difference everywhere would prove nothing."""
    assert same(observe(probe, {}), probe(make_config(places, {})))
