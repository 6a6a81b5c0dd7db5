"""Force fields: what dynamics moves by, written down or a trained network, periodic or not.

Axes:   R independent replicas, n atoms in each; inside the Lennard-Jones sums R is the last axis.
Units:  any consistent set.
Forces: a `force_fn` is all that dynamics sees: positions (R, n, 3) -> energies (R,) and forces
        (R, n, 3). Replicas never see each other.
Cells:  lattice vectors in rows; a force field knows its own, dynamics does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from molnets.checks import as_cells, expect, expect_elements, expect_replicas
from molnets.potential import as_potential, energy_and_forces

MAX_PAIRS = 2**16  # pairs of atoms held in memory at once: they stay in the processor's cache

ForceFn = Callable[[Tensor], tuple[Tensor, Tensor]]


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
        expect(value is None or 0 < value < math.inf, name, "a positive number", value)
    edges = None if box is None else _box_edges(box)
    if edges is not None:
        ok = cutoff is not None and cutoff <= min(edges) / 2
        expect(ok, "cutoff", f"at most half the box, {min(edges) / 2}", cutoff)

    def force_fn(pos: Tensor) -> tuple[Tensor, Tensor]:
        expect_replicas(pos)
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
    expect(ok, "box", "one or three positive edges", box)
    return edges


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


def model_force_fn(
    model: nn.Module, z: Tensor, cells: Tensor | None = None,
    pbc: Tensor | Sequence[bool] | bool | None = None,
) -> ForceFn:  # fmt: skip
    """Return the force field of a model; the replicas are the samples of one batch.

    Args:
        model: any `model(z, pos, batch) -> (B, 1)`; with cells, a `Potential` or a network.
        z: atomic numbers of one replica, (n,) or (n, 1).
        cells: lattice vectors in rows, (3, 3) for all replicas or (R, 3, 3), one for each; None for
            isolated molecules.
        pbc: whether each replica is periodic along each vector, (R, 3), or (3,) or one for all;
            with cells, periodic along all of them if not given.

    Raises:
        TypeError: with cells, if `model` is neither a `Potential` nor a network.
        ValueError: if `z` or `cells` has another shape, `z` another number of atoms than the
            positions or an element that the model was not trained on, or `cells` another number of
            replicas.
    """
    expect(z.shape in {(z.numel(),), (z.numel(), 1)}, "z", "shape (n,) or (n, 1)", tuple(z.shape))
    n, z = z.numel(), z.reshape(-1, 1)
    expect(cells is not None or pbc is None, "pbc", "None without cells", pbc)
    model = model if cells is None else as_potential(model)
    expect_elements(getattr(model, "card", None), z.flatten().tolist(), "z")

    def force_fn(pos: Tensor) -> tuple[Tensor, Tensor]:
        expect_replicas(pos)
        expect(pos.shape[1] == n, "positions", f"{n} atoms as z", pos.shape[1])
        batch = torch.arange(len(pos), device=pos.device).repeat_interleave(n)
        all_z = z.to(pos.device).repeat(len(pos), 1)  # (n, 1) -> (R n, 1)
        own = None if cells is None else as_cells(cells, len(pos)).detach().to(pos)  # (R, 3, 3)
        energy, forces = energy_and_forces(model, all_z, pos.reshape(-1, 3), batch, own, pbc)
        return energy.squeeze(1), forces.view_as(pos)  # (R,), (R, n, 3)

    return force_fn
