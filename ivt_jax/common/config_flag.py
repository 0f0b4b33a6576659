"""--config and the flags that change its keys, with one-line errors, for every command that has them."""

import contextlib
from collections.abc import Iterator
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
def faults_in_one_line() -> Iterator[None]:
    """Turns the errors of absl's parser and of config files into UserError."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        cause = error.args[0]  # for a nested key, the KeyError of the part
        key, *hint = str(cause.args[0] if isinstance(cause, KeyError) else cause).splitlines()
        raise UserError(" ".join([f"the config has no key {key}; configs/default.py lists all.", *hint])) from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")) from error


def read_config(file: str, rest: list[str]) -> Any:
    """Returns the config of FILE or FILE:VARIANT, changed by flags such as --config.model.stride=16.

    For commands that use argparse. Raises UserError for any other flag.
    """
    values = flags.FlagValues()
    arguments = ["", f"--config={file}", *rest]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    with faults_in_one_line():
        left = values(arguments)
        values.config.to_dict()  # a config file that fails raises only now
    if left[1:]:
        raise UserError(f"unexpected arguments: {' '.join(left[1:])}")
    return values.config
