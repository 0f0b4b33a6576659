"""--config and the flags that change its keys, with one-line errors, for every command that has them."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

from ivt_jax.common.errors import UserError


class LastTuple(flags.ArgumentParser):
    """Parses a tuple as ml_collections does. The last of repeated flags counts; its own TupleParser joins them."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Returns "(96, 48)" as (96, 48), and a single word as a tuple of one. Raises ValueError."""
        try:
            return TupleParser().parse(argument)
        except ValueError:
            raise ValueError("expected a tuple, such as '(96,48)' or \"('sentence','word')\"") from None


config_flags.register_flag_parser_for_type(tuple, LastTuple())


@contextlib.contextmanager
def faults_in_one_line(arguments: Sequence[str]) -> Iterator[None]:
    """Turns the errors of absl's parser and of config files into UserError. arguments: the command's."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        cause = error.args[0]  # for a nested key, the KeyError of the part
        key, *hint = str(cause.args[0] if isinstance(cause, KeyError) else cause).splitlines()
        key = whole_key(key.strip("'"), arguments)
        raise UserError(" ".join([f"the config has no key '{key}'; configs/default.py lists all.", *hint])) from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        line = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        if missing := re.search(r"\[Errno 2\] No such file or directory: '(.*)'$", line):
            colon = "a variant follows a colon, as in configs/cuhk.py:release"
            line = f"--config: {missing[1]} not found; {colon}"
        if unknown := re.search(r"^Unknown command line flag '((?!config\.)\w+\.[\w.]+)'", line):
            line += f"; a key of the config is changed by --config.{unknown[1]}"
        raise UserError(line) from error


def whole_key(part: str, arguments: Sequence[str]) -> str:
    """Returns the key of the flag that has this part, as mla.wieght for wieght; the part if there is none."""
    flags_of_keys = (argument.partition("=")[0] for argument in arguments if argument.startswith("--config."))
    keys = (flag.removeprefix("--config.") for flag in flags_of_keys)
    return next((key for key in keys if part in key.split(".")), part)


def read_config(file: str, rest: list[str]) -> Any:
    """Returns the config of FILE or FILE:VARIANT, changed by flags such as --config.model.stride=16.

    For commands that use argparse. Raises UserError for any other flag.
    """
    values = flags.FlagValues()
    arguments = ["", f"--config={file}", *rest]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    with faults_in_one_line(arguments):
        left = values(arguments)
        values.config.to_dict()  # a config file that fails raises only now
    if left[1:]:
        raise UserError(f"unexpected arguments: {' '.join(left[1:])}")
    return values.config
