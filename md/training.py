"""Train a model on energies and forces; also a command: python -m md.training --help.

Loss [1]:  ρ_E mean_b (E_b − Ê_b)² + ρ_F mean_b (1/n_b) Σ_i ‖F_i − F̂_i‖², i over sample b's atoms.
Units:     those of the data, for losses, errors and everything that is saved.
Under torchrun every process takes its share of each batch; the result is that of one process.

[1] Schütt et al., NeurIPS 2017, arXiv:1706.08566, section 4.2.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from md.data import Batch, Dataset
from md.potential import Standardized, fit_element_energies
from md.spline import tables_apply
from md.spline_training import SplineForces
from schnet_helpers import ElementEmbedding, SchNet

ENGINES = ("spline", "plain", "compiled")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a SchNet; `gamma` 0 stands for Gaussians as wide as they are apart."""

    dim_embedding: int = 64
    num_filters: int = 64
    num_interactions: int = 3
    num_gaussians: int = 25
    cutoff: float = 5.0
    gamma: float = 0.0

    def build(self) -> SchNet:
        """Return a SchNet that looks up a vector for each element."""
        sizes = asdict(self)
        spacing = self.cutoff / max(1, self.num_gaussians - 1)
        sizes["gamma"] = self.gamma or 0.5 / spacing**2
        return SchNet(**sizes, embedding=ElementEmbedding(self.dim_embedding))


@dataclass(frozen=True)
class Settings:
    """How to train. The learning rate falls along a cosine over the epochs, or over the minutes."""

    epochs: int = 100
    minutes: float = 0.0
    batch_size: int = 10
    lr: float = 1e-3
    weight_decay: float = 0.0
    rho_energy: float = 0.01
    rho_forces: float = 1.0
    ema_decay: float = 0.999
    clip_norm: float = 10.0
    patience: int = 0
    engine: str = "spline"
    seed: int = 0


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean square errors, in the units of the data."""

    energy_mae: float
    force_mae: float
    energy_rmse: float
    force_rmse: float


def standardized(sizes: Sizes, data: Dataset, frames: Tensor) -> Standardized:
    """Return a new SchNet whose scale and element energies fit the training frames."""
    target = data.take(frames, torch.float64)
    scale = float(target.forces.square().mean().sqrt())
    offsets = fit_element_energies(target.z, target.energies, target.batch)
    return Standardized(sizes.build(), scale or 1.0, offsets)


def loss_of(energy: Tensor, forces: Tensor, target: Batch, settings: Settings) -> Tensor:
    """Return the loss of a batch: energies (B, 1) and forces (N, 3) against the batch's own."""
    n_atoms = target.batch.bincount()
    energy_loss = (energy - target.energies).square().mean()
    squares = (forces - target.forces).square().sum(dim=1)  # (N,)
    force_loss = (squares / n_atoms[target.batch]).sum() / len(n_atoms)
    return settings.rho_energy * energy_loss + settings.rho_forces * force_loss


class FrameForces(nn.Module):
    """Energies and forces of frames whose edges are known: a training step without the search.

    The forces are part of the forward pass, so that it can be compiled and run in parallel.

    Args:
        model: the model; a `SchNet` is inside.
    """

    def __init__(self, model: Standardized) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, z: Tensor, pos: Tensor, batch: Tensor, edge_index: Tensor, offset: Tensor, B: int
    ) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3); an edge leads from r_j + offset to r_i."""
        j, i = edge_index

        def total(pos: Tensor) -> tuple[Tensor, Tensor]:
            d_ij = torch.linalg.vector_norm(pos[j] - pos[i] + offset, dim=1)
            network = self.model.model  # its filters are computed, even if it has tables of them
            energy_i = SchNet.atomic_energies(network, z.to(pos.dtype), edge_index, d_ij)
            energy = energy_i.new_zeros(B, 1).index_add(0, batch, energy_i)
            return energy.sum(), energy

        gradient, energy = torch.func.grad(total, has_aux=True)(pos)
        return self.model.in_units(energy, z, batch), -self.model.scale * gradient


def make_engine(name: str, model: Standardized) -> nn.Module:
    """Return what gives the energies and forces of a training step.

    "plain" is the network itself, "compiled" the same, compiled by torch, and "spline" takes its
    filters from tables: the fastest on a CPU, and plain elsewhere.

    Raises:
        ValueError: for another name.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: expected one of {ENGINES}, got {name!r}")
    dtype, device = _dtype_and_device(model)
    if name == "spline" and tables_apply(device, dtype):
        return SplineForces(model)
    plain = FrameForces(model)
    if name == "compiled":
        plain.compile()
    return plain


