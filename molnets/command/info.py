"""molnets info: what a checkpoint is and where it comes from."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from molnets import checkpoint

DESCRIPTION = "Print what a checkpoint is and where it comes from."


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument("checkpoint", help="a file that `molnets train` wrote")


def run(options: Namespace) -> None:
    """Print the table."""
    rows = checkpoint.describe(options.checkpoint)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))
