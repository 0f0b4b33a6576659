"""Flags that change keys of a config, as every command with --config.KEY=VALUE takes them."""

import pytest

from ivt_jax.common.config_flag import read_config
from ivt_jax.common.errors import UserError
from ivt_jax.training.config_check import check_keys


def read(*flags):
    return read_config("configs/synth.py", list(flags))


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("model.image_size", ["(72,36)", "(48,24)"], (48, 24)),
        ("model.image_size", ["(72,36)", "(48,24)", "(96,48)"], (96, 48)),
        ("mla.levels", ["sentence", "word"], ("word",)),
        ("mla.levels", ["('word',)", "('sentence','phrase')"], ("sentence", "phrase")),
        ("model.stride", ["6", "4"], 4),
        ("bmm.align", ["off", "exact"], "exact"),
    ],
)
def test_the_last_of_repeated_flags_counts(key, values, expected):
    config = read(*(f"--config.{key}={value}" for value in values))
    section, name = key.split(".")
    assert config[section][name] == expected


def test_a_tuple_as_two_words_of_the_command_line():
    assert read("--config.model.image_size", "(72,36)", "--config.seed=5").model.image_size == (72, 36)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("model.image_size=(96,48,3)", "model.image_size is (96, 48, 3); expected (height, width)"),
        ("model.image_size=96", "model.image_size is (96,); expected (height, width)"),
        ("model.image_size=96x48", "model.image_size is ('96x48',); expected (height, width)"),
        ("model.image_size=(96.5,48)",
         "model.image_size is (96.5, 48); expected (height, width) in whole pixels, each 1 or more"),
        ("mla.levels=(1,2)", "mla.levels is (1, 2); expected some of sentence, phrase, word, each once"),
        ("mla.levels=()", "mla.levels is (); expected some of sentence, phrase, word, each once"),
    ],
)  # fmt: skip
def test_a_tuple_of_another_length_or_type_is_one_line(flag, message):
    with pytest.raises(UserError) as error:
        check_keys(read(f"--config.{flag}"))
    assert str(error.value) == message


def test_a_tuple_that_cannot_be_read_is_one_line():
    with pytest.raises(UserError) as error:
        read("--config.model.image_size=(96,48")
    assert str(error.value) == (
        "flag --config.model.image_size=(96,48: expected a tuple, such as '(96,48)' or \"('sentence','word')\""
    )


def test_a_key_without_its_prefix_is_told_the_prefix():
    with pytest.raises(UserError, match=r"flag 'data.root'.*; a key of the config is changed by --config.data.root$"):
        read("--data.root=x")
