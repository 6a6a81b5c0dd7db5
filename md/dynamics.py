"""Molecular dynamics of many replicas at once, with any force field.

Axes:   R independent replicas, n atoms in each, T recorded frames.
Units:  any consistent set; time is length · √(mass / energy). Reduced Lennard-Jones units and ASE's
        (eV, Å, u, with `k_B=ase.units.kB` and times in multiples of `ase.units.fs`) both are.
Forces: a `force_fn` is all that dynamics sees: positions (R, n, 3) -> energies (R,) and forces
        (R, n, 3). Replicas never see each other.

[1] Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 (BAOAB).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from md.potential import energy_and_forces

if TYPE_CHECKING:
    from ase import Atoms

COLUMNS = "Properties=species:S:1:pos:R:3:momenta:R:3:forces:R:3:masses:R:1"
MAX_PAIRS = 2**16  # pairs of atoms held in memory at once: they stay in the processor's cache

ForceFn = Callable[[Tensor], tuple[Tensor, Tensor]]


class State(NamedTuple):
    """Positions and velocities (R, n, 3), energies (R,), forces (R, n, 3) and masses (n,)."""

    positions: Tensor
    velocities: Tensor
    energies: Tensor
    forces: Tensor
    masses: Tensor


class Frames(NamedTuple):
    """Steps (T,), positions and velocities (T, R, n, 3), energies and kinetic energies (T, R)."""

    steps: Tensor
    positions: Tensor
    velocities: Tensor
    energies: Tensor
    kinetic_energies: Tensor


class ExplosionError(RuntimeError):
    """Replicas exploded at a step; `frames` and the last sound `state` are what was before."""

    def __init__(self, replicas: list[int], step: int, frames: Frames, state: State) -> None:
        super().__init__(f"replicas {replicas} exploded at step {step}; the frames before it stay")
        self.replicas, self.step, self.frames, self.state = replicas, step, frames, state


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def lennard_jones(
    epsilon: float = 1.0, sigma: float = 1.0, cutoff: float | None = None,
    box: float | Sequence[float] | None = None,
) -> ForceFn:  # fmt: skip
    """Return the Lennard-Jones force field of a cluster, or of a periodic box.

    E = Σ_{i<j} 4ε ((σ/d)¹² − (σ/d)⁶);  F_i = Σ_j 24ε (2 (σ/d)¹² − (σ/d)⁶) (r_i − r_j) / d²

    Pairs at or beyond the cutoff do not count; the energy is not shifted, and has no tail.

    Args:
        epsilon: ε, the depth of the well.
        sigma: σ, where the energy of a pair is zero.
        cutoff: the largest distance that counts; needed in a box.
        box: the edge of a cubic box or the three edges; pairs are at their minimum image.

    Raises:
        ValueError: for a number that is not positive, or a cutoff beyond half the box.
    """
    for name, value in (("epsilon", epsilon), ("sigma", sigma), ("cutoff", cutoff)):
        _expect(value is None or 0 < value < math.inf, name, "a positive number", value)
    edges = None if box is None else _box_edges(box)
    if edges is not None:
        ok = cutoff is not None and cutoff <= min(edges) / 2
        _expect(ok, "cutoff", f"at most half the box, {min(edges) / 2}", cutoff)

    def force_fn(pos: Tensor) -> tuple[Tensor, Tensor]:
        _expect_positions(pos)
        n, parts = pos.shape[1], []
        for replicas in pos.detach().split(max(1, MAX_PAIRS // n**2)):
            x = replicas.permute(2, 1, 0).contiguous()  # (R, n, 3) -> (3, n, R): sums run fast
            rows = torch.arange(n).split(max(1, MAX_PAIRS // (n * x.shape[2])))
            pieces = [_pair_sums(x, row, epsilon, sigma, cutoff, edges) for row in rows]
            energy_i, force = (torch.cat(p, dim=-2) for p in zip(*pieces, strict=True))
            parts.append((energy_i.sum(0), force.permute(2, 1, 0)))  # (R,), (R, n, 3)
        energies, forces = zip(*parts, strict=True)
        return torch.cat(energies), torch.cat(forces).contiguous()

    return force_fn


def _box_edges(box: float | Sequence[float]) -> tuple[float, float, float]:
    edges = (box,) * 3 if isinstance(box, (int, float)) else tuple(float(edge) for edge in box)
    ok = len(edges) == 3 and all(0 < edge < math.inf for edge in edges)
    _expect(ok, "box", "one or three positive edges", box)
    return edges


def _expect_positions(pos: Tensor) -> None:
    ok = pos.ndim == 3 and pos.shape[2] == 3 and pos.is_floating_point() and pos.numel() > 0
    got = f"{pos.dtype} {tuple(pos.shape)}"
    _expect(ok, "positions", "a floating-point (R, n, 3) with R, n > 0", got)


def _pair_sums(
    x: Tensor, rows: Tensor, epsilon: float, sigma: float, cutoff: float | None,
    edges: tuple[float, float, float] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first, last = int(rows[0]), int(rows[-1]) + 1
    r_ij = x[:, first:last, None] - x[:, None]  # (3, n, R) -> (3, rows, n, R)
    if edges is not None:
        box = x.new_tensor(edges).view(3, 1, 1, 1)
        r_ij -= box * (r_ij / box).round()
    d2 = r_ij[0].square().addcmul_(r_ij[1], r_ij[1]).addcmul_(r_ij[2], r_ij[2])
    d2.diagonal(offset=first).fill_(math.inf)  # an atom does not act on itself
    if cutoff is not None:
        d2.masked_fill_(d2 >= cutoff**2, math.inf)
    inverse = d2.reciprocal_().mul_(sigma**2)  # (σ/d)²
    s6 = inverse * inverse * inverse
    s12 = s6 * s6
    energy_i = 2 * epsilon * (s12 - s6).sum(1)  # half of each pair: (rows, n, R) -> (rows, R)
    strength = s12.mul_(2).sub_(s6).mul_(inverse).mul_(24 * epsilon / sigma**2)
    return energy_i, r_ij.mul_(strength).sum(2)  # (3, rows, n, R) -> (3, rows, R)


def model_force_fn(model: nn.Module, z: Tensor) -> ForceFn:
    """Return the force field of a model; the replicas are the samples of one batch.

    Args:
        model: any `model(z, pos, batch) -> (B, 1)`.
        z: atomic numbers of one replica, (n,) or (n, 1).

    Raises:
        ValueError: if `z` has another shape, or another number of atoms than the positions.
    """
    _expect(z.shape in {(z.numel(),), (z.numel(), 1)}, "z", "shape (n,) or (n, 1)", tuple(z.shape))
    n, z = z.numel(), z.reshape(-1, 1)

    def force_fn(pos: Tensor) -> tuple[Tensor, Tensor]:
        _expect_positions(pos)
        _expect(pos.shape[1] == n, "positions", f"{n} atoms as z", pos.shape[1])
        batch = torch.arange(len(pos), device=pos.device).repeat_interleave(n)
        all_z = z.to(pos.device).repeat(len(pos), 1)  # (n, 1) -> (R n, 1)
        energy, forces = energy_and_forces(model, all_z, pos.reshape(-1, 3), batch)
        return energy.squeeze(1), forces.view_as(pos)  # (R,), (R, n, 3)

    return force_fn


def start(force_fn: ForceFn, positions: Tensor, velocities: Tensor, masses: Tensor) -> State:
    """Return the state to start from; positions and velocities are (R, n, 3), masses (n,).

    Raises:
        ValueError: for wrong shapes, masses that are not positive, or energies or forces that are
            not finite.
    """
    _expect_positions(positions)
    shape = tuple(positions.shape)
    _expect(velocities.shape == shape, "velocities", f"shape {shape}", tuple(velocities.shape))
    _expect_masses(masses, shape[1])
    positions, velocities = positions.detach().clone(), velocities.detach().clone()
    state = State(positions, velocities, *force_fn(positions), masses.to(positions))
    for replica, sound in enumerate(_is_finite(state).tolist()):
        energy = state.energies[replica].item()
        _expect(sound, "positions", "finite energy and forces", f"{energy} for replica {replica}")
    return state


def _expect_masses(masses: Tensor, n: int) -> None:
    _expect(masses.shape == (n,), "masses", f"shape ({n},)", tuple(masses.shape))
    _expect(bool((masses > 0).all()), "masses", "positive masses", masses.tolist())


def maxwell_boltzmann(
    masses: Tensor, temperature: float, num_replicas: int, generator: torch.Generator,
    *, k_B: float = 1.0,
) -> Tensor:  # fmt: skip
    """Draw velocities, (R, n, 3): each component is normal with the variance k_B T / m_i."""
    _expect_masses(masses, len(masses))
    _expect(0 <= temperature < math.inf, "temperature", "a number >= 0", temperature)
    _expect(num_replicas > 0, "num_replicas", "a positive integer", num_replicas)
    like = masses.new_empty(num_replicas, len(masses), 3)
    return _normal(like, generator) * (k_B * temperature / masses).sqrt().unsqueeze(1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    device = generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like)


def remove_drift(velocities: Tensor, masses: Tensor) -> Tensor:
    """Return the velocities, (R, n, 3), with the centre of mass at rest: v_i − Σ m v / Σ m."""
    weights = (masses / masses.sum()).unsqueeze(1)  # (n, 1)
    return velocities - (weights * velocities).sum(dim=1, keepdim=True)


def remove_rotation(positions: Tensor, velocities: Tensor, masses: Tensor) -> Tensor:
    """Return the velocities, (R, n, 3), without angular momentum about the centre of mass.

    v_i − ω × x_i;  I ω = L = Σ m x × v;  I = Σ m (x² 1 − x xᵀ);  x_i = r_i − Σ m r / Σ m

    A linear molecule has no inertia about its axis: that component of ω is zero.
    """
    m = masses.unsqueeze(1)  # (n, 1)
    x = remove_drift(positions, masses)
    angular = (m * torch.linalg.cross(x, remove_drift(velocities, masses))).sum(dim=1)  # (R, 3)
    moments = torch.einsum("nk,rnc,rnd->rcd", m, x, x)
    trace = moments.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    inertia = trace * torch.eye(3).to(x) - moments  # (R, 3, 3)
    omega = torch.linalg.pinv(inertia, rtol=1e-6, hermitian=True) @ angular.unsqueeze(2)
    return velocities - torch.linalg.cross(omega.transpose(1, 2), x)  # (R, 1, 3) × (R, n, 3)


def kinetic_energy(velocities: Tensor, masses: Tensor) -> Tensor:
    """Return ½ Σ m v² of each replica: (R, n, 3) -> (R,)."""
    return 0.5 * (masses.unsqueeze(1) * velocities.square()).sum(dim=(-2, -1))


def temperature_of(
    velocities: Tensor, masses: Tensor, *, num_constraints: int = 0, k_B: float = 1.0
) -> Tensor:
    """Return T = 2 K / ((3n − constraints) k_B) of each replica: (R, n, 3) -> (R,)."""
    dof = 3 * len(masses) - num_constraints  # 3 if the centre of mass rests, 6 without rotation
    return 2 * kinetic_energy(velocities, masses) / (dof * k_B)


def velocity_verlet(force_fn: ForceFn, state: State, dt: float) -> State:
    """Make one step of length Δt at constant energy.

    equation                      code
    v ← v + ½ Δt F(x) / m         v = state.velocities + kick * state.forces
    x ← x + Δt v                  x = state.positions + dt * v
    v ← v + ½ Δt F(x) / m         v = v + kick * forces
    """
    kick = 0.5 * dt / state.masses.unsqueeze(1)  # (n,) -> (n, 1)
    v = state.velocities + kick * state.forces
    x = state.positions + dt * v
    energies, forces = force_fn(x)
    v = v + kick * forces
    return State(x, v, energies, forces, state.masses)


def langevin_baoab(
    force_fn: ForceFn, state: State, dt: float, temperature: float, friction: float,
    generator: torch.Generator, *, k_B: float = 1.0,
) -> State:  # fmt: skip
    """Make one step of Langevin dynamics at the temperature T, split as B A O A B [1].

    equation                                        code
    B  v ← v + ½ Δt F(x) / m                        v = state.velocities + kick * state.forces
    A  x ← x + ½ Δt v                               x = state.positions + 0.5 * dt * v
    O  v ← c v + √((1 − c²) k_B T / m) N(0, 1)      v = c * v + noise * _normal(v, generator)
       c = exp(−γ Δt)                               c = math.exp(-friction * dt)
    A  x ← x + ½ Δt v                               x = x + 0.5 * dt * v
    B  v ← v + ½ Δt F(x) / m                        v = v + kick * forces

    The friction γ is an inverse time; all replicas draw from one generator.
    """
    for name, value in (("temperature", temperature), ("friction", friction)):
        _expect(0 <= value < math.inf, name, "a number >= 0", value)
    m = state.masses.unsqueeze(1)  # (n,) -> (n, 1)
    kick, c = 0.5 * dt / m, math.exp(-friction * dt)
    noise = ((1 - c**2) * k_B * temperature / m).sqrt()
    v = state.velocities + kick * state.forces
    x = state.positions + 0.5 * dt * v
    v = c * v + noise * _normal(v, generator)
    x = x + 0.5 * dt * v
    energies, forces = force_fn(x)
    v = v + kick * forces
    return State(x, v, energies, forces, state.masses)


def run(
    step: Callable[[State], State], state: State, num_steps: int, *, every: int = 1,
    trajectory: ExtxyzWriter | None = None, first_step: int = 0, max_move: float = 1.0,
    progress: bool = True,
) -> tuple[State, Frames]:  # fmt: skip
    """Make many steps; return the last state, and the frames after every so many steps.

    The start itself is no frame, so the frames of consecutive runs follow one another.

    Args:
        step: one step, e.g. `lambda state: velocity_verlet(force_fn, state, dt)`.
        state: where to start, from `start` or an earlier run.
        num_steps: how many steps to make.
        every: steps from one frame to the next.
        trajectory: where frames are written as well, while the run goes on.
        first_step: steps made by earlier runs; the frames are numbered from there.
        max_move: the furthest that an atom may move along an axis in one step.
        progress: show a progress bar.

    Raises:
        ExplosionError: if a replica moves further, or is not finite any more.
    """
    _expect(num_steps >= 0, "num_steps", "a number >= 0", num_steps)
    _expect(every > 0, "every", "a positive number", every)
    steps, frames = [], [state]
    for i in tqdm(range(1, num_steps + 1), unit="step", disable=not progress):
        before, state = state, step(state)
        moved = (state.positions - before.positions).abs().amax(dim=(1, 2))
        sound = (moved <= max_move) & _is_finite(state)  # (R,); a NaN is not <= anything
        if not sound.all():
            replicas = (~sound).nonzero().flatten().tolist()
            raise ExplosionError(replicas, first_step + i, _collect(steps, frames), before)
        if i % every == 0:
            steps.append(first_step + i)
            frames.append(state)
            if trajectory is not None:
                trajectory.write(steps[-1], state)
    return state, _collect(steps, frames)


def _is_finite(state: State) -> Tensor:
    total = state.forces.sum(dim=(1, 2)) + state.velocities.sum(dim=(1, 2)) + state.energies
    return total.isfinite()  # (R,)


def _collect(steps: list[int], states: list[State]) -> Frames:
    x, v, energies, _, masses = zip(*states, strict=True)
    x, v, energies = (torch.stack(parts)[1:] for parts in (x, v, energies))  # the start is no frame
    return Frames(torch.tensor(steps), x, v, energies, kinetic_energy(v, masses[0]))


class ExtxyzWriter:
    """Write an extended XYZ file, frame by frame, so that a killed run keeps its frames.

    A frame of R replicas is R entries with `step` and `replica` in their info, and energy, forces,
    masses and momenta where ASE looks for them. Numbers are written in full: reading is exact.

    Args:
        path: the file; a new one, or FileExistsError is raised.
        symbols: chemical symbols of the n atoms; "X" for none.
        box: the edge or edges of a periodic box.
        append: continue a file; an entry that was cut off at its end is removed.
    """

    def __init__(
        self, path: str | Path, symbols: Sequence[str], *,
        box: float | Sequence[float] | None = None, append: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.symbols, self.header = Path(path), list(symbols), 'pbc="F F F" ' + COLUMNS
        if box is not None:
            a, b, c = _box_edges(box)
            self.header = f'Lattice="{a} 0 0 0 {b} 0 0 0 {c}" pbc="T T T" ' + COLUMNS
        with open(path, "ab" if append else "xb") as file:
            file.truncate(_length_of_whole_frames(path))

    def write(self, step: int, state: State) -> None:
        """Append one entry per replica and hand them to the system: a killed process keeps them."""
        n = len(self.symbols)
        _expect(state.positions.shape[1] == n, "state", f"{n} atoms", state.positions.shape[1])
        m = state.masses.view(1, n, 1).expand(len(state.positions), n, 1)
        rows = torch.cat([state.positions, m * state.velocities, state.forces, m], dim=2).tolist()
        kinetic, text = kinetic_energy(state.velocities, state.masses).tolist(), []
        for r, energy in enumerate(state.energies.tolist()):
            info = f"step={step} replica={r} energy={energy!r} kinetic_energy={kinetic[r]!r}"
            text += [str(n), f"{info} {self.header}"]
            text += [f"{self.symbols[i]} {' '.join(map(repr, rows[r][i]))}" for i in range(n)]
        with open(self.path, "ab") as file:
            file.write("\n".join([*text, ""]).encode())


def _length_of_whole_frames(path: str | Path) -> int:
    length = 0
    with open(path, "rb") as file:
        while (count := file.readline()).endswith(b"\n"):
            ok = count.strip().isdigit()
            _expect(ok, "path", "extended XYZ", f"{count!r} for a number of atoms in {path}")
            lines = list(islice(file, int(count) + 1))  # the comment and the atoms
            if len(lines) <= int(count) or not lines[-1].endswith(b"\n"):
                break
            length += len(count) + sum(map(len, lines))
    return length


def read_trajectory(path: str | Path) -> list[Atoms]:
    """Return the entries of an extended XYZ file as ASE reads them, but for one that is cut off."""
    import ase.io  # here, so that dynamics does not need ASE

    with open(path, "rb") as file:
        whole = file.read(_length_of_whole_frames(path)).decode()
    return ase.io.read(StringIO(whole), ":", format="extxyz") if whole else []
