"""What training starts from: parameters of another folder, fitted to the config's model, on the mesh."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import synth
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.conversion.positions import resize_offsets, resize_positions
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import Checkpoints, export_params
from ivt_jax.training import loop
from ivt_jax.training.init_from import initial_params
from ivt_jax.training.program import build_program
from ivt_jax.training.train_step import TrainState

POSITIONS, TYPES = "image_embedding/pos_embed", "image_embedding/type_embed"
OFFSETS = "blocks/relative/image"


def tiny_config(**changes):
    config = synth.get_config()
    config.update_from_flattened_dict(
        {"model.image_size": (24, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 8, "model.depth": 2,
         "model.num_heads": 2, "model.vocab_size": 40, **{key.replace("__", "."): v for key, v in changes.items()}}
    )  # fmt: skip
    return config


def summary(config):
    """Returns the line about the initial parameters, from shapes alone."""
    return initial_params(config, shapes_alone=True).summary


def random_params(config, seed=0):
    model = build_model(config.model)
    shapes = flatten_dict(jax.eval_shape(lambda: model.init(jax.random.key(0))["params"]), sep="/")
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=value.shape).astype(np.float32) for path, value in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """folder(params, config) writes an export; returns its path."""

    def write(flat, config):
        export_params(tmp_path / "weights/params", unflatten_dict(flat, sep="/"))
        (tmp_path / "weights/config.json").write_text(json.dumps({"config": config.to_dict()}))
        return str(tmp_path / "weights")

    return write


def test_without_a_folder_nothing_is_given():
    assert initial_params(tiny_config()) == initial_params(tiny_config(), shapes_alone=True) == ({}, "", {})


def test_equal_sizes_are_loaded_bit_for_bit(folder):
    flat = random_params(tiny_config())
    config = tiny_config(train__init_from=folder(flat, tiny_config()))
    initial = initial_params(config)
    jax.tree.map(np.testing.assert_array_equal, initial.params, flat)
    assert initial.summary == f"parameters from {config.train.init_from}, step 0: {len(flat)} loaded" == summary(config)


def test_the_origin_of_the_start_is_read_with_it(folder):
    """What its config.json says of the weights, and of what they were trained on: the folder may be gone at export."""
    old = tiny_config()
    config = tiny_config(train__init_from=folder(random_params(old), old))
    place = Path(config.train.init_from)
    assert initial_params(config).origin == {"folder": str(place), "step": 0}
    weights = {"source": "clip", "files": {"clip.pt": "ff00"}}
    record = {"config": old.to_dict(), "weights": weights, "revision": "cafe"}
    (place / "config.json").write_text(json.dumps(record))
    assert initial_params(config).origin == {"folder": str(place), "step": 0, "weights": weights}
    trained = {"annotations": "ab12", "start": {"folder": "weights/clip", "step": 0, "weights": weights}}
    (place / "config.json").write_text(json.dumps({"config": old.to_dict(), "step": 7, **trained}))
    assert initial_params(config).origin == {"folder": str(place), "step": 7, "data": "pedes_synth", **trained}


def test_another_grid_is_resized_and_what_only_training_needs_may_be_missing(folder):
    old, new = tiny_config(), tiny_config(model__image_size=(30, 18), model__stride=4)  # 4x2 and 7x4 patches
    flat = {path: value for path, value in random_params(old).items() if not path.startswith("word_head/")}
    new.train.init_from = folder(flat, old)
    initial = initial_params(new)
    for path in (POSITIONS, TYPES):
        np.testing.assert_array_equal(initial.params[path], resize_positions(flat[path], (4, 2), (7, 4)))
    others = initial.params.keys() - {POSITIONS, TYPES}
    assert others == flat.keys() - {POSITIONS, TYPES}
    for path in others:
        np.testing.assert_array_equal(initial.params[path], flat[path])
    end = f"resized 4x2 -> 7x4: {POSITIONS}, {TYPES}; initialised: word_head/bias, word_head/kernel, "
    assert end in initial.summary and initial.summary == summary(new)


def test_all_that_reconstruction_alone_needs_may_be_missing(folder):
    alone = ("word_head/", "patch_head/", "image_embedding/mask_token")
    config = tiny_config()
    flat = {path: value for path, value in random_params(config).items() if not path.startswith(alone)}
    config.train.init_from = folder(flat, config)
    initial = initial_params(config)
    assert initial.params.keys() == flat.keys() < random_params(config).keys()
    drawn = sorted(random_params(config).keys() - flat.keys())
    assert "image_embedding/mask_token" in drawn
    assert sorted(initial.summary.partition("initialised: ")[2].split(", ")) == drawn and initial.summary == summary(
        config
    )


def test_as_many_patches_in_another_grid_are_resized(folder):
    old, new = tiny_config(), tiny_config(model__image_size=(12, 24))  # 4x2 and 2x4 patches
    flat = random_params(old)
    new.train.init_from = folder(flat, old)
    np.testing.assert_array_equal(initial_params(new).params[TYPES], resize_positions(flat[TYPES], (4, 2), (2, 4)))


def test_relative_positions_keep_their_distance_in_pixels(folder):
    relative = {"model__relative_positions": True, "model__projection": 6}
    old, new = tiny_config(**relative), tiny_config(**relative, model__image_size=(30, 18), model__stride=4)
    flat = random_params(old)
    new.train.init_from = folder(flat, old)
    initial = initial_params(new)
    expected = resize_offsets(flat[OFFSETS], (4, 2), (7, 4), 4 / 6)
    assert expected.shape == (2, 2, 13, 7)
    np.testing.assert_array_equal(initial.params[OFFSETS], expected)
    for path in initial.params.keys() - {POSITIONS, TYPES, OFFSETS}:
        np.testing.assert_array_equal(initial.params[path], flat[path])
    assert f"resized 4x2 -> 7x4: {OFFSETS}, {POSITIONS}, {TYPES}" in initial.summary == summary(new)


def test_relative_positions_and_a_projection_may_be_new(folder):
    old = tiny_config()
    new = tiny_config(
        model__relative_positions=True, model__projection=6, train__init_from=folder(random_params(old), old)
    )
    tables = [f"blocks/relative/{name}" for name in ("cross", "image", "image_cls", "text", "text_cls")]
    others = ["image_projection/kernel", "similarity/log_scale", "text_projection/kernel"]
    assert summary(new).endswith(f"initialised: {', '.join([*tables, *others])}")


def test_a_run_gives_its_best_checkpoint(tmp_path):
    config = tiny_config()
    checkpoints = Checkpoints(tmp_path)
    for step, score in ((1, 20.0), (2, 10.0)):
        params = unflatten_dict(random_params(config, seed=step), sep="/")
        state = TrainState(np.int32(step), params, (params, ()), np.int32(0))
        checkpoints.save(step, state, {"val/t2i/R1": score})
    checkpoints.close()
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    config.train.init_from = str(tmp_path)
    initial = initial_params(config)
    jax.tree.map(np.testing.assert_array_equal, initial.params, random_params(config, seed=1))
    assert initial.summary.startswith(f"parameters from {tmp_path}, step 1: ") and initial.summary == summary(config)


FAULTS = [
    (
        {"model__width": 16},
        (),
        r"train.init_from: blocks/attn/proj/bias of .* has shape \(2, 8\), the config needs \(2, 16\); set "
        r"--config.model.width=8$",
    ),
    ({"model__vocab_size": 41}, (), r" \(40, 8\), the config needs \(41, 8\); set --config.model.vocab_size=40$"),
    (
        {"model__depth": 3, "model__vocab_size": 41},
        (),
        r"has shape \(2, 8\), the config needs \(3, 8\); set --config.model.depth=2 --config.model.vocab_size=40$",
    ),
    (
        {"model__width": 16, "model__num_heads": 4},
        (),
        r"of a model with another num_heads, width; set --config.model.num_heads=2 --config.model.width=8$",
    ),
    ({"model__num_heads": 4}, (), r"of a model with another num_heads; set --config.model.num_heads=2$"),
    (
        {"model__norm_epsilon": 1e-5},
        (),
        r"of a model with another norm_epsilon; set --config.model.norm_epsilon=1e-06$",
    ),
    (
        {"model__image_norm": True, "model__image_activation": "quick_gelu"},
        (),
        r"another image_norm, image_activation; set --config.model.image_norm=False "
        r"--config.model.image_activation=gelu$",
    ),
    ({}, ("blocks/norm/bias",), r"^train.init_from: .*, step 0: blocks/norm/bias is missing; export or convert again$"),
    ({}, (POSITIONS,), r"step 0: image_embedding/pos_embed is missing"),
]


@pytest.mark.parametrize(("changes", "without", "message"), FAULTS)
def test_a_misfit_is_one_line_that_names_the_parameter(folder, changes, without, message):
    flat = {path: value for path, value in random_params(tiny_config()).items() if path not in without}
    config = tiny_config(**changes, train__init_from=folder(flat, tiny_config()))
    for shapes_alone in (True, False):
        with pytest.raises(UserError) as error:
            initial_params(config, shapes_alone)
        assert re.search(message, str(error.value)) and "\n" not in str(error.value)


def test_relative_positions_and_a_projection_are_not_lost(folder):
    old = tiny_config(model__relative_positions=True, model__projection=6)
    config = tiny_config(train__init_from=folder(random_params(old), old))
    message = r"another relative_positions, projection; set --config.model.relative_positions=True --config.model.proj"
    with pytest.raises(UserError, match=message):
        summary(config)


def test_a_parameter_unknown_to_the_model_is_named(folder):
    flat = {**random_params(tiny_config()), "fusion/kernel": np.ones(3, np.float32)}
    with pytest.raises(UserError, match=r"step 0: fusion/kernel has shape \(3,\), and the model of its config has no "):
        summary(tiny_config(train__init_from=folder(flat, tiny_config())))


def test_words_of_another_tokenizer_are_refused(folder, tmp_path):
    """Its words are as many as the config's, but stand in another order."""
    config = tiny_config()
    (tmp_path / "vocabulary").mkdir()
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(config.model.vocab_size - 5))]
    (tmp_path / "vocabulary/vocab.txt").write_text("\n".join(entries))
    config.text.tokenizer = str(tmp_path / "vocabulary")
    config.train.init_from = given = folder(random_params(config), config)
    assert initial_params(config).params.keys() == random_params(config).keys()  # a folder that records none
    record = json.loads((Path(given) / "config.json").read_text())
    (Path(given) / "config.json").write_text(json.dumps(record | {"tokenizer": "0" * 64}))
    with pytest.raises(UserError, match=r"was made with tokenizer 0{12}, but text.tokenizer=.* is now [0-9a-f]{12}: "):
        initial_params(config)
    # Pre-trained with cleaned texts: the pieces are the same, so a run may read texts in the usual way.
    cleaned = load_tokenizer(config.text.tokenizer, clean="released")
    record["config"]["text"]["clean"] = "released"
    (Path(given) / "config.json").write_text(json.dumps(record | {"tokenizer": cleaned.digest}))
    assert initial_params(config).params.keys() == random_params(config).keys()


def test_the_state_holds_what_is_given_on_its_mesh(folder):
    """The parameters that are not given are the random ones, the optimiser's memory is empty, shardings stay."""
    config = tiny_config(runtime__mesh__fsdp=2)
    flat = {path: value for path, value in random_params(config).items() if not path.startswith("patch_head/")}
    config.train.init_from = folder(flat, config)
    program = build_program(config, np.array([0, 10]), 10, mask_id=4)
    state = loop.start_state(program, initial_params(config).params)
    random = program.init()
    expected = {**flatten_dict(random.params, sep="/"), **flat}
    jax.tree.map(np.testing.assert_array_equal, flatten_dict(state.params, sep="/"), expected)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, random.opt_state)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, program.target)
