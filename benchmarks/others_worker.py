"""The packages' side of `benchmarks.others`: runs in an environment of its own, on files.

    python others_worker.py train NAME RUN [MINUTES]   RUN/../frames.npz -> weights.pt, trained.json
    python others_worker.py answer NAME RUN            RUN/questions.npz -> answers.npz
    python others_worker.py answer-crystals NAME RUN   RUN/../frames.npz -> answers.npz
    python others_worker.py time NAME RUN              prints seconds of each call

It imports nothing of this project, and counts the processor's time of this process alone.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from others_crystals import Crystals
from others_networks import (
    BUILDERS,
    RECIPES,
    Network,
    Recipe,
    Statistics,
    edges_within,
    optimizer_of,
)
from torch import Tensor, nn

PACKAGES = {"mace": ("mace-torch", "e3nn"), "nequip": ("nequip", "e3nn"), "visnet":
            ("torch_geometric",), "tensornet": ("torchmd-net", "warp-lang"),
            "et": ("torchmd-net", "warp-lang"), "mace-small": ("mace-torch", "e3nn"),
            "schnetpack-painn": ("schnetpack",)}  # fmt: skip
LAST_STAGE = 0.8  # of the training, where a recipe has one
CHECKS = 20  # validations at most, the last at the end
CHECKING = 0.1  # one waits where those before took more than this part of the time
ROUNDS, ROUND_SECONDS = 7, 2.0


class Frames:
    """Frames of one set of atoms: z (n,), R (T, n, 3), E (T,) less its mean of training, F."""

    at_once = 10  # where no weights are changed
    most = 100  # in a step, whatever the recipe says

    def __init__(self, path: Path, unit: float) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.z = torch.from_numpy(arrays["z"])
            given = {part: [arrays[f"{part}_{x}"] for x in "REF"] for part in ("train", "valid")}
        self.offset = float(given["train"][1].mean())  # eV, float64
        self.parts = {
            part: (torch.from_numpy(R).float(), torch.from_numpy((E - self.offset) / unit).float(),
                   torch.from_numpy(F / unit).float())
            for part, (R, E, F) in given.items()
        }  # fmt: skip

    def statistics(self, cutoff: float = 5.0) -> Statistics:
        """Return what the recipes take from the training frames."""
        R, E, F = self.parts["train"]
        neighbours = edges_within(R, cutoff).shape[1] / (R.shape[0] * R.shape[1])
        rms = {int(z): float(F[:, self.z == z].square().mean().sqrt()) for z in self.z.unique()}
        return Statistics(neighbours, float(E.std()), float(F.square().mean().sqrt()), rms)

    def count(self, part: str) -> int:
        """Return the number of frames of a part."""
        return len(self.parts[part][0])

    def found(self, network: Network, part: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return a network's energies and forces of some frames of a part."""
        return network(self.z, self.parts[part][0][index])

    def target(self, part: str, index: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return energies, forces and the number of atoms of some frames of a part."""
        _, E, F = self.parts[part]
        return E[index], F[index], len(self.z)


def rate(recipe: Recipe, step: int, used: float) -> float:
    """Return the learning rate: linear in the first steps, a cosine that ends with the budget."""
    rising = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    return recipe.lr * rising * 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))


def loss_of(recipe: Recipe, found: tuple, target: tuple, used: float) -> Tensor:
    """Return the loss of a batch: energies (B,), forces, in the recipe's unit, and in the target
    the number of atoms, one for all or (B,)."""
    last = recipe.last_energy_weight is not None and used > LAST_STAGE
    weight = recipe.last_energy_weight if last else recipe.energy_weight
    scale = target[2] if recipe.per_atom else 1
    energy = ((found[0] - target[0]) / scale).square().mean()
    return weight * energy + recipe.force_weight * (found[1] - target[1]).square().mean()


class Average:
    """The moving average of the weights, with which a network is validated and kept."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.steps = network, decay, 0
        self.weights = [weight.detach().clone() for weight in network.parameters()]

    def update(self) -> None:
        """Add the present weights; the decay begins low, as in torch_ema."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, weight in zip(self.weights, self.network.parameters(), strict=True):
            mean.lerp_(weight.detach(), 1 - decay)

    def swap(self) -> None:
        """Exchange the weights for their average, or back."""
        with torch.no_grad():
            for mean, weight in zip(self.weights, self.network.parameters(), strict=True):
                kept = weight.clone()
                weight.copy_(mean)
                mean.copy_(kept)


def evaluate(network: Network, z: Tensor, R: Tensor, size: int = 10) -> tuple[Tensor, Tensor]:
    """Return energies, (T,), and forces, (T, n, 3), in the recipe's unit."""
    network.eval()
    parts = [[x.detach() for x in network(z, part)] for part in R.split(size)]
    return torch.cat([energy for energy, _ in parts]), torch.cat([forces for _, forces in parts])


def evaluate_part(network: Network, frames: Frames | Crystals, part: str) -> tuple[Tensor, Tensor]:
    """Return energies, (T,), and forces of a part of the frames, in the recipe's unit."""
    network.eval()
    parts = [[x.detach() for x in frames.found(network, part, index)]
             for index in torch.arange(frames.count(part)).split(frames.at_once)]  # fmt: skip
    return torch.cat([energy for energy, _ in parts]), torch.cat([forces for _, forces in parts])


def train(name: str, run: Path, minutes: float) -> None:
    """Train a network for some minutes of the processor's time; keep the best of its checks."""
    torch.manual_seed(0)
    recipe = RECIPES[name]
    path = run.parent / "frames.npz"
    frames = (Crystals if Crystals.are_in(path) else Frames)(path, recipe.unit)
    recipe = recipe._replace(batch_size=min(recipe.batch_size, frames.most))
    statistics = frames.statistics()
    network = BUILDERS[name](statistics, sorted(set(frames.z.tolist())))
    first = "valid", torch.arange(2)
    loss_of(recipe, frames.found(network, *first), frames.target(*first), 0.0).backward()
    record = fit(network, frames, optimizer_of(name, network, recipe), recipe, 60 * minutes)
    kept = record.pop("weights")
    torch.save({"weights": kept, "statistics": tuple(statistics)}, run / "weights.pt")
    count = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    versions = {p: metadata.version(p) for p in ("torch", *PACKAGES[name])}
    record |= {"network": name, "parameters": count, "cutoff": network.cutoff, "versions": versions,
               "offset": frames.offset, "unit": recipe.unit, "batch_size": recipe.batch_size,
               "source": recipe.source, "python": platform.python_version()}  # fmt: skip
    (run / "trained.json").write_text(json.dumps(record, indent=2) + "\n")


def fit(
    network: Network, frames: Frames | Crystals, optimizer: torch.optim.Optimizer, recipe: Recipe,
    budget: float,
) -> dict[str, Any]:  # fmt: skip
    """Train until the budget, in s of the processor, is used; return weights and what was done.

    Kept are the weights with the least error of the forces; of a last stage with other weights of
    the loss those with the least loss, as MACE's command does.
    """
    num_train, (E, F, n) = frames.count("train"), frames.target("valid", ...)
    average = Average(network, recipe.ema_decay)
    best, kept, step, log, order = math.inf, {}, 0, [], torch.empty(0, dtype=torch.int64)
    begun, wall, checking = time.process_time(), time.perf_counter(), 0.0
    for check in range(1, CHECKS + 1):
        last = recipe.last_energy_weight is not None and check > LAST_STAGE * CHECKS
        best = math.inf if last and check - 1 <= LAST_STAGE * CHECKS else best
        while (used := (time.process_time() - begun) / budget) < check / CHECKS:
            if len(order) < recipe.batch_size:
                order = torch.randperm(num_train)
            chosen, order = order[: recipe.batch_size], order[recipe.batch_size :]
            train_step(network, frames, chosen, optimizer, recipe, (step, used))
            average.update()
            step += 1
        if check < CHECKS and checking > CHECKING * used * budget:
            continue
        checked = time.process_time()
        average.swap()
        energy, forces = evaluate_part(network, frames, "valid")
        maes = [1000 * recipe.unit * float(x.abs().mean()) for x in (energy - E, forces - F)]
        log.append([round(used, 3), step, *maes])  # meV, meV/Å
        print(*log[-1], flush=True)
        loss = float(loss_of(recipe, (energy, forces), (E, F, n), used))
        score = loss if last else maes[1]
        if score < best:
            best, kept = score, {k: x.clone() for k, x in network.state_dict().items()}
        average.swap()
        checking += time.process_time() - checked
    return {"weights": kept, "steps": step, "epochs": step * recipe.batch_size / num_train,
            "processor_seconds": time.process_time() - begun, "log": log,
            "wall_seconds": time.perf_counter() - wall, "seed": 0}  # fmt: skip


def train_step(
    network: Network, frames: Frames | Crystals, chosen: Tensor, optimizer: torch.optim.Optimizer,
    recipe: Recipe, now: tuple[int, float],
) -> None:  # fmt: skip
    """Change the weights once; `now` is the step's number and the used part of the budget."""
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = rate(recipe, *now)
    optimizer.zero_grad()
    found, target = frames.found(network, "train", chosen), frames.target("train", chosen)
    loss_of(recipe, found, target, now[1]).backward()
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    optimizer.step()


def trained(name: str, run: Path, z: Tensor, dtype: torch.dtype) -> tuple[Network, dict]:
    """Return a network with its trained weights, and what is known of it.

    Constants, such as Clebsch-Gordan coefficients, are those of the dtype and not the kept ones.
    """
    torch.set_default_dtype(dtype)
    given = torch.load(run / "weights.pt", weights_only=False)
    network = BUILDERS[name](Statistics(*given["statistics"]), sorted(set(z.tolist())))
    learned = {key: given["weights"][key] for key, _ in network.named_parameters()}
    network.load_state_dict(learned, strict=False)
    return network.eval(), json.loads((run / "trained.json").read_text())


def answer(name: str, run: Path) -> None:
    """Answer questions: z_K (n,), R_K (T, n, 3), in whose dtype K is asked; E_K in eV, F_K."""
    with np.load(run / "questions.npz", allow_pickle=False) as arrays:
        asked = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    answers = {}
    for key in (key[2:] for key in asked if key.startswith("R_")):
        z, R = asked[f"z_{key}"], asked[f"R_{key}"]
        network, known = trained(name, run, asked["z_test"], R.dtype)
        energy, forces = evaluate(network, z, R)
        copies = len(z) // len(asked["z_test"])
        answers[f"E_{key}"] = energy.double() * known["unit"] + copies * known["offset"]
        answers[f"F_{key}"] = forces.double() * known["unit"]
    np.savez(run / "answers.npz", **{key: x.numpy() for key, x in answers.items()})


def answer_crystals(name: str, run: Path) -> None:
    """Answer the test frames of crystals: E (T,) in eV, F (N, 3)."""
    path = run.parent / "frames.npz"
    network, known = trained(name, run, Crystals(path, 1.0).z, torch.float32)
    frames = Crystals(path, known["unit"])
    energy, forces = evaluate_part(network, frames, "test")
    energy = energy.double() * known["unit"] + frames.sizes("test") * known["offset"]
    np.savez(run / "answers.npz", E=energy.numpy(), F=(forces.double() * known["unit"]).numpy())


def times(name: str, run: Path) -> dict[str, list[float]]:
    """Return the medians of rounds, in s of the processor, of energies and forces.

    Of 1 and of 64 ethanols.
    """
    with np.load(run / "questions.npz", allow_pickle=False) as arrays:
        z, R = torch.from_numpy(arrays["z_test"]), torch.from_numpy(arrays["R_test"])
    network, _ = trained(name, run, z, torch.float32)
    found: dict[str, list[float]] = {"1": [], "64": []}
    for _ in range(ROUNDS):
        for count, medians in found.items():
            part, lasted = R[: int(count)], []
            network(z, part)
            while sum(lasted) < ROUND_SECONDS or len(lasted) < 5:
                begun = time.process_time()
                network(z, part)
                lasted.append(time.process_time() - begun)
            medians.append(float(np.median(lasted)))
    return found


def main() -> None:
    """Do what is asked, on one thread."""
    what, name, run = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if what == "train":
        train(name, run, float(sys.argv[4]) if len(sys.argv) > 4 else 28.5)
    elif what == "answer":
        answer(name, run)
    elif what == "answer-crystals":
        answer_crystals(name, run)
    else:
        print(json.dumps(times(name, run)))


if __name__ == "__main__":
    main()
