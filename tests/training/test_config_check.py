import math
import re

import pytest

from configs import cuhk, default, icfg, rstp, synth
from configs.starts import STARTS
from ivt_jax.common.errors import UserError
from ivt_jax.run.workdir import flatten
from ivt_jax.training.config_check import CHOICES, check_config, edge_notice, persons_notice, scale_notice


def fault(devices=1, **changes):
    """The message that the default config gets with these changes, "_" for ".", or None."""
    config = default.get_config()
    with config.ignore_type():  # as a config file may
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    try:
        check_config(config, devices)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


TWO = {
    "model__towers": 2, "model__text__width": 768, "bmm__word_weight": 0.0, "bmm__patch_weight": 0.0,
    "bmm__align": "fast",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bmm__word_weight": 1.0},
         "model.towers 2 has no joint pass of image and text, so nothing is reconstructed: set bmm.word_weight and "
         "bmm.patch_weight to 0"),
        ({"model__relative_positions": True}, "model.relative_positions needs model.towers 1"),
        ({"bmm__align": "exact", "model__text__pooling": "end"},
         "bmm.align exact could drop the pooled token of model.text.pooling end; choose fast or off"),
        ({"model__text__causal": True},
         "model.text.causal needs model.text.pooling end or last: the first token attends only to itself"),
        ({"model__text__projection_bias": True},
         "model.text.projection_bias needs model.projection, the width of the embeddings"),
        ({"model__text__width": 512},
         "model.width 768 and model.text.width 512 differ, so embeddings cannot be compared: set model.projection to "
         "their common width"),
        ({"model__pooling": "attention", "model__projection": 512},
         "model.projection 512 is not model.width 768: with model.pooling attention only texts are projected, to the "
         "width of images"),
        ({"model__text__num_heads": 7}, "model.text.width 768 is not a multiple of model.text.num_heads 7"),
        ({"model__text__mlp_ratio": 0.001},
         "model.text.mlp_ratio 0.001 of model.text.width 768 is less than one unit of an MLP"),
        ({"model__towers": 1, "model__pooling": "attention"},
         "model.pooling attention needs model.towers 2; one tower pools by the class token"),
        ({"bmm__align": "exact"}, None),
        ({"model__text__width": 512, "model__projection": 512}, None),
        ({"model__text__pooling": "last"},
         "text.length is sentence 100, phrase 64, word 64: model.text.pooling last reads the last of exactly "
         "model.max_text_length 512 tokens; set each to 512"),
        ({"model__pooling": "attention", "model__text__pooling": "last", "model__projection": 768,
          "model__text__projection_bias": True, "model__max_text_length": 64, "text__length__sentence": 64}, None),
        ({"model__towers": 1, "model__text__width": 5}, None),  # it has no text tower
    ],
)  # fmt: skip
def test_two_towers(changes, message):
    assert fault(**{**TWO, **changes}) == message