def evaluate(
    model: Standardized, data: Dataset, frames: Tensor, batch_size: int = 100
) -> tuple[Errors, Tensor, Tensor]:
    """Return the errors of a model on some frames, its energies (T, 1) and its forces (N, 3)."""
    energies, forces = [], []
    dtype, device = _dtype_and_device(model)
    for part in frames.split(batch_size):
        target, edges = data.take(part, dtype), data.edges(model.cutoff).take(part, dtype)
        inputs = (x.to(device) for x in (*target[:3], *edges))
        with torch.no_grad():
            energy, force = FrameForces(model)(*inputs, len(part))
        energies.append(energy.cpu().double())
        forces.append(force.cpu().double())
    energy, force, target = torch.cat(energies), torch.cat(forces), data.take(frames, torch.float64)
    e, f = energy - target.energies, force - target.forces
    means = e.abs().mean(), f.abs().mean(), e.square().mean().sqrt(), f.square().mean().sqrt()
    return Errors(*map(float, means)), energy, force


def _dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    parameter = next(model.parameters())
    return parameter.dtype, parameter.device


class Trainer:
    """Fit a model to the training frames and keep the weights that do best on validation frames.

    Args:
        model: a `Standardized` model, on its device.
        data: the frames.
        train: indices of the frames to train on, (T,).
        validation: indices of the frames that choose the best weights, (V,).
        settings: how to train.
        out: folder for `last.pt`, `best.pt` and `history.csv`.
        sizes: the model's sizes; they travel with the checkpoint.
    """

    def __init__(
        self, model: Standardized, data: Dataset, train: Tensor, validation: Tensor,
        settings: Settings, out: Path, sizes: Sizes,
    ) -> None:  # fmt: skip
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._check(len(train), len(validation), settings)
        self.model, self.data, self.train, self.validation = model, data, train, validation
        self.settings, self.out, self.sizes = settings, Path(out), sizes
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.weights = list(model.parameters())
        self.averages = list(self.ema.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.parallel: nn.Module = make_engine(settings.engine, model)
        if self.world > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.parallel)
        self.steps_per_epoch = len(train) // settings.batch_size
        self.epoch, self.seconds, self.best, self.since_best = 0, 0.0, math.inf, 0
        self.history: list[dict[str, float]] = []
        self._started: float | None = None

    def _check(self, num_train: int, num_validation: int, settings: Settings) -> None:
        if not 1 <= settings.batch_size <= num_train:
            raise ValueError(
                f"batch_size: expected 1 to {num_train}, the number of training frames, "
                f"got {settings.batch_size}"
            )
        if num_validation < 1:
            raise ValueError("validation: expected at least one frame, got an empty split")
        if settings.batch_size % self.world:
            raise ValueError(
                f"batch_size: expected a multiple of the {self.world} processes, "
                f"got {settings.batch_size}"
            )

    def run(self, progress: bool = True) -> None:
        """Train until the epochs or the minutes are over; Ctrl-C ends early and saves."""
        self._started = time.perf_counter()
        total = None if self.settings.minutes else self.settings.epochs
        bar = tqdm(total=total, initial=self.epoch, unit="epoch",
                   disable=not progress or self.rank > 0)  # fmt: skip
        try:
            while self._progress(0) < 1 and not self._is_stale():
                self.run_epoch()
                bar.update()
                bar.set_postfix({k: f"{v:.3g}" for k, v in self.history[-1].items()})
        except KeyboardInterrupt:
            if not self.history:  # not even one epoch: keep what there is
                self._keep(evaluate(self.ema, self.data, self.validation)[0], math.nan)
            bar.write(f"interrupted in epoch {self.epoch}: the epochs before it are in {self.out}")
        finally:
            self.seconds, self._started = self.seconds + self._elapsed(), None
            bar.close()

    def _progress(self, step: int) -> float:
        if self.settings.minutes:
            spent = torch.tensor(self.seconds + self._elapsed(), device=self.weights[0].device)
            if self.world > 1:
                dist.broadcast(spent, 0)  # all processes go by the clock of the first
            return min(1.0, spent.item() / (60 * self.settings.minutes))
        done = self.epoch * self.steps_per_epoch + step
        return done / (self.settings.epochs * self.steps_per_epoch)

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def _is_stale(self) -> bool:
        return 0 < self.settings.patience <= self.since_best

    def run_epoch(self) -> None:
        """Visit every training frame once, in an order that the seed decides; validate; save."""
        if self._started is None:
            self._started = time.perf_counter()
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + self.epoch)
        order = self.train[torch.randperm(len(self.train), generator=generator)]
        losses = []
        for step in range(self.steps_per_epoch):
            if self.settings.minutes and self._progress(step) >= 1:
                break
            frames = order[step * self.settings.batch_size :][: self.settings.batch_size]
            losses.append(self._step(step, frames[self.rank :: self.world]))
        self.epoch += 1
        errors, *_ = evaluate(self.ema, self.data, self.validation)
        self.seconds += self._elapsed()
        self._started = time.perf_counter()
        self._keep(errors, sum(losses) / max(1, len(losses)))

    def _step(self, step: int, frames: Tensor) -> float:
        dtype, device = _dtype_and_device(self.model)
        lr = 0.5 * self.settings.lr * (1 + math.cos(math.pi * self._progress(step)))
        self.optimizer.param_groups[0]["lr"] = lr
        target = Batch(*(x.to(device) for x in self.data.take(frames, dtype)))
        edges = self.data.edges(self.model.cutoff).take(frames, dtype)
        energy, forces = self.parallel(*target[:3], *(x.to(device) for x in edges), len(frames))
        loss = loss_of(energy, forces, target, self.settings)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} in epoch {self.epoch}, step {step}, "
                f"frames {frames.tolist()}; the weights of the epoch before are in {self.out}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, self.settings.clip_norm)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.weights, 1 - self.settings.ema_decay)
        return loss.item()

    def _keep(self, errors: Errors, loss: float) -> None:
        score = (self.settings.rho_energy * errors.energy_rmse**2
                 + 3 * self.settings.rho_forces * errors.force_rmse**2)  # fmt: skip
        self.since_best = 0 if score < self.best else self.since_best + 1
        self.best = min(self.best, score)
        row = {"epoch": self.epoch, "seconds": self.seconds, "loss": loss}
        maes = {"energy_mae": errors.energy_mae, "force_mae": errors.force_mae}
        self.history.append(row | maes)
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            self.save(self.out / "last.pt")
            if self.since_best == 0:
                self.save(self.out / "best.pt")
            write_history(self.history, self.out / "history.csv")

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "sizes": asdict(self.sizes), "settings": asdict(self.settings),
            "model": self.ema.state_dict(), "dtype": str(_dtype_and_device(self.model)[0]),
            "raw": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "history": self.history,
            "epoch": self.epoch, "seconds": self.seconds, "best": self.best,
            "since_best": self.since_best,
        }  # fmt: skip
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: on a CPU, bit by bit as if there had been no break.

        Raises:
            ValueError: if the checkpoint was made with other sizes or settings.
        """
        state = read_checkpoint(path)
        for name, ours in (("sizes", asdict(self.sizes)), ("settings", asdict(self.settings))):
            other = {k: v for k, v in state[name].items() if ours.get(k) != v}
            if other:
                raise ValueError(f"{name}: expected those of {path}, {other}, got {ours}")
        self.model.load_state_dict(state["raw"])
        self.ema.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("history", "epoch", "seconds", "best", "since_best"):
            setattr(self, name, copy.copy(state[name]))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values only, nothing that could run code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file needs more than plain tensors, or is no checkpoint of `Trainer`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a checkpoint, got {path}, which does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"path: expected a checkpoint of plain tensors, got {error}") from error
    if not isinstance(state, dict) or not {"sizes", "model", "dtype"} <= state.keys():
        raise ValueError(f"path: expected a checkpoint with sizes, model and dtype, got {path}")
    return state


def load_model(path: str | Path) -> Standardized:
    """Return the trained model of a checkpoint, in evaluation mode, in the units of its data."""
    state = read_checkpoint(path)
    model = Standardized(Sizes(**state["sizes"]).build())
    model.to(getattr(torch, state["dtype"].removeprefix("torch.")))
    model.load_state_dict(state["model"])
    return model.eval()


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """Write the history as CSV, whole or not at all."""
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows(history)
    os.replace(unfinished, path)


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write values as JSON, whole or not at all."""
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    unfinished.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(unfinished, path)


if __name__ == "__main__":
    from md.command import main

    main()
