"""molnets train: read data, train, test, write down what came out."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from torch import Tensor

from molnets import checkpoint
from molnets.dynamics.figures import learning_curve_figure, parity_figure
from molnets.files import write_json, write_whole
from molnets.networks import NETWORKS, sizes_of
from molnets.options import add_options, chosen
from molnets.training.data import Dataset, check_units, load, split
from molnets.training.engines import ENGINES
from molnets.training.errors import evaluate
from molnets.training.trainer import Settings, Trainer, standardized
from schnet_helpers import FIGURE_STYLE

DESCRIPTION = (
    "Train a network on energies and forces. Writes best.pt, last.pt, metrics.json, history.csv "
    "and figures into a folder."
)


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand; those of the network that is asked for among them."""
    parser.add_argument("data", type=Path, help=".npz, .pt, a file that ASE reads (.extxyz), or "
                        "'md17:revised ethanol', which is downloaded")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu or cuda")  # fmt: skip
    parser.add_argument("--float64", action="store_true", help="double precision")
    data = parser.add_argument_group("data")
    data.add_argument("--num-train", type=int, default=0, metavar="N",
                      help="training frames; 0: all but others")  # fmt: skip
    data.add_argument("--num-validation", type=int, default=50, metavar="N",
                      help="validation frames")  # fmt: skip
    data.add_argument("--num-test", type=int, default=100, metavar="N",
                      help="test frames, where the file has no split of its own")  # fmt: skip
    data.add_argument("--energy-unit", metavar="UNIT", help="unit of the energies, for the "
                      "checkpoint; eV for files that ASE reads")  # fmt: skip
    data.add_argument("--length-unit", metavar="UNIT", help="unit of the lengths, likewise")
    training = parser.add_argument_group("training")
    add_options(training, Settings, {"engine": ENGINES})
    names = ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--network", choices=sorted(NETWORKS), default="schnet")
    name = names.parse_known_args(arguments)[0].network
    network = parser.add_argument_group(f"network {name}", NETWORKS[name])
    network.add_argument("--network", choices=sorted(NETWORKS), default="schnet",
                         help="which network; its own options follow")  # fmt: skip
    add_options(network, sizes_of(name))


def run(options: Namespace) -> dict[str, Any]:
    """Train as the options say; return what goes into metrics.json."""
    settings, sizes = chosen(options, Settings), chosen(options, sizes_of(options.network))
    _keep_memory()
    _expect_device(options.device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
        if options.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not options.resume and (options.out / "last.pt").exists():
        expected = "a new folder, or --resume to go on"
        raise FileExistsError(f"out: expected {expected}, got {options.out}, which holds a run")
    data = load(options.data)
    data.energy_unit = options.energy_unit or data.energy_unit
    data.length_unit = options.length_unit or data.length_unit
    check_units(data)
    train, validation, test = split(
        data, options.num_train, options.num_validation, options.num_test, settings.seed
    )
    torch.manual_seed(settings.seed)
    potential = standardized(sizes, data, train).to(options.device)
    potential = potential.double() if options.float64 else potential
    trainer = Trainer(potential, data, train, validation, settings, options.out)
    if options.resume:
        trainer.resume(options.out / "last.pt")
    trainer.run()
    metrics = report(trainer, data, test) if trainer.rank == 0 else {}
    if dist.is_initialized():
        del trainer, potential  # what shares gradients must go before the connections do
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
    return metrics


def _keep_memory() -> None:
    """Ask glibc to keep what a step frees, or every step pays for its pages anew: a sixth of it."""
    trim_threshold, mmap_threshold = -1, -3  # the numbers of M_TRIM_… and M_MMAP_THRESHOLD
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**31 - 1), libc.mallopt(mmap_threshold, 2**25)
    except (OSError, AttributeError):  # another C library
        return


def _expect_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        expected = "cpu, or a device that torch finds here"
        raise ValueError(f"device: expected {expected}, got {name}") from error


def report(trainer: Trainer, data: Dataset, test: Tensor) -> dict[str, Any]:
    """Test the best weights; write metrics.json and the figures, and the errors to best.pt."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update(FIGURE_STYLE)
    best, out = trainer.out / "best.pt", trainer.out
    potential = checkpoint.load(best)
    errors, energy, forces, _ = evaluate(potential, data, test)
    checkpoint.with_errors(best, errors.known())
    card = potential.card
    metrics = {f"test_{name}": value for name, value in errors.known().items()}
    metrics |= {
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "seconds": trainer.seconds, "epochs": trainer.epoch, "num_train": len(trainer.train),
        "num_validation": len(trainer.validation), "num_test": len(test),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": platform.machine(), "settings": asdict(trainer.settings),
        "network": card.network, "sizes": card.sizes,
        "energy_unit": card.energy_unit, "length_unit": card.length_unit,
    }  # fmt: skip
    write_json(metrics, out / "metrics.json")
    _draw(trainer, data.take(test, torch.float64), data.n_atoms[test].view(-1, 1), energy, forces)
    print(f"test: energy MAE {errors.energy_mae:.4g}, force MAE {errors.force_mae:.4g}; in {out}")
    return metrics


def _draw(trainer: Trainer, target: Any, n_atoms: Tensor, energy: Tensor, forces: Tensor) -> None:
    card = trainer.potential.card
    unit, per_length = card.units()
    epochs = [row for row in trainer.history if math.isfinite(row["loss"])]  # not: interrupted
    history = {name: [row[name] for row in epochs] for name in trainer.history[0]}
    figures = {
        "energy_parity": parity_figure(
            target.energies / n_atoms, energy / n_atoms, "energy per atom", unit
        ),
        "force_parity": parity_figure(target.forces, forces, "force", per_length),
    }
    if epochs:
        figures["learning_curve"] = learning_curve_figure(history)
    for name, figure in figures.items():
        write_whole(trainer.out / f"{name}.svg", figure.savefig)