def test_our_configs_have_no_fault():
    for module, variants in (
        (default, [None]),
        *((m, ["", "release", *STARTS]) for m in (cuhk, icfg, rstp)),
        (synth, synth.VARIANTS),
    ):
        for variant in variants:
            check_config(module.get_config() if variant is None else module.get_config(variant))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__name": "lamb"}, 'optimizer.name is "lamb"; expected one of sgd, adam, adamw, muon'),
        ({"match__loss": "infonce"}, 'match.loss is "infonce"; expected one of cmpm, sdm, itc, tal'),
        ({"match__normalise": "on"}, 'match.normalise is "on"; expected one of published, both, neither'),
        ({"match__temperature": -0.02}, "match.temperature is -0.02; expected 0 or more"),
        ({"match__temperature": 0.0},
         "match.temperature 0 is the scale that the model learns, and this model has none: set match.temperature above "
         "0, or model.projection"),
        ({"match__loss": "sdm"},
         "match.temperature is 1.0; match.loss sdm compares cosines and needs less than 1, such as the published 0.02"),
        ({"train__freeze": "blocks"}, "train.freeze is blocks; expected a tuple of strings"),
        ({"train__freeze": (1,)}, "train.freeze is (1,); expected a tuple of strings"),
        ({"train__freeze": ("word", "(")},
         'train.freeze has "(", which is no regular expression: missing ), unterminated subpattern at position 0'),
        ({"optimizer__multipliers": ("a)=2",)},
         'optimizer.multipliers has "a)", which is no regular expression: unbalanced parenthesis at position 1'),
        *(({"optimizer__multipliers": (entry,)},
           f'optimizer.multipliers has "{entry}"; expected "PATTERN=FACTOR", the factor 0 or more')
          for entry in ("blocks", "blocks=", "=2", "blocks=x", "blocks=-1", "blocks=inf", "blocks=nan")),
        ({"optimizer__schedule": "cosine"}, 'optimizer.schedule is "cosine"; expected one of released, smooth'),
        ({"data__sampling": "random"}, 'data.sampling is "random"; expected one of identity, uniform'),
        ({"data__name": "cuhk"}, 'data.name is "cuhk"; expected one of cuhk_pedes, icfg_pedes, rstp_reid, pedes_synth, '
         "own, pairs, joint"),
        ({"data__name": "joint"},
         "data.name joint needs data.sources: set --config.data.sources=\"('cuhk:data/CUHK-PEDES',"
         "'icfg:data/ICFG-PEDES')\""),
        ({"data__sources": ("cuhk:a",)},
         "data.sources needs data.name joint, not cuhk_pedes: use --config=configs/joint.py"),
        ({"data__sources": "cuhk:a"},
         "data.sources is 'cuhk:a'; expected a tuple of strings, such as ('cuhk:data/CUHK-PEDES',"
         "'icfg:data/ICFG-PEDES')"),
        ({"data__name": "joint", "data__sources": ("cuhk",)},
         "data.sources=cuhk: expected DATASET:DIR with one of cuhk, icfg, rstp, synth, own, pairs"),
        ({"data__name": "joint", "data__sources": ("cuhk:a", "rstp:b"), "data__weights": (1, 0)},
         "data.weights is (1, 0); expected a tuple of numbers, more than 0, or ()"),
        ({"data__name": "joint", "data__sources": ("cuhk:a", "rstp:b"), "data__weights": (1, 2, 3)},
         "data.weights has 3 numbers for 2 of data.sources; give one for each"),
        ({"data__weights": (1,)}, "data.weights has 1 number for 0 of data.sources; give one for each"),
        ({"data__identities": False, "data__label_noise": 0.1},
         "data.label_noise needs data.identities: without, captions say which pairs may be negatives; set it to 0"),
        ({"data__identities": False, "train__select_on": "test"},
         "train.select_on test needs data.identities: pre-training looks at no test split; set it to val"),
        ({"data__identities": False, "id__weight": 1.0},
         "id.weight needs data.identities: without, there are no persons to classify; set id.weight to 0"),
        ({"bmm__align": "on"}, 'bmm.align is "on"; expected one of off, exact, fast'),
        ({"model__dtype": "f32"}, 'model.dtype is "f32"; expected one of float32, bfloat16'),
        ({"mla__levels": ("noun",)}, "mla.levels is ('noun',); expected some of sentence, phrase, word, each once"),
        ({"mla__levels": ()}, "mla.levels is (); expected some of sentence, phrase, word, each once"),
        ({"mla__levels": ("word",) * 2},
         "mla.levels is ('word', 'word'); expected some of sentence, phrase, word, each once"),
        ({"mla__views": 2}, "mla.views 2 does not go with the 3 of mla.levels: it must be 1 or 3"),
        ({"mla__groups": 3}, "data.batch_size 28 is not a multiple of mla.groups 3; choose 27 or 30"),
        ({"bmm__rows": 3}, "bmm.rows is 3; expected 0 (all) or a divisor of data.batch_size 28"),
        ({"bmm__rows": 29}, "bmm.rows is 29; expected 0 (all) or a divisor of data.batch_size 28"),
        ({"devices": 8}, "data.batch_size 28 is not a multiple of the 8 devices; choose 24 or 32"),
        ({"devices": 32}, "data.batch_size 28 is not a multiple of the 32 devices; choose 32"),
        ({"runtime__matching": "local"}, 'runtime.matching is "local"; expected one of global, sharded'),
        ({"runtime__matching": "sharded", "mla__groups": 2, "devices": 7, "data__batch_size": 28},
         "mla.groups 2 does not go with runtime.matching sharded on 7 devices: it must divide them or be a multiple of "
         "them"),
        ({"runtime__microbatches": 8},
         "data.batch_size 28 is not a multiple of runtime.microbatches 8 times 1, the devices"),
        ({"runtime__microbatches": 4, "bmm__rows": 14},
         "bmm.rows 14 is not a multiple of runtime.microbatches 4 times 1, the devices"),
        ({"bmm__rows": 14, "devices": 4}, "bmm.rows 14 is not a multiple of the 4 devices, which share these rows"),
        ({"data__instances": 5}, "data.batch_size 28 is not a multiple of data.instances 5; choose 25 or 30"),
        ({"text__length__phrase": 2}, "text.length.phrase is 2; expected 3 to model.max_text_length 512 tokens, "
                                      "[CLS] and [SEP] included"),
        ({"model__max_text_length": 80}, "text.length.sentence is 100; expected 3 to model.max_text_length 80 tokens, "
                                         "[CLS] and [SEP] included"),
        ({"text__length__sentence": 3}, "bmm.word_weight needs text.length.sentence of 4 or more: at most half of the "
                                        "tokens are predicted"),
        ({"model__image_activation": "relu"},
         'model.image_activation is "relu"; expected one of gelu, quick_gelu, gelu_tanh'),
        ({"model__norm_epsilon": 0.0}, "model.norm_epsilon is 0.0; expected more than 0"),
        ({"model__num_heads": 7}, "model.width 768 is not a multiple of model.num_heads 7"),
        ({"model__image_size": (384,)}, "model.image_size is (384,); expected (height, width)"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"model__image_size": (384, 15)}, "model.image_size (384, 15) is smaller than model.patch_size 16"),
        ({"bmm__patch_ratio": 0.001}, "bmm.patch_ratio 0.001 hides none of the 192 patches"),
        ({"mla__weight": 0.0, "bmm__word_weight": 0.0, "bmm__patch_weight": 0.0},
         "mla.weight, id.weight, bmm.word_weight and bmm.patch_weight are all 0: there is nothing to train"),
        ({"match__learned": True, "match__temperature": 0.0},
         "match.learned begins at match.temperature, which is 0.0; set it above 0.01, such as to 0.07"),
        ({"match__learned": True, "match__temperature": 0.01, "match__loss": "itc"},
         "match.learned begins at match.temperature, which is 0.01; set it above 0.01, such as to 0.07"),
        ({"itm__weight": 1.0, "model__towers": 2, "bmm__word_weight": 0.0, "bmm__patch_weight": 0.0,
          "model__projection": 8},
         "model.towers 2 has no joint pass of image and text, which itm.weight needs: set itm.weight to 0"),
        ({"itm__weight": 1.0, "mla__weight": 0.0},
         "itm.weight needs mla.weight above 0: negatives are drawn by the similarities that mla trains"),
        ({"itm__weight": 1.0, "mla__levels": ("phrase", "word"), "mla__views": 1},
         "itm.weight needs sentence in mla.levels, which is ('phrase', 'word'): negatives are drawn by it"),
        ({"train__first_epoch": 121}, "train.first_epoch 121 is after the last, train.epochs 120"),
        ({"runtime__log_every": 0}, "runtime.log_every is 0; expected 1 or more"),
        ({"bmm__word_ratio": 1.5}, "bmm.word_ratio is 1.5; expected a share from 0 to 1"),
        ({"model__drop_path": 1.0}, "model.drop_path is 1.0; expected a share from 0 to below 1"),
        ({"optimizer__learning_rate": -1.0}, "optimizer.learning_rate is -1.0; expected 0 or more"),
        ({"optimizer__learning_rate": math.nan},
         "optimizer.learning_rate is nan; expected a finite number, 0 or more"),
        ({"optimizer__learning_rate": 1e39}, "optimizer.learning_rate is 1e+39; expected at most 3.4e+38"),
        ({"optimizer__learning_rate": None}, "optimizer.learning_rate is None; expected a number"),
        ({"data__batch_size": 28.0}, "data.batch_size is 28.0; expected a whole number"),
        ({"train__steps": 2**31}, "train.steps is 2147483648; expected at most 2147483647"),
        ({"mla__weight": -1.0}, "mla.weight is -1.0; expected 0 or more"),
        ({"optimizer__weight_decay": -1e-4}, "optimizer.weight_decay is -0.0001; expected 0 or more"),
        ({"optimizer__momentum": 1.0}, "optimizer.momentum is 1.0; expected a share from 0 to below 1"),
        ({"runtime__mesh__fsdp": 0}, "runtime.mesh.fsdp is 0; expected 1 or more, or -1 for the rest of the devices"),
        ({"model__mlp_ratio": 0.001}, "model.mlp_ratio 0.001 of model.width 768 is less than one unit of an MLP"),
        ({"model__patch_size": 12, "model__stride": 24},
         "model.stride 24 is larger than model.patch_size 12: no patch would cover the pixels between them; choose a "
         "stride of 1 to 12"),
        ({"model__image_size": (390, 128)},
         "model.image_size (390, 128): patches of 16 at stride 16 do not cover the last 6 of 390 rows; choose "
         "(384, 128) or (400, 128)"),
        ({"model__image_size": (390, 130)},
         "model.image_size (390, 130): patches of 16 at stride 16 do not cover the last 6 of 390 rows and the last 2 "
         "of 130 columns; choose (384, 128) or (400, 144)"),
        ({"model__image_size": (384, 128, 3)}, "model.image_size is (384, 128, 3); expected (height, width)"),
        ({"model__image_size": 384}, "model.image_size is 384; expected (height, width)"),
        ({"model__image_size": ("384", 128)},
         "model.image_size is ('384', 128); expected (height, width) in whole pixels, each 1 or more"),
        ({"model__image_size": (384, math.nan)},
         "model.image_size is (384, nan); expected (height, width) in whole pixels, each 1 or more"),
        ({"mla__levels": (["word"],)}, "mla.levels is (['word'],); expected some of sentence, phrase, word, each once"),
        ({"mla__levels": "word"}, "mla.levels is word; expected some of sentence, phrase, word, each once"),
        ({"augment__pad": 128}, "augment.pad 128 is not below the shorter side of model.image_size (384, 128): a "
                                "random crop could miss the image"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line(changes, message):
    assert fault(**changes) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"mla__views": 1},
        {"mla__levels": ("sentence",), "mla__views": 2},
        {"devices": 7},
        {"data__sampling": "uniform", "data__instances": 5},
        {"bmm__rows": 7},
        {"bmm__word_weight": 0.0, "text__length__sentence": 3},
        {"model__image_size": (224, 224)},  # ViT-B/16 and CLIP ViT-B/16
        {"model__image_size": (224, 224), "model__patch_size": 32, "model__stride": 32},  # CLIP ViT-B/32
        {"model__image_size": [378, 126], "model__patch_size": 14, "model__stride": 14},  # a list, as in config.json
        {"seed": 2**63 - 1},
        {"optimizer__learning_rate": 0.0},
        {"match__temperature": 0.0, "model__projection": 8},
        {"match__temperature": 0.0, "mla__weight": 0.0},
        {"match__loss": "itc", "match__normalise": "neither"},
        {"match__loss": "itc", "match__temperature": 0.011, "match__learned": True, "itm__weight": 1.0},
        {"match__loss": "itc", "match__normalise": "neither", "match__temperature": 0.5, "match__learned": True},
        {"match__learned": True, "match__temperature": 0.0, "mla__weight": 0.0},
        {"mla__weight": 0.0, "bmm__word_weight": 0.0, "bmm__patch_weight": 0.0, "id__weight": 1.0},
        {"train__freeze": ["word$"], "optimizer__multipliers": ["a=b=0.5"]},  # lists, as in config.json
    ],
)
def test_what_works_is_no_fault(changes):
    assert fault(**changes) is None


