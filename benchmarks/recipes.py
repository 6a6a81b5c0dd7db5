"""The search behind `molnets.training.recipes`: short trainings, one thing changed in each.

    OMP_NUM_THREADS=1 python -m benchmarks.recipes search [--only painn-molecule]
    python -m benchmarks.recipes page

`search` trains each trial for the same processor time on a part of the training frames and judges
it on other training frames: no test frame is there; `benchmarks.minutes` tests what won. What is in
`recipes.json` is not repeated; `page` makes `recipes.md` of it. Needs the data folder
(`SCHNET_DATA`, else ../shared/data). One thread each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import DATA
from benchmarks.recipes_page import page
from molnets import checkpoint
from molnets.checks import expect
from molnets.files import write_json
from molnets.networks import sizes_of
from molnets.training import Dataset, Settings, Trainer, evaluate, load, standardized

NUMBERS = Path(__file__).with_suffix(".json")
CHANGES = dict[str, float]


@dataclass(frozen=True)
class Search:
    """What is tried for a network on some data.

    Args:
        network: its name.
        file: the data.
        num_train: training frames of a trial.
        num_judged: frames that a trial is judged on.
        seconds: processor time of a trial.
        base: what all trials have, where it is not the default.
        trials: what each one changes; "num_train", "seconds" and "seed" are the trial's own.
    """

    network: str
    file: str
    num_train: int
    num_judged: int
    seconds: float
    base: CHANGES
    trials: list[CHANGES] = field(default_factory=list)


SEARCHES = {
    "painn-molecule": Search(
        "painn", "rmd17_ethanol.npz", 400, 300, 80.0,
        {"batch_size": 5, "lr": 3e-3, "gamma": 4.0, "rho_energy": 0.05},
        [{}, {"gamma": 1.0}, {"cutoff": 4.0}, {"dim_embedding": 32}, {"num_interactions": 2},
         {"num_interactions": 5}, {"weight_decay": 0.01}, {"num_gaussians": 10, "gamma": 1.0},
         {"batch_size": 2}, {"lr": 1e-3}, {"ema_decay": 0.9999}, {"seed": 1},
         {"cutoff": 4.0, "dim_embedding": 32}, {"cutoff": 3.5}, {"lr": 6e-3},
         {"cutoff": 4.0, "gamma": 1.0, "rho_energy": 0.5}, {"weight_decay": 0.1},
         {"cutoff": 3.0}, {"cutoff": 3.5, "gamma": 1.0}, {"cutoff": 3.5, "dim_embedding": 32},
         {"cutoff": 2.5}, {"cutoff": 3.0, "num_train": 670},
         {"cutoff": 3.5, "num_train": 670}, {"num_train": 670}, {"clip_norm": 1.0}],
    ),
    "schnet-molecule": Search(
        "schnet", "rmd17_ethanol.npz", 400, 300, 80.0,
        {"batch_size": 5, "lr": 1e-3, "gamma": 4.0, "rho_energy": 0.05},
        [{}, {"gamma": 1.0}, {"lr": 3e-3}, {"cutoff": 3.5},
         {"gamma": 1.0, "seed": 1}, {"gamma": 1.0, "dim_embedding": 128, "num_filters": 128},
         {"gamma": 1.0, "num_interactions": 5}, {"gamma": 1.0, "lr": 2e-3},
         {"gamma": 0.5}, {"gamma": 1.0, "cutoff": 4.0}, {"gamma": 1.0, "weight_decay": 0.01},
         {"gamma": 1.0, "batch_size": 2}, {"gamma": 1.0, "num_interactions": 2},
         {"gamma": 1.0, "clip_norm": 1.0}, {"gamma": 1.0, "num_gaussians": 50},
         {"gamma": 1.0, "num_train": 670},
         {"gamma": 1.0, "clip_norm": 1.0, "num_gaussians": 50, "lr": 2e-3},
         {"gamma": 1.0, "clip_norm": 1.0, "num_gaussians": 50},
         {"gamma": 1.0, "clip_norm": 0.3, "num_gaussians": 50, "lr": 2e-3},
         {"gamma": 1.0, "clip_norm": 0.3}, {"gamma": 1.0, "clip_norm": 1.0, "rho_energy": 0.2}],
    ),
    "tensornet-molecule": Search(
        "tensornet", "rmd17_ethanol.npz", 400, 300, 120.0,
        {"batch_size": 5, "lr": 3e-3, "gamma": 4.0, "rho_energy": 0.05, "clip_norm": 1.0},
        [{}, {"rho_energy": 0.5}, {"cutoff": 4.0}, {"num_interactions": 1}, {"lr": 6e-3},
         {"dim_embedding": 32}, {"clip_norm": 10.0}, {"weight_decay": 0.01}, {"seed": 1}],
    ),
    "painn-bulk": Search(
        "painn", "mlearn_Si.npz", 140, 50, 80.0,
        {"batch_size": 2, "lr": 1e-3, "gamma": 4.0},
        [{}, {"seed": 1}, {"lr": 3e-3}, {"gamma": 1.0}, {"cutoff": 4.0}, {"clip_norm": 1.0}],
    ),
    "schnet-bulk": Search(
        "schnet", "mlearn_Si.npz", 140, 50, 80.0,
        {"batch_size": 2, "lr": 1e-3, "gamma": 1.0},
        [{}, {"seed": 1}, {"lr": 3e-3}, {"gamma": 4.0}, {"cutoff": 4.0}, {"clip_norm": 1.0}],
    ),
    "tensornet-bulk": Search(
        "tensornet", "mlearn_Si.npz", 140, 50, 80.0,
        {"batch_size": 2, "lr": 1e-3, "gamma": 4.0},
        [{}, {"seed": 1}, {"lr": 3e-3}, {"gamma": 1.0}, {"cutoff": 4.0}, {"clip_norm": 1.0},
         {"batch_size": 5}, {"rho_energy": 0.1}, {"dim_embedding": 32}],
    ),
    "tensornet-bulk-long": Search(
        "tensornet", "mlearn_Si.npz", 140, 50, 240.0,
        {"batch_size": 2, "lr": 1e-3, "gamma": 4.0},
        [{}, {"weight_decay": 0.1}, {"weight_decay": 1.0}, {"dim_embedding": 32}, {"seed": 1},
         {"dim_embedding": 16}, {"num_interactions": 1}],
    ),
}  # fmt: skip


class Timed(Trainer):
    """A trainer that goes by the time of the process: whatever else runs does not count."""

    def run(self, progress: bool = True) -> None:
        """Train until the minutes of processor time are over."""
        self._begun = time.process_time()
        super().run(progress)

    def _progress(self, step: int) -> float:
        spent = time.process_time() - self._begun
        return min(1.0, spent / (60 * self.settings.minutes))


def chosen(kind: type, changes: CHANGES) -> Any:
    """Return the dataclass with those of the changes that it has."""
    return kind(**{name: x for name, x in changes.items() if name in kind.__dataclass_fields__})


def trained(
    name: str, values: CHANGES, data: Dataset, parts: dict[str, Tensor], out: Path
) -> dict[str, Any]:
    """Train; return how, and the errors on all parts of the data but the one for validation."""
    search = SEARCHES[name]
    sizes = chosen(sizes_of(search.network), values)
    settings = chosen(Settings, values | {"minutes": values["seconds"] / 60})
    torch.manual_seed(settings.seed)
    potential = standardized(sizes, data, parts["train"])
    trainer = Timed(potential, data, parts["train"], parts["validation"], settings, out)
    trainer.run(progress=False)
    potential = checkpoint.load(out / "best.pt")
    row = {"search": name, "num_train": len(parts["train"]),
           "seconds": values["seconds"], "epochs": trainer.epoch,
           "steps": trainer.epoch * trainer.steps_per_epoch,
           "num_parameters": sum(p.numel() for p in potential.parameters()),
           "threads": torch.get_num_threads(), "sizes": asdict(sizes),
           "settings": asdict(settings)}  # fmt: skip
    for part in [part for part in parts if part != "validation"]:
        errors = evaluate(potential, data, parts[part]).errors
        row[part] = {"frames": len(parts[part])} | errors.known()
    return row


def training_frames(search: Search) -> tuple[Dataset, Tensor]:
    """Return the data and the training frames in an order that is always the same."""
    data = load(DATA / search.file)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data, order[data.split[order] == 0]


def run_search(name: str) -> None:
    """Train and judge what is not there yet."""
    search = SEARCHES[name]
    data, frames = training_frames(search)
    data = data.subset(frames)  # from here on there is no test frame
    judged = torch.arange(len(data) - search.num_judged, len(data))
    validation = judged[0] - 20 + torch.arange(20)
    for changes in search.trials:
        done = [row["changes"] for row in numbers()["trials"] if row["search"] == name]
        if changes in done:
            continue
        train = torch.arange(int(changes.get("num_train", search.num_train)))
        expect(
            len(train) <= validation[0], "num_train", f"at most {int(validation[0])}", len(train)
        )
        parts = {"train": train, "validation": validation, "judged": judged}
        with tempfile.TemporaryDirectory() as out:
            values = {"seconds": search.seconds} | search.base | changes
            row = {"changes": changes} | trained(name, values, data, parts, Path(out))
        found = numbers()
        found["trials"].append(row)
        write_json(found, NUMBERS)
        print(name, changes, row["epochs"], row["train"], row["judged"], flush=True)


def numbers() -> dict[str, list[dict[str, Any]]]:
    """Return what was measured."""
    return json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {"trials": []}


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["search", "page"])
    parser.add_argument("--only", choices=SEARCHES, help="one search")
    options = parser.parse_args()
    names = [options.only] if options.only else [*SEARCHES]
    for name in names if options.what == "search" else []:
        run_search(name)
    NUMBERS.with_suffix(".md").write_text(page(numbers(), SEARCHES))


if __name__ == "__main__":
    main()
