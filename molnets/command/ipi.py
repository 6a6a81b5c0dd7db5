"""molnets ipi: a client that gives i-PI the energies and forces of a trained network."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from molnets.checks import expect
from molnets.command.md import read
from molnets.coupling.ipi import PORT, serve
from molnets.options import add_options, chosen, option

DESCRIPTION = (
    "Answer i-PI, which has to listen already, until it ends. Start as many as there are cores, "
    "each with OMP_NUM_THREADS=1: i-PI gives every bead or replica to one that is free."
)
PERIODIC = ("file", "yes", "no")


@dataclass(frozen=True)
class Place:
    """Where i-PI listens, and what it drives."""

    unix: str = option("", "name of the socket, for an i-PI on this machine with mode='unix'")
    host: str = option("localhost", "where i-PI runs, if --unix is not given")
    port: int = option(PORT, "where it listens, if --unix is not given")
    periodic: str = option(
        "file", "whether atoms are periodic along all vectors of i-PI's cell; file: as FRAME says, "
        "and plain xyz files say no"
    )  # fmt: skip
    skin: float = option(0.3, "how much further than the cutoff the neighbour list reaches, in Å")


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument("checkpoint", help="a file that `molnets train` wrote")
    parser.add_argument("frame", help="the atoms in i-PI's order: the file that i-PI starts from, "
                        "or any other that ASE reads; its last frame")  # fmt: skip
    add_options(parser, Place, {"periodic": PERIODIC})


def run(options: Namespace) -> int:
    """Serve i-PI; return and print how often.

    Raises:
        ConnectionError, FloatingPointError, TypeError, ValueError: as `serve`.
    """
    place = chosen(options, Place)
    expect(0 < place.port < 2**16, "port", "a number from 1 to 65535", place.port)
    atoms = read("frame", options.frame)
    if place.periodic != "file":
        atoms.pbc = place.periodic == "yes"
    along = "".join(axis for axis, yes in zip("abc", atoms.pbc, strict=True) if yes) or "none"
    print(f"{len(atoms)} atoms, {atoms.symbols}; periodic along {along}", flush=True)
    where = {"unix": place.unix or None, "host": place.host, "port": place.port}
    num_calls = serve(options.checkpoint, atoms, **where, skin=place.skin)
    print(f"i-PI asked {num_calls} times")
    return num_calls