NUMBERS = {
    key: value
    for key, value in flatten(default.get_config().to_dict()).items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
}
# Keys whose bound is tighter than 0 or more: a value just outside of it, by hand.
OUTSIDE = {
    0: [
        "data.batch_size", "data.instances", "text.length.sentence", "text.length.phrase", "text.length.word",
        "model.patch_size", "model.stride", "model.width", "model.depth", "model.num_heads", "model.mlp_ratio",
        "model.vocab_size", "model.max_text_length", "model.init_std", "model.norm_epsilon", "mla.views", "mla.groups",
        "optimizer.epsilon",
        "model.towers", "model.text.width", "model.text.depth", "model.text.num_heads", "model.text.mlp_ratio",
        "bmm.patch_block", "train.epochs", "train.max_bad_steps", "runtime.mesh.data", "runtime.mesh.fsdp",
        "runtime.microbatches", "runtime.log_every", "runtime.checkpoint_every", "runtime.eval_batch_size",
        "runtime.heartbeat",
    ],
    1.0: [
        "data.val_persons", "model.dropout", "model.drop_path", "optimizer.momentum", "optimizer.b1", "optimizer.b2",
        "optimizer.ema",
    ],
    1.1: [
        "data.max_damaged", "data.label_noise", "augment.flip", "augment.erase", "bmm.align_ratio", "bmm.word_ratio",
        "bmm.patch_ratio", "optimizer.layer_decay",
    ],
}  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_bound(key):
    outside = [math.nan, math.inf, -math.inf, -2, *(value for value, keys in OUTSIDE.items() if key in keys)]
    for value in outside:
        value = float(value) if isinstance(NUMBERS[key], float) else value
        message = fault(**{key.replace(".", "__"): value})
        assert message and message.startswith(f"{key} is {value}; expected "), (value, message)


