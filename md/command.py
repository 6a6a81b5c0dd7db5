"""The command line of `md.training`: read data, train, test, write down what came out."""

from __future__ import annotations

import argparse
import gc
import os
import platform
from dataclasses import asdict, fields
from pathlib import Path

import matplotlib
import torch
import torch.distributed as dist
from torch import Tensor

from md.analysis import learning_curve_figure, parity_figure
from md.data import Dataset, check_units, load
from md.training import (
    ENGINES,
    Settings,
    Sizes,
    Trainer,
    evaluate,
    load_model,
    standardized,
    write_json,
)
from schnet_helpers import use_figure_style

HELP = {
    "epochs": "passes over the training frames",
    "minutes": "train for so many minutes of wall-clock time instead of --epochs",
    "batch_size": "frames per step, over all processes",
    "lr": "learning rate at the start",
    "weight_decay": "weight decay of AdamW",
    "rho_energy": "weight of the energies in the loss; 0: train on forces only",
    "rho_forces": "weight of the forces in the loss; 0: train on energies only",
    "ema_decay": "decay of the running average of the weights, which is what is kept",
    "clip_norm": "largest norm of the gradient; 0: no limit",
    "patience": "stop after so many epochs without a better validation loss; 0: never",
    "engine": "spline: filters from tables, fast on a CPU; plain: the network itself; compiled: "
    "the same by way of a C++ compiler",
    "seed": "seed of weights, split and order",
    "dim_embedding": "features of an atom",
    "num_filters": "width of the filters",
    "num_interactions": "interaction blocks",
    "num_gaussians": "Gaussians of the radial expansion",
    "cutoff": "cutoff, in the data's length unit",
    "gamma": "gamma of the Gaussians, 1 / length**2; 0: as wide as they are apart",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser; sizes and settings are the fields of their dataclasses."""
    result = argparse.ArgumentParser(
        prog="python -m md.training",
        description="Train a SchNet on energies and forces. Writes best.pt, last.pt, metrics.json, "
        "history.csv and figures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument("data", type=Path, help=".npz, .pt, a file that ASE reads (.extxyz), or "
                        "'md17:revised ethanol', which is downloaded")  # fmt: skip
    result.add_argument("--out", type=Path, required=True, help="folder for all results")
    result.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    result.add_argument(
        "--num-train", type=int, default=0, help="training frames; 0: all but others"
    )
    result.add_argument("--num-validation", type=int, default=50, help="validation frames")
    result.add_argument("--num-test", type=int, default=100,
                        help="test frames, where the file has no split of its own")  # fmt: skip
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--float64", action="store_true", help="double precision")
    for group in (Settings, Sizes):
        for field in fields(group):
            flag, text = "--" + field.name.replace("_", "-"), HELP[field.name]
            kind = {"int": int, "float": float, "str": str}[str(field.type)]
            choices = ENGINES if field.name == "engine" else None
            result.add_argument(flag, type=kind, default=field.default, choices=choices, help=text)
    return result


def split(
    data: Dataset, num_train: int, num_validation: int, num_test: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of training, validation and test frames, drawn with a seed.

    Raises:
        ValueError: if there are too few frames.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    if data.split is None:
        test, rest = order[:num_test], order[num_test:]
    else:
        test, rest = order[data.split[order] == 1], order[data.split[order] == 0]
    validation, train = rest[:num_validation], rest[num_validation:]
    train = train[: num_train or None]
    for name, part, least in (("num_train", train, max(1, num_train)),
                              ("num_validation", validation, max(1, num_validation)),
                              ("num_test", test, 1)):  # fmt: skip
        if len(part) < least:
            raise ValueError(
                f"{name}: expected {least} or more frames of {len(data)}, got {len(part)}"
            )
    return train, validation, test


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train as the arguments say; return what goes into metrics.json."""
    options = parser().parse_args(arguments)
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
        if options.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    data = load(options.data)
    check_units(data)
    train, validation, test = split(
        data, options.num_train, options.num_validation, options.num_test, settings.seed
    )
    torch.manual_seed(settings.seed)
    model = standardized(sizes, data, train).to(options.device)
    trainer = Trainer(model.double() if options.float64 else model, data, train, validation,
                      settings, options.out, sizes)  # fmt: skip
    if options.resume:
        trainer.resume(options.out / "last.pt")
    trainer.run()
    metrics = report(trainer, data, test) if trainer.rank == 0 else {}
    if dist.is_initialized():
        del trainer, model  # what shares gradients must go before the connections do
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
    return metrics


def report(trainer: Trainer, data: Dataset, test: Tensor) -> dict[str, float]:
    """Test the best weights; write metrics.json and the figures."""
    matplotlib.use("Agg")
    use_figure_style()
    model, out = load_model(trainer.out / "best.pt"), trainer.out
    errors, energy, forces = evaluate(model, data, test)
    metrics = {f"test_{name}": value for name, value in asdict(errors).items()}
    metrics |= {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "seconds": trainer.seconds, "epochs": trainer.epoch, "num_train": len(trainer.train),
        "num_validation": len(trainer.validation), "num_test": len(test),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": platform.machine(), "settings": asdict(trainer.settings),
        "sizes": asdict(trainer.sizes),
    }  # fmt: skip
    write_json(metrics, out / "metrics.json")
    target = data.take(test, torch.float64)
    per_atom = data.n_atoms[test].view(-1, 1)
    energies = target.energies / per_atom, energy / per_atom
    parity_figure(*energies, "energy per atom", "").savefig(out / "energy_parity.svg")
    parity_figure(target.forces, forces, "force", "").savefig(out / "force_parity.svg")
    history = {name: [row[name] for row in trainer.history] for name in trainer.history[0]}
    learning_curve_figure(history).savefig(out / "learning_curve.svg")
    print(f"test: energy MAE {errors.energy_mae:.4g}, force MAE {errors.force_mae:.4g}; in {out}")
    return metrics
