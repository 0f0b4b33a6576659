"""Numbers and paths on the command line: what each kind takes, and that every flag with one has a kind."""

import argparse
import ast
import re
from pathlib import Path

import pytest

from input_pipeline import prepare
from ivt_jax import index
from ivt_jax.common.command import not_negative, positive, seconds, share

ROOT = Path(__file__).parents[2]
# Flags whose numbers are checked later, together with others.
CHECKED_LATER = {"--distinct", "--image_weight", "--persons", "--val_persons", "--test_persons", "--images_per_person"}
# Flags with a text that may be empty, or is checked later.
FREE = {"--allow", "--and", "--group", "--not", "--path_fields", "--tokenizer", "--where"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive, "1", 1), (positive, "28", 28), (not_negative, "0", 0), (seconds, "0", 0.0), (seconds, "1e-2", 0.01),
        (share, "0", 0.0), (share, "0.005", 0.005), (share, "1", 1.0),
    ],
)  # fmt: skip
def test_numbers_within_the_bound_are_read(kind, text, value):
    assert kind(text) == value and type(kind(text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (positive, ["0", "-1", "1.5", "nan", "inf", "", "x"]),
        (not_negative, ["-1", "0.5", "nan", "x"]),
        (seconds, ["-0.1", "nan", "inf", "-inf", "1e999", "x", ""]),
        (share, ["-0.1", "1.1", "nan", "inf", "x", "5%"]),
    ],
)
def test_other_numbers_are_refused(kind, texts):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text!r} is not "):
            kind(text)


def test_a_share_that_is_none_is_one_line(capsys):
    with pytest.raises(SystemExit) as error:
        prepare.main(["--dataset=cuhk", "--root=x", "--max_damaged=nan"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and last.endswith("argument --max_damaged: 'nan' is not a share from 0 to 1")


def test_an_empty_path_is_one_line(capsys):
    for flag in ("--images", "--index", "--snapshot"):
        with pytest.raises(SystemExit) as error:
            index.main(["--index=x", "--workdir=x", f"{flag}="])
        assert error.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith(f"argument {flag}: the path is empty")


def test_no_flag_takes_any_number_or_an_empty_path():
    unchecked, free = set(), set()
    for file in (file for package in ("input_pipeline", "ivt_jax") for file in (ROOT / package).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            kinds = {k.value.id for k in call.keywords if k.arg == "type" and isinstance(k.value, ast.Name)}
            limited = any(k.arg == "choices" for k in call.keywords)
            names = [name.value for name in call.args[:1] if isinstance(name, ast.Constant)]
            shape = {k.arg for k in call.keywords if k.arg != "action" or k.value.value != "append"}
            if "help" in shape and not shape & {"type", "choices", "action", "const"}:
                free |= {name for name in names if re.fullmatch("--[a-z_]+", name)}
            if kinds & {"int", "float", "Path"} and not limited:
                unchecked.add(call.args[0].value)
    assert unchecked == CHECKED_LATER and free == FREE
