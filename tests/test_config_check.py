import pytest

from configs import cuhk, default, icfg, rstp, synth
from input_pipeline.errors import UserError
from ivt_jax.config_check import CHOICES, COUNTS, NOT_NEGATIVE, RATES, SHARES, check_config


def fault(devices=1, **changes):
    """The message that the default config gets with these changes, "_" for ".", or None."""
    config = default.get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    try:
        check_config(config, devices)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


def test_our_configs_have_no_fault():
    for module, variants in (
        (default, [None]),
        *((m, ["", "release"]) for m in (cuhk, icfg, rstp)),
        (synth, synth.VARIANTS),
    ):
        for variant in variants:
            check_config(module.get_config() if variant is None else module.get_config(variant))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__name": "adam"}, 'optimizer.name is "adam"; expected one of sgd, adamw'),
        ({"optimizer__schedule": "cosine"}, 'optimizer.schedule is "cosine"; expected one of released, smooth'),
        ({"data__sampling": "random"}, 'data.sampling is "random"; expected one of identity, uniform'),
        ({"data__name": "cuhk"}, 'data.name is "cuhk"; expected one of cuhk_pedes, icfg_pedes, rstp_reid, pedes_synth'),
        ({"bmm__align": "on"}, 'bmm.align is "on"; expected one of off, exact, fast'),
        ({"model__dtype": "f32"}, 'model.dtype is "f32"; expected one of float32, bfloat16'),
        ({"mla__levels": ("noun",)}, "mla.levels is ('noun',); expected some of sentence, phrase, word, each once"),
        ({"mla__levels": ()}, "mla.levels is (); expected some of sentence, phrase, word, each once"),
        ({"mla__levels": ("word",) * 2},
         "mla.levels is ('word', 'word'); expected some of sentence, phrase, word, each once"),
        ({"mla__views": 2}, "mla.views 2 does not go with the 3 of mla.levels: it must be 1 or 3"),
        ({"mla__groups": 3}, "data.batch_size 28 is not a multiple of mla.groups 3"),
        ({"bmm__rows": 3}, "bmm.rows is 3; expected 0 (all) or a divisor of data.batch_size 28"),
        ({"bmm__rows": 29}, "bmm.rows is 29; expected 0 (all) or a divisor of data.batch_size 28"),
        ({"devices": 8}, "data.batch_size 28 is not a multiple of the 8 devices"),
        ({"runtime__matching": "local"}, 'runtime.matching is "local"; expected one of global, sharded'),
        ({"runtime__matching": "sharded", "mla__groups": 2, "devices": 7, "data__batch_size": 28},
         "mla.groups 2 does not go with runtime.matching sharded on 7 devices: it must divide them or be a multiple of "
         "them"),
        ({"runtime__microbatches": 8},
         "data.batch_size 28 is not a multiple of runtime.microbatches 8 times 1, the devices"),
        ({"runtime__microbatches": 4, "bmm__rows": 14},
         "bmm.rows 14 is not a multiple of runtime.microbatches 4 times 1, the devices"),
        ({"data__instances": 5}, "data.batch_size 28 is not a multiple of data.instances 5"),
        ({"text__length__phrase": 2}, "text.length.phrase is 2; expected 3 to model.max_text_length 512 tokens, "
                                      "[CLS] and [SEP] included"),
        ({"model__max_text_length": 80}, "text.length.sentence is 100; expected 3 to model.max_text_length 80 tokens, "
                                         "[CLS] and [SEP] included"),
        ({"text__length__sentence": 3}, "bmm.word_weight needs text.length.sentence of 4 or more: at most half of the "
                                        "tokens are predicted"),
        ({"model__image_activation": "relu"}, 'model.image_activation is "relu"; expected one of gelu, quick_gelu'),
        ({"model__norm_epsilon": 0.0}, "model.norm_epsilon is 0.0; expected more than 0"),
        ({"model__num_heads": 7}, "model.width 768 is not a multiple of model.num_heads 7"),
        ({"model__image_size": (384,)}, "model.image_size is (384,); expected (height, width)"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"model__image_size": (384, 15)}, "model.image_size (384, 15) is smaller than model.patch_size 16"),
        ({"bmm__patch_ratio": 0.001}, "bmm.patch_ratio 0.001 hides none of the 192 patches"),
        ({"mla__weight": 0.0, "bmm__word_weight": 0.0, "bmm__patch_weight": 0.0},
         "mla.weight, bmm.word_weight and bmm.patch_weight are all 0: there is nothing to train"),
        ({"train__first_epoch": 121}, "train.first_epoch 121 lies behind the last, train.epochs 120"),
        ({"runtime__log_every": 0}, "runtime.log_every is 0; expected 1 or more"),
        ({"bmm__word_ratio": 1.5}, "bmm.word_ratio is 1.5; expected a share from 0 to 1"),
        ({"model__drop_path": 1.0}, "model.drop_path is 1.0; expected a share from 0 to below 1"),
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
    ],
)
def test_what_works_is_no_fault(changes):
    assert fault(**changes) is None


@pytest.mark.parametrize(
    ("keys", "value"),
    [(NOT_NEGATIVE, -1), (CHOICES, "x"), (COUNTS, 0), (COUNTS, -1), (SHARES, -0.1), (SHARES, 1.1), (RATES, 1.0)],
)
def test_every_key_with_a_range_is_checked(keys, value):
    for key in keys:
        assert fault(**{key.replace(".", "__"): value}).startswith(f"{key} is ")
