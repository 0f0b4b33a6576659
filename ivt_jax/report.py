"""Write the report of a run, one HTML file that contains its figures and pictures and opens offline.

    python -m ivt_jax.report --workdir=runs/demo

A training run writes its report at the end; this command writes one at any time.
"""

import argparse
import sys

from ivt_jax.common.command import exit_code, filled


def main(argv: list[str] | None = None) -> int:
    """Writes the report and prints its path; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.report", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=filled, required=True, help="folder of the run")
    args = parser.parse_args(argv)
    from ivt_jax.pages.report import write_report

    return exit_code(lambda: print(write_report(args.workdir)))


if __name__ == "__main__":
    sys.exit(main())