def test_every_key_is_checked_or_takes_any_value():
    values = flatten(default.get_config().to_dict())
    others = {key for key in values if key not in {*NUMBERS, *CHOICES} and not isinstance(values[key], bool)}
    names = {"data.root", "data.title", "text.tokenizer", "train.init_from", "runtime.prepared"}
    others -= {"model.image_size", "model.pixel_mean", "model.pixel_deviation", "mla.levels"}
    assert others == names | {"train.freeze", "optimizer.multipliers", "data.sources", "data.weights"}


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_checked(key):
    assert fault(**{key.replace(".", "__"): "x"}).startswith(f"{key} is ")


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"image_size": (390, 130)}, "model.image_size (390, 130): patches of 16 "),
        ({"stride": 24}, "model.stride 24 is larger than model.patch_size 16: "),
        ({"image_size": (16, 16), "patch_size": 8, "stride": 8}, "augment.pad 16 is not below the shorter side "),
    ],
)
def test_a_run_that_began_with_a_geometry_that_is_refused_now_can_be_resumed(changes, new):
    config = default.get_config()
    config.model.update(changes)
    config.augment.pad = min(config.augment.pad + 6, 16)
    with pytest.raises(UserError, match=f"^{re.escape(new)}"):
        check_config(config)
    check_config(config, resumed=True)
    config.mla.views = 2
    with pytest.raises(UserError, match=r"^mla\.views 2 "):
        check_config(config, resumed=True)


