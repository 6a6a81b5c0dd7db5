"""One measurement for `benchmarks.lammps`, on all processes of MPI; what it found goes to a file.

    mpiexec -n N python -m benchmarks.lammps_worker OUT FORCES CELLS STEPS

FORCES: `network`, `calculator` (that of ASE, one process, no LAMMPS), a dtype (for deviations from
that calculator), or a pair style and its coefficients. CELLS³ diamond cells of silicon, 8 atoms
each, shaken, at 300 K.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from lammps import lammps
from mpi4py import MPI

from molnets.coupling.ase import ModelCalculator
from molnets.coupling.lammps import attach
from molnets.potential import Potential
from schnet_helpers import ElementEmbedding, SchNet

CUTOFF, SKIN, MASS, CONSTANT = 5.0, 1.0, 28.0855, 5.43
FEATURES, BLOCKS, GAUSSIANS = 64, 3, 25
WARM_UP, BLOCK = 5, 5  # steps


def potential(dtype: torch.dtype = torch.float32) -> Potential:
    """Return the network, with random weights."""
    torch.manual_seed(0)
    sizes = FEATURES, FEATURES, BLOCKS, GAUSSIANS, CUTOFF, 4.0
    return Potential(SchNet(*sizes, ElementEmbedding(FEATURES)).to(dtype), scale=20.0)


def silicon(cells: int) -> Atoms:
    """Return shaken atoms with velocities of 300 K; the same ones each time."""
    rng = np.random.default_rng(0)
    atoms = bulk("Si", "diamond", a=CONSTANT, cubic=True).repeat(cells)
    atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
    velocities = rng.standard_normal(atoms.positions.shape)
    velocities *= np.sqrt(300 * units.kB / MASS)
    atoms.set_masses(np.full(len(atoms), MASS))
    atoms.set_velocities(velocities - velocities.mean(axis=0))
    atoms.wrap()
    return atoms


def box_of(cells: int) -> lammps:
    """Return LAMMPS with the box and no atoms."""
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
    side = cells * CONSTANT
    for command in (
        "units metal", "atom_style atomic", f"region box block 0 {side} 0 {side} 0 {side}",
        "create_box 1 box", f"mass 1 {MASS}",
    ):  # fmt: skip
        lmp.command(command)
    return lmp


def fill(lmp: lammps, cells: int) -> None:
    """Create the atoms: those of `silicon`, or, where they are very many, others like them."""
    if cells <= 16:
        atoms, ids = silicon(cells), list(range(1, 8 * cells**3 + 1))
        velocities = atoms.get_velocities() * units.fs * 1e3  # Å/ps
        lmp.create_atoms(len(atoms), ids, [1] * len(atoms), atoms.positions.ravel().tolist(),
                         velocities.ravel().tolist())  # fmt: skip
        return
    for command in (f"lattice diamond {CONSTANT}", "create_atoms 1 box",
                    "displace_atoms all random 0.08 0.08 0.08 7",
                    "velocity all create 300 7 loop geom"):  # fmt: skip
        lmp.command(command)


def in_lammps(forces: str, cells: int, steps: int) -> dict:
    """Measure steps of constant energy."""
    comm, lmp = MPI.COMM_WORLD, box_of(cells)
    field = None
    if forces == "network":
        field = attach(lmp, potential(), [14], SKIN)
    else:
        style, coefficients = forces.split(";")
        for command in (f"pair_style {style}", f"pair_coeff * * {coefficients}",
                        f"neighbor {SKIN} bin"):  # fmt: skip
            lmp.command(command)
    fill(lmp, cells)
    for command in ("timestep 0.001", "fix move all nve", "thermo_modify norm no", "run 0",
                    f"run {WARM_UP}"):  # fmt: skip
        lmp.command(command)
    energy, sent, calls = lmp.get_thermo("etotal"), field and field.sent, field and field.num_calls
    times = []
    for _ in range(max(1, steps // BLOCK)):
        comm.Barrier()
        started = time.perf_counter()
        lmp.command(f"run {BLOCK} pre no post no")
        times.append((time.perf_counter() - started) / BLOCK)
    num = int(lmp.get_natoms())
    drift = abs(lmp.get_thermo("etotal") - energy) / num
    memory = comm.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    found = {"atoms": num, "ranks": comm.size, "seconds": statistics.median(times), "drift": drift,
             "memory": memory, "copies": comm.gather(lmp.extract_setting("nghost"))}  # fmt: skip
    if field is not None:
        each = (field.sent - sent) / (field.num_calls - calls)
        found |= {"sent": comm.gather(each), "builds": field.num_builds}
    return found


def in_ase(cells: int, steps: int) -> dict:
    """Measure steps of constant energy of ASE with the calculator."""
    atoms = silicon(cells)
    atoms.calc = ModelCalculator(potential(), SKIN)
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.run(WARM_UP)
    times = []
    for _ in range(max(1, steps // BLOCK)):
        started = time.perf_counter()
        dynamics.run(BLOCK)
        times.append((time.perf_counter() - started) / BLOCK)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"atoms": len(atoms), "seconds": statistics.median(times), "memory": [memory]}


def off_by(cells: int, dtype: torch.dtype) -> dict:
    """Compare energy, forces and stress of the first step with the calculator's."""
    comm, lmp, model = MPI.COMM_WORLD, box_of(cells), potential(dtype)
    attach(lmp, model, [14], SKIN)
    fill(lmp, cells)
    lmp.command("thermo_modify norm no")
    lmp.command("run 0")
    num, arrays = lmp.extract_setting("nlocal"), lmp.numpy
    own = [arrays.extract_atom(name, nelem=num, dim=dim).copy() for name, dim in
           (("id", 1), ("f", 3))]  # fmt: skip
    parts, energy = comm.gather(own), lmp.get_thermo("pe")
    if comm.rank:
        return {}
    order = np.concatenate([part[0] for part in parts]).argsort()
    forces = np.concatenate([part[1] for part in parts])[order]
    atoms = silicon(cells)
    atoms.calc = ModelCalculator(model)
    return {"atoms": len(atoms), "ranks": comm.size, "dtype": str(dtype).removeprefix("torch."),
            "energy": abs(energy - atoms.get_potential_energy()) / len(atoms),
            "forces": float(abs(forces - atoms.get_forces()).max()),
            "rms": float(np.sqrt((atoms.get_forces() ** 2).mean()))}  # fmt: skip


def main() -> None:
    """Measure what the command line asks for."""
    torch.set_num_threads(1)
    out, forces, cells, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if forces == "calculator":
        found = in_ase(cells, steps)
    elif forces in ("float32", "float64"):
        found = off_by(cells, getattr(torch, forces))
    else:
        found = in_lammps(forces, cells, steps)
    if MPI.COMM_WORLD.rank == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
