"""Train a network on energies and forces.

Under torchrun every process takes its share of each batch; the result is that of one process.
Units are those of the data, for losses, errors and everything that is saved.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from molnets import checkpoint, networks
from molnets.checks import expect, expect_not_negative, expect_positive, expect_size
from molnets.files import make_folder, remove_unfinished, write_csv
from molnets.networks import Sizes
from molnets.options import option
from molnets.potential import Potential, sum_over_atoms
from molnets.training.data import Dataset, element_energies_of
from molnets.training.engines import judge_of, laid_out, make_steps, make_update
from molnets.training.errors import Evaluation, evaluate, factors_of, loss_of
from molnets.training.signatures import signatures

NOT_NEGATIVE = ("minutes", "weight_decay", "rho_energy", "rho_forces", "rho_stress",
                "clip_norm", "patience")  # fmt: skip
CLEARLY = 0.9  # of the average's loss: below it the weights themselves are the better ones
LAST_EPOCHS = 10  # over which they are compared
SAVE_EVERY = 5.0  # seconds, in `run`: short epochs would spend their time on files
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
    rho_stress: float = option(0.1, "weight of the virials per atom, where the data has stresses")
    ema_decay: float = option(0.999, "decay of the running average of the weights")
    clip_norm: float = option(10.0, "largest norm of the gradient; 0: no limit")
    patience: int = option(
        0, "stop after so many epochs without a better validation loss; 0: never"
    )
    engine: str = option(
        "spline", "spline: filters as splines, fast on a CPU; plain: the network itself; "
        "compiled: the same by way of a C++ compiler"
    )  # fmt: skip
    seed: int = option(0, "seed of weights, split and order")
    recipe: str = option("none", "what is not given is the recipe's; auto: that for such data")

    def __post_init__(self) -> None:
        expect_size("epochs", self.epochs)
        expect_positive("lr", self.lr)
        for name in NOT_NEGATIVE:
            expect_not_negative(name, getattr(self, name))
        rho = self.rho_energy, self.rho_forces
        expect(max(rho) > 0, "rho_energy, rho_forces", "one of them above 0", rho)
        expect(0 <= self.ema_decay < 1, "ema_decay", "0 or more, below 1", self.ema_decay)

    def factors(self, data: Dataset, train: Tensor) -> Tensor:
        """Return what the errors of each frame count in the loss, (T, 3), trained on some, (S,)."""
        counted = train[data.weights[train] > 0]
        return factors_of(data, self.rho_energy, self.rho_forces, self.rho_stress, counted)


def standardized(sizes: Sizes, data: Dataset, frames: Tensor) -> Potential:
    """Return a new network whose scale and element energies fit the training frames, (T,).

    The scale is the RMS of the forces, or where there are none, that of the energies per atom about
    those of the elements. An element's energy is that of its isolated atom, if the data has one;
    the others' fit the energies of the frames. Frames of weight 0 do not count.
    """
    num_frames, frames = len(frames), frames[data.weights[frames] > 0]
    expect(len(frames) > 0, "frames", "some of a weight above 0 to train on", f"{num_frames} of 0")
    target, labels = data.take(frames, torch.float64), data.labels[frames]
    offsets = element_energies_of(data, frames)
    n = data.n_atoms[frames]
    known = target.forces[labels[:, 1].repeat_interleave(n)]
    if len(known) == 0:
        explained = sum_over_atoms(offsets[target.z[:, 0]].view(-1, 1), target.batch, len(n))
        known = ((target.energies - explained).flatten() / n)[labels[:, 0]]
    scale = float(known.square().mean().sqrt())
    potential = Potential(sizes.build(), scale or 1.0, offsets)
    potential.card = checkpoint.Card(
        network=networks.name_of(sizes),
        sizes=asdict(sizes),
        energy_unit=data.energy_unit,
        length_unit=data.length_unit,
        elements=target.z.unique().tolist(),
        num_frames=num_frames,
        fingerprint=data.fingerprint(),
        versions=checkpoint.versions(),
    )
    return potential


class Trainer:
    """Fit a model to the training frames and keep the weights that do best on validation frames.

    After each epoch the weights and their running average are both judged. The average is a
    candidate for `best.pt`, or the weights if they are better by a tenth, in this epoch and in half
    of the last ones, as where an average has not forgotten its start. Weights of single steps
    wander: of thousands, luck on few validation frames would choose one.

    Args:
        potential: a potential with a card, on its device, as `standardized` makes. Its weights are
            laid one after the other in memory.
        data: the frames.
        train: indices of the frames to train on, (T,).
        validation: indices of the frames that choose the best weights, (V,).
        settings: how to train.
        out: folder for `last.pt`, from which training can go on, `best.pt` and `history.csv`.

    Attributes:
        counted: those of the frames to train on that count in the loss, (S,).
        weights: the trained weights.
        averages: their running averages.
        kept: the potential with the best weights so far.
        update: what moves weights and averages after each step.

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
        self.potential, self.data = potential, data
        self.train, self.validation = train, validation
        self.ema, self.kept = (copy.deepcopy(potential).requires_grad_(False) for _ in range(2))
        trained = [weight.requires_grad for weight in potential.parameters()]
        self.weights, self.averages, best = (
            [*compress(model.parameters(), trained)] for model in (potential, self.ema, self.kept)
        )
        self._flat, self._average, self._best = map(laid_out, (self.weights, self.averages, best))
        self._whole = nn.Parameter(self._flat)  # all weights as one, for the optimizer
        self._whole.grad = torch.zeros_like(self._flat)
        if self.world > 1:
            dist.broadcast(self._flat, 0)
        self.optimizer = torch.optim.AdamW(
            [self._whole], lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.update = make_update(settings.engine, self.optimizer, self._average)
        self.factors = settings.factors(data, train)
        for name, part in (("train", train), ("validation", validation)):
            counts = bool((self.factors[part] > 0).any())
            expect(counts, name, "frames with labels that count in the loss", "none")
        self.counted = train[(self.factors[train] > 0).any(dim=1)]
        known = signatures(data)
        self._seen = {"train": known[self.counted], "validation": known[validation]}
        make_folder(self.out)
        remove_unfinished(self.out)
        self.steps = make_steps(settings.engine, potential, data, self.factors)
        models = {"average": self.ema, "last": potential}
        self._judges = {name: (x, judge_of(settings.engine, x)) for name, x in models.items()}
        self.steps_per_epoch = len(train) // settings.batch_size
        self.epoch, self.seconds, self.best, self.since_best = 0, 0.0, math.inf, 0
        self.ahead = 0.0  # running mean of how often the weights were clearly better
        self.history: list[dict[str, Any]] = []
        self.interrupted = False  # by Ctrl-C
        self._started: float | None = None
        self._unsaved: dict[str, Any] | None = None
        self._saved_at = -math.inf

    def _check(self, num_train: int, num_validation: int, settings: Settings) -> None:
        size = settings.batch_size
        expected = f"1 to {num_train}, the number of training frames"
        expect(1 <= size <= num_train, "batch_size", expected, size)
        expect(num_validation > 0, "validation", "at least one frame", "an empty split")
        expected = f"a multiple of the {self.world} processes"
        expect(size % self.world == 0, "batch_size", expected, size)

    def run(self, progress: bool = True) -> None:
        """Train until the epochs or the minutes are over; Ctrl-C ends early and saves.

        The epoch that Ctrl-C cuts short begins again where training goes on. If it is the first,
        `last.pt` holds the start, and `best.pt` the weights so far, which are to be judged anew.
        """
        if self.settings.engine == "compiled":  # before the clock starts
            self.steps(self.train[: self.settings.batch_size // self.world], self.weights,
                       torch.zeros_like(self._flat))  # fmt: skip
        self._started = time.perf_counter()
        start = {} if self.history else self._state(self.history)
        total = None if self.settings.minutes else self.settings.epochs
        bar = tqdm(total=total, initial=self.epoch, unit="epoch",
                   disable=not progress or self.rank > 0)  # fmt: skip
        try:
            while self._progress(0) < 1 and not self.is_stale():
                self.run_epoch(write=time.perf_counter() - self._saved_at > SAVE_EVERY)
                bar.update()
                row = self.history[-1]
                shown = [x for x in ("loss", "energy_mae", "force_mae") if x in row]
                bar.set_postfix({name: f"{row[name]:.3g}" for name in shown})
            self._write_unsaved()
        except KeyboardInterrupt:
            self.interrupted = True
            kept = "the epochs before it are in"
            if not self.history:
                self._keep_unfinished(start)
                kept = "to go on begins it again; its weights so far are best.pt in"
            bar.write(f"interrupted in epoch {self.epoch}: {kept} {self.out}")
        finally:
            bar.close()
            self.seconds, self._started = self.seconds + self._elapsed(), None
            self._write_unsaved()  # from the first file on, if an interrupt came between them

    def _progress(self, step: int) -> float:
        if self.settings.minutes:
            spent = torch.tensor(self.seconds + self._elapsed(), device=self._flat.device)
            if self.world > 1:
                dist.broadcast(spent, 0)  # all processes go by the clock of the first
            return min(1.0, spent.item() / (60 * self.settings.minutes))
        done = self.epoch * self.steps_per_epoch + step
        return done / (self.settings.epochs * self.steps_per_epoch)

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def is_stale(self) -> bool:
        """Return whether patience is at its end."""
        return 0 < self.settings.patience <= self.since_best

    def run_epoch(self, write: bool = True) -> None:
        """Visit the training frames once, in an order that the seed decides; validate; save.

        Frames that do not fill a batch are left out: other ones in every epoch.

        Args:
            write: whether to write the files now, or as soon as training ends.
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
            losses.append(self._step(step, frames[self.rank :: self.world].contiguous()))
        self.epoch += 1
        self._keep(self._over_processes(sum(losses) / max(1, len(losses))))
        if write:
            self._write_unsaved()

    def _over_processes(self, loss: float) -> float:
        if self.world == 1:
            return loss
        total = torch.tensor(loss, dtype=torch.float64, device=self._flat.device)
        dist.all_reduce(total)
        return total.item() / self.world

    def _step(self, step: int, frames: Tensor) -> float:
        lr = 0.5 * self.settings.lr * (1 + math.cos(math.pi * self._progress(step)))
        self.optimizer.param_groups[0]["lr"] = lr
        gradient = self._whole.grad
        loss = self.steps(frames, self.weights, gradient)
        if not math.isfinite(loss):
            kept = f"the weights of the epoch before are in {self.out}" if self.epoch else ""
            raise FloatingPointError(
                f"the loss is {loss} in epoch {self.epoch}, step {step}, "
                f"frames {frames.tolist()}; {kept or 'no weights are kept'}"
            )
        if self.world > 1:
            dist.all_reduce(gradient)
            gradient /= self.world
        t = self.epoch * self.steps_per_epoch + step
        decay = min(self.settings.ema_decay, (1 + t) / (10 + t))  # or it would hold the start long
        self.update(self.settings.clip_norm, decay)
        return loss

    def _judged(self) -> tuple[float, str, Evaluation]:
        """Return the validation loss of the average, or of the weights if that is clearly lower.

        Clearly is by a tenth, now and in half of the last epochs, about ten.
        """
        target = self.data.take(self.validation, torch.float64)
        found = {}
        for name, (model, judge) in self._judges.items():
            results = evaluate(model, self.data, self.validation, forces_of=judge)
            loss = loss_of(results[1:], target, self.factors[self.validation]).item()
            found[name] = (loss if math.isfinite(loss) else math.inf, name, results)
        clearly = found["last"][0] < CLEARLY * found["average"][0]
        self.ahead += (clearly - self.ahead) / min(len(self.history) + 1, LAST_EPOCHS)
        return found["last" if clearly and self.ahead >= 0.5 else "average"]

    def _keep(self, loss: float) -> None:
        score, name, evaluated = self._judged()
        errors = evaluated.errors
        self.since_best = 0 if score < self.best else self.since_best + 1
        if self.since_best == 0 or not self.history:
            self.best = min(self.best, score)
            self._best.copy_(self._average if name == "average" else self._flat)
        self.seconds += self._elapsed()
        self._started = time.perf_counter()
        row = {"epoch": self.epoch, "seconds": self.seconds, "loss": loss, "validation": score,
               "averaged": int(name == "average")}  # fmt: skip
        history = [*self.history, row | errors.known()]
        if self.rank == 0:
            self._unsaved = self._state(history)
        self.history = history  # last: whoever finds the epoch there finds its state too

    def _keep_unfinished(self, start: dict[str, Any]) -> None:
        """Keep the weights of a first epoch that was cut short as the best, beside the start."""
        self.epoch = start["epoch"]
        name = self._judged()[1]
        self._best.copy_(self._average if name == "average" else self._flat)
        if self.rank == 0:
            self._unsaved = start | {"kept": checkpoint.copied(self.kept.state_dict())}

    def _state(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Return all that training can go on from, as it is now, with the rows of its epochs."""
        state = checkpoint.state_of(
            self.ema, settings=asdict(self.settings), raw=self.potential.state_dict(),
            kept=self.kept.state_dict(), optimizer=self.optimizer.state_dict(),
            history=history, epoch=self.epoch, seconds=self.seconds, best=self.best,
            since_best=self.since_best, ahead=self.ahead,
            train=self.train, validation=self.validation,
        )  # fmt: skip
        return checkpoint.copied(state) | {"seen": self._seen}

    def _write_unsaved(self) -> None:
        """Write the last epoch that was finished: `last.pt`, and what follows from it."""
        if self._unsaved is None:
            return
        self.save(self._unsaved, self.out / "last.pt")
        self._write_what_follows(self._unsaved)
        self._unsaved, self._saved_at = None, time.perf_counter()

    def _write_what_follows(self, state: dict[str, Any]) -> None:
        best = {name: state[name] for name in ("format", "card", "dtype", "settings", "seen")}
        self.save(best | {"model": state["kept"]}, self.out / "best.pt")
        if state["history"]:
            write_csv(state["history"], self.out / "history.csv")

    def save(self, state: dict[str, Any], path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        checkpoint.write(state, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: on a CPU, bit by bit as if there had been no break.

        More epochs or minutes than before are welcome: the learning rate then falls along the
        longer cosine; so is another patience. `last.pt` is all that is needed; `best.pt` is
        written anew.

        Raises:
            ValueError: if the checkpoint was made with another network, other settings or data.
        """
        state, card = checkpoint.read(path), asdict(self.potential.card)
        ok = {"raw", "kept", "optimizer", "train", "settings"} <= state.keys()
        expect(ok, "path", "the checkpoint of a training, last.pt", path)
        dtype = str(self._flat.dtype).removeprefix("torch.")
        ours = asdict(self.settings) | {name: card[name] for name in SAME} | {"dtype": dtype}
        theirs = {name: state["card"].get(name) for name in SAME} | {"dtype": state["dtype"]}
        for name, value in (theirs | state["settings"]).items():
            longer = name in ("epochs", "minutes") and ours[name] >= value > 0
            same = longer or name == "patience" or ours.get(name) == value
            expect(same, name, f"that of {path}, {value}", ours.get(name))
        for name in ("train", "validation"):
            same = torch.equal(getattr(self, name), state[name])
            expect(same, name, f"the frames of {path}, {len(state[name])}", "others")
        self.potential.load_state_dict(state["raw"])
        self.ema.load_state_dict(state["model"])
        self.kept.load_state_dict(state["kept"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("history", "epoch", "seconds", "best", "since_best"):
            setattr(self, name, copy.copy(state[name]))
        self.ahead = state.get("ahead", 0.0)  # earlier versions had none
        if self.rank == 0:
            self._write_what_follows(state | {"seen": self._seen})
