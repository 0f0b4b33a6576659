"""What is wrong with --config and the keys set behind it, in one line: for every command that takes them."""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

from ivt_jax.common.errors import UserError


class LastTuple(flags.ArgumentParser):
    """Parses a tuple as ml_collections does; of a repeated flag the last one counts, as of every other flag.

    ml_collections joins the values of a repeated flag where the parser is its own TupleParser.
    """

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Returns "(96, 48)" as (96, 48), and a single word as a tuple of one. Raises ValueError."""
        try:
            return TupleParser().parse(argument)
        except ValueError:
            raise ValueError("expected a tuple, such as '(96,48)' or \"('sentence','word')\"") from None

    def flag_type(self) -> str:
        """Returns what the help calls it."""
        return "tuple"


config_flags.register_flag_parser_for_type(tuple, LastTuple())


@contextlib.contextmanager
def faults_in_one_line() -> Iterator[None]:
    """What absl's parser and a config file refuse becomes a UserError."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        cause = error.args[0]  # of a nested key it is the KeyError of the part
        key, *hint = str(cause.args[0] if isinstance(cause, KeyError) else cause).splitlines()
        raise UserError(" ".join([f"the config has no key {key}; configs/default.py lists all.", *hint])) from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")) from error


def read_config(file: str, rest: list[str]) -> Any:
    """The config of a file, with a variant where it has them, changed by flags such as --config.model.stride=16.

    For commands with a parser of their own. Raises UserError for what is no such flag.
    """
    values = flags.FlagValues()
    arguments = ["", f"--config={file}", *rest]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    with faults_in_one_line():
        left = values(arguments)
        values.config.to_dict()  # a config that cannot be loaded says so only when it is read
    if left[1:]:
        raise UserError(f"unexpected arguments: {' '.join(left[1:])}")
    return values.config
