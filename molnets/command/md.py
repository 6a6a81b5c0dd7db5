"""molnets md: molecular dynamics of ASE on a trained network, written as extended XYZ."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from molnets.checks import expect, expect_not_negative, expect_positive, expect_size, no_file
from molnets.coupling.ase import ModelCalculator
from molnets.dynamics import maxwell_boltzmann, remove_drift
from molnets.options import add_options, chosen, option

DESCRIPTION = (
    "Run molecular dynamics in eV, Å and fs with a trained network. Where START has velocities, in "
    "extended XYZ as ASE's `momenta`, they are kept; else they are drawn at the temperature."
)
VELOCITIES = ("velocities", "velocity", "velo", "vel")  # columns of other programs
ENSEMBLES = ("langevin", "nve", "npt")


@dataclass(frozen=True)
class Protocol:
    """How to move the atoms."""

    ensemble: str = option(
        "langevin", "langevin: constant temperature; nve: constant energy; npt: constant "
        "temperature and pressure, in a cell of constant shape"
    )  # fmt: skip
    temperature: float = option(300.0, "temperature in K, of velocities that are drawn too")
    pressure: float = option(0.0, "pressure in GPa, for npt")
    timestep: float = option(0.5, "time step in fs")
    steps: int = option(1000, "number of steps")
    every: int = option(10, "steps from one frame to the next")
    friction: float = option(0.01, "friction in 1/fs, for langevin")
    relaxation: float = option(100.0, "relaxation time of the thermostat in fs, for npt; that of "
                               "the barostat is ten times as long")  # fmt: skip
    skin: float = option(0.3, "how much further than the cutoff the neighbour list reaches, in Å")
    seed: int = option(0, "seed of velocities and noise")


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument("checkpoint", help="a file that `molnets train` wrote")
    parser.add_argument("start", help="atoms to start from: a file that ASE reads; its last frame")
    parser.add_argument("--out", type=Path, default=Path("trajectory.extxyz"),
                        help="trajectory; a new file")  # fmt: skip
    add_options(parser, Protocol, {"ensemble": ENSEMBLES})


def run(options: Namespace) -> Atoms:
    """Run, and return the atoms as they are in the end.

    Raises:
        FileExistsError: if the trajectory is there already.
        FloatingPointError: if the energy is no number any more; the frames before it stay.
        ValueError: for numbers that make no sense, or npt without a cell.
    """
    protocol = chosen(options, Protocol)
    _check(protocol)
    if options.out.exists():
        raise FileExistsError(f"out: expected a new file, got {options.out}, which exists")
    atoms = read("start", options.start)
    _expect_no_other_velocities(atoms)
    free = atoms.get_number_of_degrees_of_freedom()
    expect(free > 0, "start", "atoms that can move", f"{len(atoms)} that constraints hold")
    atoms.calc = ModelCalculator(options.checkpoint, protocol.skin)
    rng = np.random.RandomState(protocol.seed)
    if not atoms.get_velocities().any():
        _draw_velocities(atoms, protocol)
    dynamics = _dynamics(atoms, protocol, rng)
    begin = atoms.get_total_energy()  # compiles, and finds out what is wrong with the atoms
    options.out.touch(exist_ok=False)
    temperatures = _move(dynamics, atoms, protocol, options.out)
    change = 1000 * (atoms.get_total_energy() - begin) / len(atoms)
    print(f"{protocol.steps} steps of {protocol.timestep} fs, {protocol.ensemble}; "
          f"mean temperature {np.mean(temperatures):.1f} K, total energy changed by {change:.3g} "
          f"meV per atom; {len(temperatures)} frames in {options.out}")  # fmt: skip
    return atoms


def read(name: str, path: str) -> Atoms:
    """Return the last frame of a file of atoms.

    Args:
        name: of the argument, for errors.
        path: a file that ASE reads.

    Raises:
        ValueError: if there is no such file, or ASE does not read it.
    """
    expect(Path(path).is_file(), name, "a file of atoms", no_file(path))
    try:
        return ase.io.read(path, do_not_split_by_at_sign=True)
    except Exception as error:  # each format has its own
        got = f"{type(error).__name__} {error}"
        raise ValueError(f"{name}: expected a file that ASE reads, {path}, got {got}") from error


def _expect_no_other_velocities(atoms: Atoms) -> None:
    """Expect velocities as momenta: columns that ASE does not know are in anyone's unit."""
    names = [name for name in atoms.arrays if name.lower() in VELOCITIES]
    ok = not any(atoms.arrays[name].any() for name in names) or atoms.get_momenta().any()
    expected = ("velocities as ASE's `momenta`, which atoms.set_velocities(v / ase.units.fs) "
                "makes of v in Å/fs, or none")  # fmt: skip
    expect(ok, "start", expected, f"a column {', '.join(names)}, whose unit is not known")


