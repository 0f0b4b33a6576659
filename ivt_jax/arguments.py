"""Kinds of arguments that several commands take."""

import argparse


def positive(text: str) -> int:
    """A whole number above 0; for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
