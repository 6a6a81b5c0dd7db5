"""What a linear model of body-ordered products reaches on ethanol: writes `expansion.json`.

    python -m benchmarks.expansion [--frames 970]

The atomic cluster expansion with ν = 1, 1 and 2, 1 to 3, fitted by least squares to energies and
forces of the frames that the networks train on; the ridge is chosen on 30 validation frames. Needs
the data folder (`SCHNET_DATA`, else ../shared/data).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.accuracy import DATA
from molnets.edges import Edges
from molnets.expansion import ClusterExpansion, Order
from molnets.files import write_json
from molnets.training import Dataset, load, split

ORDERS = [Order(8, 0), Order(5, 3), Order(3, 2)]
CUTOFF = 5.0
RIDGES = [10.0**power for power in range(-12, -2)]
RHO_ENERGY = 25.0  # weight of an energy beside that of the 27 components of its forces
CHUNK = 5  # frames whose derivatives are held at once


def rows_of(model: ClusterExpansion, data: Dataset, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of products, (T, Q), and minus their derivatives, (T, 3n, Q)."""
    energies, forces = [], []
    for chunk in frames.split(CHUNK):
        target = data.take(chunk, torch.float64)
        index = data.edges(CUTOFF).take(chunk, torch.float64).index
        n, T = len(target.z) // len(chunk), len(chunk)
        element = (target.z == model.elements).double()  # (N, elements)

        def sums(pos: Tensor, z=target.z, index=index, element=element, T=T, n=n) -> Tensor:
            B = model(z, Edges(index, pos[index[0]] - pos[index[1]])).view(T, n, -1)  # (T, n, P)
            return torch.einsum("tnz,tnp->tzp", element.view(T, n, -1), B).flatten(1)

        def slope(shift: Tensor, sums=sums, pos=target.pos) -> Tensor:
            return torch.func.jvp(sums, (pos,), (shift,))[1]

        shifts = torch.eye(3 * n, dtype=torch.float64).view(3 * n, 1, n, 3)
        shifts = shifts.expand(-1, T, -1, -1).reshape(3 * n, T * n, 3)
        energies.append(sums(target.pos))
        forces.append(-torch.func.vmap(slope, out_dims=1)(shifts))  # (T, 3n, Q)
    return torch.cat(energies), torch.cat(forces)


def fit(orders: list[Order], data: Dataset, parts: tuple[Tensor, Tensor, Tensor]) -> dict:
    """Fit to the first part, choose the ridge on the second, return errors on the third."""
    train, validation, test = parts
    model = ClusterExpansion(data.z.unique().tolist(), orders, CUTOFF)
    started = time.perf_counter()
    mean, gram, moment, scale = data.energies[train].mean(), 0.0, 0.0, None
    for chunk in train.split(20 * CHUNK):
        energy, force = rows_of(model, data, chunk)
        if scale is None:  # of each product, as its derivatives have it
            scale = force.square().mean(dim=(0, 1)).sqrt().clamp(min=1e-12)
        target = data.take(chunk, torch.float64)
        X = torch.cat([RHO_ENERGY**0.5 * energy, force.flatten(0, 1)]) / scale
        energies = RHO_ENERGY**0.5 * (target.energies.flatten() - mean)
        y = torch.cat([energies, target.forces.flatten()])
        gram, moment = gram + X.T @ X, moment + X.T @ y
    held, best = rows_of(model, data, validation), None
    for ridge in RIDGES:
        shifted = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:  # too small a ridge for the rounding
            continue
        w = torch.cholesky_solve(moment.unsqueeze(1), factor).squeeze(1) / scale
        error = errors(held, w, mean, data, validation)["force_mae"]
        if best is None or error < best[0]:
            best = error, ridge, w
    seconds = time.perf_counter() - started
    found = errors(rows_of(model, data, test), best[2], mean, data, test)
    return {"orders": [list(order) for order in orders], "products": model.counts(),
            "weights": len(best[2]), "ridge": best[1], "seconds": seconds, **found}  # fmt: skip


def errors(
    rows: tuple[Tensor, Tensor], w: Tensor, mean: Tensor, data: Dataset, frames: Tensor
) -> dict[str, float]:
    """Return mean absolute errors of the energies and forces."""
    target = data.take(frames, torch.float64)
    energy, force = rows[0] @ w + mean, rows[1] @ w
    energy, force = energy - target.energies.flatten(), force.flatten() - target.forces.flatten()
    return {"energy_mae": float(energy.abs().mean()), "force_mae": float(force.abs().mean())}


def main() -> None:
    """Fit with one, two and three orders, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=970, help="frames to fit to")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    data = load(DATA / "rmd17_ethanol.npz")
    parts = split(data, options.frames, 30, 0, 0)
    rows = []
    for nu in range(1, len(ORDERS) + 1):
        rows.append({"frames": options.frames} | fit(ORDERS[:nu], data, parts))
        print(rows[-1], flush=True)
    write_json(rows, options.out)


if __name__ == "__main__":
    main()