def test_overlapping_patches_may_leave_an_edge_as_the_release_does():
    # 30 strides of 12 and a patch of 16 are 376 rows, 9 and a patch 124 columns.
    assert edge_notice(cuhk.get_config("release")) == (
        "note: model.image_size (384, 128): patches of 16 at stride 12 do not cover the last 8 of 384 rows and the "
        "last 4 of 128 columns"
    )
    assert edge_notice(rstp.get_config()) == edge_notice(synth.get_config()) == ""


def test_a_frozen_scale_is_noted_where_the_model_s_own_is_asked_for():
    config = cuhk.get_config("clip")
    assert scale_notice(config) == ""  # a temperature of its own
    config.match.temperature = 0.0
    assert scale_notice(config) == (
        "note: match.temperature 0, and train.freeze names similarity/log_scale: the scale stays as in the initial "
        'parameters; to learn it, leave that pattern out, as with --config.train.freeze="()"'
    )
    config.train.freeze = ("text_embedding/word",)
    assert scale_notice(config) == ""


def test_persons_that_are_not_used_are_named():
    config = cuhk.get_config()
    assert persons_notice(config) == ""
    config.data.identities = False
    assert persons_notice(config) == ("note: data.identities is False: each image counts as a person of its own")
    config.data.name = "pairs"
    assert persons_notice(config) == ""
    config.data.update({"name": "joint", "sources": ("pairs:a", "own:b.csv")})
    assert persons_notice(config) != ""
