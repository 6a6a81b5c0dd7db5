"""Train a network on energies and forces.

Under torchrun every process takes its share of each batch; the result is that of one process.
Units are those of the data, for losses, errors and everything that is saved.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from molnets import checkpoint, networks
from molnets.checks import expect, expect_not_negative, expect_positive, expect_size
from molnets.edges import Edges
from molnets.files import write_whole
from molnets.networks import Sizes
from molnets.options import option
from molnets.potential import Potential, fit_element_energies
from molnets.training.data import Batch, Dataset
from molnets.training.engines import make_engine
from molnets.training.errors import Errors, dtype_and_device, evaluate, loss_of

NOT_NEGATIVE = ("minutes", "weight_decay", "rho_energy", "rho_forces", "clip_norm", "patience")
SAME = ("network", "sizes", "elements", "num_frames", "fingerprint")  # of a run that goes on


@dataclass(frozen=True)
class Settings:
    """How to train. The learning rate falls along a cosine over the epochs, or over the minutes."""

    epochs: int = option(100, "passes over the training frames")
    minutes: float = option(0.0, "train for so many minutes of wall-clock time instead of --epochs")
    batch_size: int = option(10, "frames per step, over all processes")
    lr: float = option(1e-3, "learning rate at the start")
    weight_decay: float = option(0.0, "weight decay of AdamW")
    rho_energy: float = option(0.01, "weight of the energies in the loss; 0: forces only")
    rho_forces: float = option(1.0, "weight of the forces in the loss; 0: energies only")
    ema_decay: float = option(0.999, "decay of the running average of the weights, which is kept")
    clip_norm: float = option(10.0, "largest norm of the gradient; 0: no limit")
    patience: int = option(
        0, "stop after so many epochs without a better validation loss; 0: never"
    )
    engine: str = option(
        "spline", "spline: filters as splines, fast on a CPU; plain: the network itself; "
        "compiled: the same by way of a C++ compiler"
    )  # fmt: skip
    seed: int = option(0, "seed of weights, split and order")

    def __post_init__(self) -> None:
        expect_size("epochs", self.epochs)
        expect_positive("lr", self.lr)
        for name in NOT_NEGATIVE:
            expect_not_negative(name, getattr(self, name))
        rho = self.rho_energy, self.rho_forces
        expect(max(rho) > 0, "rho_energy, rho_forces", "one of them above 0", rho)
        expect(0 <= self.ema_decay < 1, "ema_decay", "0 or more, below 1", self.ema_decay)


def standardized(sizes: Sizes, data: Dataset, frames: Tensor) -> Potential:
    """Return a new network whose scale and element energies fit the training frames, (T,)."""
    target = data.take(frames, torch.float64)
    scale = float(target.forces.square().mean().sqrt())
    offsets = fit_element_energies(target.z, target.energies, target.batch)
    potential = Potential(sizes.build(), scale or 1.0, offsets)
    potential.card = checkpoint.Card(
        network=networks.name_of(sizes),
        sizes=asdict(sizes),
        energy_unit=data.energy_unit,
        length_unit=data.length_unit,
        elements=target.z.unique().tolist(),
        num_frames=len(frames),
        fingerprint=data.fingerprint(),
        versions=checkpoint.versions(),
    )
    return potential


class Trainer:
    """Fit a model to the training frames and keep the weights that do best on validation frames.

    Args:
        potential: a potential with a card, on its device, as `standardized` makes.
        data: the frames.
        train: indices of the frames to train on, (T,).
        validation: indices of the frames that choose the best weights, (V,).
        settings: how to train.
        out: folder for `last.pt`, from which training can go on, `best.pt` and `history.csv`.

    Raises:
        ValueError: for settings that do not fit the frames.
    """

    def __init__(
        self, potential: Potential, data: Dataset, train: Tensor, validation: Tensor,
        settings: Settings, out: Path,
    ) -> None:  # fmt: skip
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.settings, self.out = settings, Path(out)
        self._check(len(train), len(validation), settings)
        self.out.mkdir(parents=True, exist_ok=True)
        self.potential, self.data = potential, data
        self.train, self.validation = train, validation
        self.ema = copy.deepcopy(potential).requires_grad_(False)
        self.weights = list(potential.parameters())
        self.averages = list(self.ema.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.parallel: nn.Module = make_engine(settings.engine, potential)
        if self.world > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.parallel)
        self.steps_per_epoch = len(train) // settings.batch_size
        self.epoch, self.seconds, self.best, self.since_best = 0, 0.0, math.inf, 0
        self.history: list[dict[str, float]] = []
        self._started: float | None = None

    def _check(self, num_train: int, num_validation: int, settings: Settings) -> None:
        size = settings.batch_size
        expected = f"1 to {num_train}, the number of training frames"
        expect(1 <= size <= num_train, "batch_size", expected, size)
        expect(num_validation > 0, "validation", "at least one frame", "an empty split")
        expected = f"a multiple of the {self.world} processes"
        expect(size % self.world == 0, "batch_size", expected, size)
        expect(not self.out.is_file(), "out", "a folder", f"{self.out}, which is a file")

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
                self._keep(evaluate(self.ema, self.data, self.validation).errors, math.nan)
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
        """Visit the training frames once, in an order that the seed decides; validate; save.

        Frames that do not fill a batch are left out: other ones in every epoch.
        """
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
        errors = evaluate(self.ema, self.data, self.validation).errors
        self.seconds += self._elapsed()
        self._started = time.perf_counter()
        self._keep(errors, self._over_processes(sum(losses) / max(1, len(losses))))

    def _over_processes(self, loss: float) -> float:
        if self.world == 1:
            return loss
        total = torch.tensor(loss, dtype=torch.float64, device=self.weights[0].device)
        dist.all_reduce(total)
        return total.item() / self.world

    def _step(self, step: int, frames: Tensor) -> float:
        dtype, device = dtype_and_device(self.potential)
        lr = 0.5 * self.settings.lr * (1 + math.cos(math.pi * self._progress(step)))
        self.optimizer.param_groups[0]["lr"] = lr
        target = Batch(*(x.to(device) for x in self.data.take(frames, dtype)))
        edges = self.data.edges(self.potential.cutoff).take(frames, dtype)
        edges = Edges(*(x.to(device) for x in edges))
        energy, forces = self.parallel(target.z, target.batch, edges)
        weights = self.settings.rho_energy, self.settings.rho_forces
        loss = loss_of(energy, forces, target, *weights)
        if not torch.isfinite(loss):
            kept = f"the weights of the epoch before are in {self.out}" if self.epoch else ""
            raise FloatingPointError(
                f"the loss is {loss.item()} in epoch {self.epoch}, step {step}, "
                f"frames {frames.tolist()}; {kept or 'no weights are kept'}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, self.settings.clip_norm)
        self.optimizer.step()
        t = self.epoch * self.steps_per_epoch + step
        decay = min(self.settings.ema_decay, (1 + t) / (10 + t))  # or it would hold the start long
        with torch.no_grad():  # or the averages would drag the graph of all steps along
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
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
            self.save(self.out / "last.pt")
            if self.since_best == 0:
                settings = asdict(self.settings)
                checkpoint.save(self.ema, self.out / "best.pt", settings=settings)
            write_history(self.history, self.out / "history.csv")

    def save(self, path: Path) -> None:
        """Write a checkpoint that training can go on from, whole or not at all."""
        checkpoint.save(
            self.ema, path, settings=asdict(self.settings), raw=self.potential.state_dict(),
            optimizer=self.optimizer.state_dict(), history=self.history, epoch=self.epoch,
            seconds=self.seconds, best=self.best, since_best=self.since_best,
            train=self.train, validation=self.validation,
        )  # fmt: skip

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: on a CPU, bit by bit as if there had been no break.

        Raises:
            ValueError: if the checkpoint was made with another network, other settings or data.
        """
        state, card = checkpoint.read(path), asdict(self.potential.card)
        ok = {"raw", "optimizer", "train", "settings"} <= state.keys()
        expect(ok, "path", "the checkpoint of a training, last.pt", path)
        dtype = str(self.weights[0].dtype).removeprefix("torch.")
        ours = asdict(self.settings) | {name: card[name] for name in SAME} | {"dtype": dtype}
        theirs = {name: state["card"].get(name) for name in SAME} | {"dtype": state["dtype"]}
        for name, value in (theirs | state["settings"]).items():
            expect(ours.get(name) == value, name, f"that of {path}, {value}", ours.get(name))
        for name in ("train", "validation"):
            same = torch.equal(getattr(self, name), state[name])
            expect(same, name, f"the frames of {path}, {len(state[name])}", "others")
        self.potential.load_state_dict(state["raw"])
        self.ema.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("history", "epoch", "seconds", "best", "since_best"):
            setattr(self, name, copy.copy(state[name]))


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """Write the history as CSV, whole or not at all."""

    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, history[0].keys())
            writer.writeheader()
            writer.writerows(history)

    write_whole(path, write)