def _check(protocol: Protocol) -> None:
    for name in ("timestep", "relaxation"):
        expect_positive(name, getattr(protocol, name))
    for name in ("temperature", "friction", "skin"):
        expect_not_negative(name, getattr(protocol, name))
    expect(math.isfinite(protocol.pressure), "pressure", "a finite number", protocol.pressure)
    for name in ("steps", "every"):
        expect_size(name, getattr(protocol, name))


def _draw_velocities(atoms: Atoms, protocol: Protocol) -> None:
    masses = torch.from_numpy(atoms.get_masses())
    generator = torch.Generator().manual_seed(protocol.seed)
    drawn = maxwell_boltzmann(masses, protocol.temperature, 1, generator, k_B=units.kB)
    atoms.set_velocities(remove_drift(drawn, masses)[0].numpy())


def _dynamics(atoms: Atoms, protocol: Protocol, rng: np.random.RandomState) -> MolecularDynamics:
    dt, T = protocol.timestep * units.fs, protocol.temperature
    if protocol.ensemble == "nve":
        return VelocityVerlet(atoms, timestep=dt)
    if protocol.ensemble == "langevin":
        friction = protocol.friction / units.fs
        # with its centre of mass held, ASE's Langevin does not sample the ensemble
        return Langevin(
            atoms, timestep=dt, temperature_K=T, friction=friction, fixcm=False, rng=rng
        )
    from ase.md.nose_hoover_chain import IsotropicMTKNPT  # not in every ASE

    expected = "a cell that is periodic along three independent vectors, for npt"
    got = f"pbc {atoms.pbc.tolist()}, cell {atoms.cell.tolist()}"
    expect(atoms.pbc.all() and atoms.cell.rank == 3, "start", expected, got)
    expect(not atoms.constraints, "start", "no constraints, for npt", atoms.constraints)
    expect_positive("temperature", T)  # the thermostat divides by it
    time = protocol.relaxation * units.fs
    return IsotropicMTKNPT(
        atoms, timestep=dt, temperature_K=T, pressure_au=protocol.pressure * units.GPa,
        tdamp=time, pdamp=10 * time,
    )  # fmt: skip


def _move(dynamics: MolecularDynamics, atoms: Atoms, protocol: Protocol, out: Path) -> list[float]:
    """Make all steps, writing frames; return the temperatures of the frames."""
    temperatures = []
    bar = tqdm(total=protocol.steps, unit="step")
    for first in range(0, protocol.steps, protocol.every):
        steps = min(protocol.every, protocol.steps - first)
        dynamics.run(steps)
        energy, T = atoms.get_potential_energy(), atoms.get_temperature()
        if not math.isfinite(energy + T):
            bar.close()
            expected = "a finite energy and temperature"
            kept = f"the frames before are in {out}" if temperatures else "no frame is written"
            raise FloatingPointError(
                f"steps: expected {expected}, got {energy} eV and {T} K between steps {first} and "
                f"{first + steps}; {kept}"
            )
        ase.io.write(out, atoms, format="extxyz", append=True)
        temperatures.append(T)
        bar.update(steps)
        bar.set_postfix(T=f"{T:.0f} K", E=f"{energy:.4f} eV")
    bar.close()
    return temperatures
