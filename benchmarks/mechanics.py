"""A chain of hinges under springs: what simulators learn of it. Writes `mechanics.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.mechanics [--epochs 300]

Two hinges and two particles, masses 1 and rods of length 1, in a row: neighbours in the row are
bound by springs, and particles of different objects repel each other softly. Trajectories come from
velocity Verlet with the rods held by iteration (SHAKE and RATTLE), which shares nothing with the
networks. From positions and velocities, networks predict where all are after a while; three seeds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from molnets.files import write_json
from molnets.networks.egnn import EGNNSimulator
from molnets.networks.gmn import GMN, Objects

HINGES = torch.tensor([[1, 0, 2], [4, 3, 5]])  # joint, end, end: particles 0 to 5 stand in a row
SPRINGS = torch.tensor([[2, 3], [5, 6], [6, 7]])
NUM, AWAY = 8, (3, 4, 5)
TIME, DT = 1.5, 0.005
SIZES = {"train": 500, "validation": 200, "test": 500}
DIM, LAYERS, BATCH, LR = 32, 4, 50, 2e-3
SEEDS = (0, 1, 2)


class Sample(NamedTuple):
    """Positions and velocities at the start, and positions at the end, (S, NUM, 3) each."""

    x: Tensor
    v: Tensor
    end: Tensor


def rods() -> Tensor:
    """Return joint and end of the rods, (4, 2)."""
    return torch.cat([HINGES[:, :2], HINGES[:, ::2]])


def forces(x: Tensor) -> Tensor:
    """Return the forces of springs, and of a soft repulsion between different objects."""
    x = x.detach().requires_grad_()
    a, b = SPRINGS.T
    energy = 0.5 * ((x[:, a] - x[:, b]).norm(dim=2) - 1.0).square().sum()
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])
    i, j = torch.where(owner.view(-1, 1) < owner)
    energy = energy + torch.exp(-2 * (x[:, i] - x[:, j]).square().sum(dim=2)).sum()
    return -torch.autograd.grad(energy, x)[0]


def held(x: Tensor, before: Tensor) -> Tensor:
    """Return positions that are moved along the old rods until all lengths are 1 (SHAKE)."""
    for _ in range(60):
        for a, b in rods().tolist():
            r, old = x[:, b] - x[:, a], before[:, b] - before[:, a]
            too_long = r.square().sum(dim=1) - 1
            shift = (too_long / (4 * (r * old).sum(dim=1))).unsqueeze(1) * old
            x = x.index_add(1, torch.tensor([a, b]), torch.stack([shift, -shift], dim=1))
    return x


def along(v: Tensor, x: Tensor) -> Tensor:
    """Return velocities that stretch no rod (RATTLE)."""
    for _ in range(60):
        for a, b in rods().tolist():
            r = x[:, b] - x[:, a]
            rate = ((v[:, b] - v[:, a]) * r).sum(dim=1, keepdim=True) / (
                2 * r.square().sum(1, True)
            )
            v = v.index_add(1, torch.tensor([a, b]), torch.stack([rate * r, -rate * r], dim=1))
    return v


def trajectories(num: int, seed: int) -> Sample:
    """Return starts, bent at random, and where they lead."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num, NUM - 1, 3, generator=generator, dtype=torch.float64)
    steps[..., 0] += 2.0  # a row, bent
    steps = steps / steps.norm(dim=2, keepdim=True)
    x = torch.cat([torch.zeros(num, 1, 3).double(), steps.cumsum(dim=1)], dim=1)
    v = along(0.7 * torch.randn(num, NUM, 3, generator=generator, dtype=torch.float64), x)
    start, f = (x, v), forces(x)
    for _ in range(round(TIME / DT)):
        half = v + 0.5 * DT * f
        new = held(x + DT * half, x)
        half, x = (new - x) / DT, new
        f = forces(x)
        v = along(half + 0.5 * DT * f, x)
    return Sample(*start, x)


class Simulator(nn.Module):
    """A network with the features of this system, many samples at once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.embedding = nn.Embedding(NUM, DIM)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Return where the particles are after a while, (S, NUM, 3)."""
        num = len(x)
        i, j = torch.where(~torch.eye(NUM, dtype=torch.bool))
        shift = NUM * torch.arange(num).view(-1, 1)
        index = torch.stack([(j + shift).flatten(), (i + shift).flatten()])
        bound = torch.zeros(NUM, NUM, 2)
        for kind, pairs in enumerate((rods(), SPRINGS)):
            bound[pairs[:, 0], pairs[:, 1], kind] = bound[pairs[:, 1], pairs[:, 0], kind] = 1.0
        a_ij = bound[i, j].repeat(num, 1)
        h = self.embedding.weight.repeat(num, 1)
        particles = h, x.flatten(0, 1), v.flatten(0, 1) * TIME / LAYERS, index
        if isinstance(self.network, GMN):
            hinges = (HINGES + shift.unsqueeze(2)).flatten(0, 1)
            objects = Objects(torch.empty(0, 2, dtype=torch.int64), hinges)
            return self.network(*particles, objects, a_ij)[1].view_as(x)
        return self.network(*particles, a_ij)[1].view_as(x)


def fit(model: Simulator, data: dict[str, Sample], epochs: int, seed: int) -> None:
    """Train, and keep the weights that do best on the validation samples."""
    train, validation = ([y.float() for y in data[part]] for part in ("train", "validation"))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator, best = torch.Generator().manual_seed(seed), (float("inf"), {})
    for epoch in range(epochs):
        for chosen in torch.randperm(len(train[0]), generator=generator).split(BATCH):
            loss = (model(train[0][chosen], train[1][chosen]) - train[2][chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        if epoch % 10 == 9:
            with torch.no_grad():
                error = float((model(*validation[:2]) - validation[2]).square().mean())
            if error < best[0]:
                best = error, {k: y.clone() for k, y in model.state_dict().items()}
    model.load_state_dict(best[1])


def errors(end: Tensor, sample: Sample) -> dict[str, float]:
    """Return the error of the positions, and of the rods' lengths at the most."""
    a, b = rods().T
    stretch = (end[:, a] - end[:, b]).norm(dim=2) - 1
    distance = (end - sample.end).norm(dim=2)
    return {"error": float(distance.mean()), "stretch": float(stretch.abs().mean()),
            "largest_stretch": float(stretch.abs().max())}  # fmt: skip


def main() -> None:
    """Make the trajectories, train, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    data = {part: trajectories(num, seed) for seed, (part, num) in enumerate(SIZES.items())}
    test = data["test"]
    rows: list[dict[str, Any]] = [
        {"model": "straight on", **errors(test.x + TIME * test.v, test)},
        {"model": "no motion", **errors(test.x, test)},
    ]
    kinds = {
        "EGNN": lambda: EGNNSimulator(DIM, LAYERS, 2),
        "GMN": lambda: GMN(DIM, LAYERS, 2),
        "GMN, learned": lambda: GMN(DIM, LAYERS, 2, learnable=True),
    }
    for name, make in kinds.items():
        for seed in SEEDS:
            torch.manual_seed(seed)
            model, started = Simulator(make()), time.perf_counter()
            fit(model, data, options.epochs, seed)
            seconds = time.perf_counter() - started
            model.double()
            with torch.no_grad():
                found = errors(model(test.x, test.v), test)
            parameters = sum(weight.numel() for weight in model.parameters())
            rows.append({"model": name, "seed": seed, "seconds": seconds,
                         "parameters": parameters, **found})  # fmt: skip
            print(rows[-1], flush=True)
    write_json(rows, options.out)


if __name__ == "__main__":
    main()
