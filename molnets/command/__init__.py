"""The command `molnets`.

train.py   molnets train DATA --out DIR
test.py    molnets test CHECKPOINT DATA
md.py      molnets md CHECKPOINT START --out FILE
lammps.py  molnets lammps CHECKPOINT SCRIPT ELEMENT …
ipi.py     molnets ipi CHECKPOINT FRAME
info.py    molnets info CHECKPOINT
runs.py     folders of runs, and what may be written there
table.py   tables in a terminal

Each subcommand has `add_arguments(parser, arguments)` and `run(options)`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
import warnings
from collections.abc import Callable
from typing import Any

from molnets import __version__
from molnets.options import Help

SUBCOMMANDS = {
    "train": "train a network on energies and forces",
    "test": "errors of a trained network on a file of frames",
    "md": "molecular dynamics with a trained network, by ASE",
    "lammps": "a LAMMPS script with a trained network, on any number of processes",
    "ipi": "energies and forces of a trained network for i-PI",
    "info": "what a checkpoint is and where it comes from",
}
CLOSED = 128 + 13  # the status of a program that ends by SIGPIPE


def run(arguments: list[str]) -> Any:
    """Run the command; return what the subcommand does.

    Raises:
        Exception: those of the subcommand.
    """
    options = _parser(arguments).parse_args(arguments)
    return _room_of(options.subcommand).run(options)


def main() -> None:
    """Run the command with the arguments of the process; what is wrong is said in one line."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _own_in_one_line(warnings.showwarning)
            _run_to_the_last_line(sys.argv[1:])
    except (ArithmeticError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left
            sys.exit(CLOSED)
        text = error.args[0] if isinstance(error, KeyError) else error  # its str is quoted
        sys.exit(f"molnets: {' '.join(str(text).split())}")
    except KeyboardInterrupt:
        sys.exit("molnets: interrupted")


def _run_to_the_last_line(arguments: list[str]) -> None:
    """Run the command, and write what waits to be written: here, where an error is caught."""
    try:
        run(arguments)
    except SystemExit:  # of --help
        print(end="", flush=True)
        raise
    print(end="", flush=True)  # nothing where there is no standard output


def _nobody_reads() -> bool:
    """Return whether standard output is a pipe that has been closed, as by `head`.

    A second attempt to write does not tell: what could not be written may be gone.
    """
    if not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # asks for errors alone
    return bool(output.poll(0))


def _own_in_one_line(show_others: Callable[..., None]) -> Callable[..., None]:
    """Return what shows a warning: one of this package in one line, others as they were shown."""

    def show(message: Warning, category: type[Warning], *where: Any) -> None:
        if category.__module__.startswith("molnets."):
            print(f"molnets: {message}", file=sys.stderr)
        else:
            show_others(message, category, *where)

    return show


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="molnets", description="Networks for molecular energies and forces."
    )
    parser.add_argument("--version", action="version", version=f"molnets {__version__}")
    rooms = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, text in SUBCOMMANDS.items():
        sub = rooms.add_parser(
            name, help=text, description=text, formatter_class=Help, allow_abbrev=False
        )
        if name in arguments[:1]:  # only this one's modules are loaded
            room = _room_of(name)
            sub.description = room.DESCRIPTION
            room.add_arguments(sub, arguments)
    return parser


def _room_of(name: str) -> Any:
    return importlib.import_module(f"molnets.command.{name}")
