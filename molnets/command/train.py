"""molnets train: read data, train, test, write down what came out."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
from argparse import ArgumentParser, Namespace
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from ase.data import chemical_symbols
from torch import Tensor

from molnets import checkpoint
from molnets.checks import expect, expect_size
from molnets.command.runs import clear, expect_folders, folders_of
from molnets.dynamics.figures import learning_curve_figure, parity_figure
from molnets.files import alone_in, write_json, write_whole
from molnets.networks import NETWORKS, sizes_of
from molnets.options import add_options, chosen
from molnets.training import recipes
from molnets.training.consistency import check_units
from molnets.training.data import PARTS, Dataset, joined, split
from molnets.training.doubtful import doubtful, in_words
from molnets.training.engines import ENGINES, judge_of
from molnets.training.errors import Evaluation, evaluate
from molnets.training.reading import load
from molnets.training.source import Source
from molnets.training.trainer import Settings, Trainer, standardized
from schnet_helpers import FIGURE_STYLE

MOST_DOUBTED = 10_000  # of the training frames: no more than an epoch
DESCRIPTION = (
    "Train a network on energies and forces. Writes best.pt, last.pt, metrics.json, history.csv "
    "and figures into a folder."
)


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand; those of the network that is asked for among them."""
    parser.add_argument("data", nargs="+", help=".npz, .pt, files that ASE reads (.extxyz, .traj, "
                        ".db), or 'md17:revised ethanol', which is downloaded")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true",
                       help="go on from OUT/last.pt, for more epochs or minutes too")  # fmt: skip
    again.add_argument("--overwrite", action="store_true", help="begin anew where a run is")
    parser.add_argument("--seeds", type=int, default=1, metavar="N",
                        help="train a committee of so many on the same frames, in folders of OUT, "
                        "and report their spread")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu or cuda")  # fmt: skip
    parser.add_argument("--float64", action="store_true", help="double precision")
    data = parser.add_argument_group("data")
    data.add_argument("--validation-data", nargs="+", default=[], metavar="FILE",
                      help="files of the validation frames, if not of DATA")  # fmt: skip
    data.add_argument("--test-data", nargs="+", default=[], metavar="FILE",
                      help="files of the test frames, if not of DATA")  # fmt: skip
    data.add_argument("--num-train", type=int, default=0, metavar="N",
                      help="training frames; 0: all but others")  # fmt: skip
    data.add_argument("--num-validation", type=int, metavar="N",
                      help="validation frames; a tenth, at most 50, if not given")  # fmt: skip
    data.add_argument("--num-test", type=int, metavar="N", help="test frames, where the file has "
                      "no split of its own; a fifth, at most 100, if not given")  # fmt: skip
    add_options(data, Source)
    training = parser.add_argument_group("training")
    add_options(training, Settings, {"engine": ENGINES, "recipe": recipes.NAMES})
    parser.set_defaults(recipe=recipes.AUTO)
    names = ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--network", choices=sorted(NETWORKS), default="schnet")
    name = names.parse_known_args(arguments)[0].network
    network = parser.add_argument_group(f"network {name}", NETWORKS[name])
    network.add_argument("--network", choices=sorted(NETWORKS), default="schnet",
                         help="which network; its own options follow")  # fmt: skip
    add_options(network, sizes_of(name))


def run(options: Namespace) -> dict[str, Any]:
    """Train as the options say; return what goes into metrics.json."""
    settings, source = chosen(options, Settings), chosen(options, Source)
    expect_size("seeds", options.seeds)
    _keep_memory()
    _expect_device(options.device)
    _join_processes(options.device)
    with alone_in(options.out) if _is_first() else nullcontext():
        metrics = _trained(options, settings, source)
    if dist.is_initialized():
        gc.collect()  # what shares gradients must go before the connections do
        dist.barrier()
        dist.destroy_process_group()
    return metrics


def _trained(options: Namespace, settings: Settings, source: Source) -> dict[str, Any]:
    """Train one network, or a committee; return the metrics."""
    folders = folders_of(options.out, settings.seed, options.seeds)
    earlier = expect_folders(folders, options)
    data = read(options, source)
    parts = parts_of(options, data, settings.seed)
    settings, sizes = cooked(options, data, len(parts[0]), folders[0])
    metrics = []
    for number, folder in enumerate(folders):
        own = replace(settings, seed=settings.seed + number)
        trainer = trainer_of(options, data, sizes, own, parts, folder)
        if number == 0 and _is_first():  # what is asked for is right, as far as one can see
            clear(earlier, folder)
        found = _train(options, trainer, data, parts[2])
        if not (trainer.interrupted and metrics):
            metrics.append(found)
        if trainer.interrupted:
            _say(f"seed {own.seed} was cut short; --resume goes on")
            break
    if len(metrics) > 1 and metrics[0]:
        metrics = [_spread(metrics, options.out)]
    return metrics[0]


def _join_processes(device: str) -> None:
    """Join the processes that torchrun has started, if it has."""
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def cooked(options: Namespace, data: Dataset, num_train: int, folder: Path) -> tuple[Settings, Any]:
    """Return settings and sizes: the recipe's but for what is given; print which recipe it is.

    A batch that nobody gave is no larger than the training frames, and the same for each process.

    Args:
        options: the command's.
        data: the frames, which choose the recipe if the options do not.
        num_train: how many of them there are to train on.
        folder: of the run; one that goes on keeps its recipe.
    """
    name, given = options.recipe, getattr(options, "given", frozenset())
    if name == recipes.AUTO and options.resume and (folder / "last.pt").exists():
        name = checkpoint.read(folder / "last.pt").get("settings", {}).get("recipe", recipes.NONE)
    elif name == recipes.AUTO:
        name = recipes.choose(data)
    values = dict(recipes.values_of(name, options.network))
    settings = replace(chosen(options, Settings), recipe=name)
    world = int(os.environ.get("WORLD_SIZE", 1))
    size = values.get("batch_size", settings.batch_size)
    fits = world * max(1, min(math.ceil(size / world), num_train // world))
    values |= {"batch_size": fits} if "batch_size" in values or fits != size else {}
    _say(recipes.said(name, options.network, values, given))
    settings = recipes.with_values(settings, values, given)
    sizes = recipes.with_values(chosen(options, sizes_of(options.network)), values, given)
    return settings, sizes


def read(options: Namespace, source: Source) -> Dataset:
    """Return the data that the options name, and print what they are."""
    parts, codes = [load(*options.data, source=source)], [None]
    for name, paths in (("validation", options.validation_data), ("test", options.test_data)):
        if paths:
            parts.append(load(*paths, source=source))
            codes.append(PARTS[name])
    data = joined(parts, codes)
    data = data if len(parts) == 1 else data.without_duplicates()
    found = check_units(data)
    _say("\n".join([*summary(data), str(found)]))
    return data


def summary(data: Dataset) -> list[str]:
    """Return what the data are, line by line."""
    frames = data.n_atoms[~data.alone]
    sizes = f"{int(frames.min())} to {int(frames.max())}" if len(frames) else "no"
    elements = " ".join(chemical_symbols[z] for z in data.z.unique().tolist())
    periodic = 0 if data.cells is None else int(data.cells.flatten(1).any(dim=1).sum())
    lines = [f"{len(frames)} frames of {sizes} atoms, {periodic} periodic; elements {elements}; "
             f"energies in {data.energy_unit}, lengths in {data.length_unit}",
             *dict.fromkeys(data.notes)]  # fmt: skip
    alone = {chemical_symbols[z]: e for z, e in data.isolated_energies().items()}
    if alone:
        energies = ", ".join(f"{name} {energy:.6g}" for name, energy in alone.items())
        lines.append(f"energies of isolated atoms are those of their elements: {energies}")
    held_out = 0 if data.split is None else int((data.alone & (data.split > 0)).sum())
    if held_out:
        lines.append(f"{held_out} isolated atoms among test or validation frames: not used")
    if data.virials is not None:
        lines.append("stresses are not checked: as ASE's, they are above 0 under tension")
    return lines


def parts_of(options: Namespace, data: Dataset, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return training, validation and test frames: the same for all of a committee."""
    numbers = options.num_train, options.num_validation, options.num_test
    train, validation, test = split(data, *numbers, seed)
    counts = bool((data.weights[train] > 0).any())
    expected = "a training frame of a weight above 0, which counts in the loss"
    expect(counts, "weights", expected, f"{len(train)} of weight 0")
    new = set(data.z[data.atoms_of(torch.cat([validation, test]))].tolist())
    new -= set(data.z[data.atoms_of(train[data.weights[train] > 0])].tolist())
    expected = "elements that a training frame has, in validation and test frames"
    expect(not new, "data", expected, [chemical_symbols[z] for z in sorted(new)])
    return train, validation, test


def trainer_of(
    options: Namespace, data: Dataset, sizes: Any, settings: Settings,
    parts: tuple[Tensor, Tensor, Tensor], out: Path,
) -> Trainer:  # fmt: skip
    """Return a trainer of a new network, and print how large it is."""
    train, validation, test = parts
    torch.manual_seed(settings.seed)
    potential = standardized(sizes, data, train).to(options.device)
    potential = potential.double() if options.float64 else potential
    trainer = Trainer(potential, data, train, validation, settings, out)
    _say(f"{len(train)} frames to train on, {len(validation)} for validation, {len(test)} to test "
         f"on; {potential.card.network}, {sum(p.numel() for p in trainer.weights):,} weights, "
         f"batches of {settings.batch_size}")  # fmt: skip
    unseen = int((data.edges(potential.cutoff).counts[train] == 0).sum())
    if unseen:
        _say(f"{unseen} training frames have no atoms within the cutoff of {potential.cutoff}")
    return trainer


def _train(options: Namespace, trainer: Trainer, data: Dataset, test: Tensor) -> dict[str, Any]:
    """Train one network; return its metrics, on the first process."""
    last = trainer.out / "last.pt"
    if options.resume and (options.seeds == 1 or last.exists()):
        _expect_same_frames(trainer, last)
        trainer.resume(last)  # a committee's others begin
    if trainer.is_stale():
        _say(f"nothing to do: {trainer.since_best} epochs were no better, and patience is "
             f"{trainer.settings.patience}; more of it goes on")  # fmt: skip
    trainer.run()
    return report(trainer, data, test) if trainer.rank == 0 else {}


def _expect_same_frames(trainer: Trainer, last: Path) -> None:
    """Expect the data and the split of the run that goes on, in words of this command's options."""
    state, card, parts = checkpoint.read(last), trainer.potential.card, ("train", "validation")
    if state.get("settings", {}).get("seed") != trainer.settings.seed or "train" not in state:
        return  # which is said elsewhere
    same = state["card"].get("fingerprint") == card.fingerprint
    expect(same, "data", f"the frames of {last}, in the same order and units", "others")
    theirs, ours = ([len(x) for x in found] for found in (
        [state[name] for name in parts], [getattr(trainer, name) for name in parts]
    ))  # fmt: skip
    same = all(torch.equal(state[name], getattr(trainer, name)) for name in parts)
    expected = "{} frames to train on and {} for validation, drawn as for {}".format(*theirs, last)
    got = "{} and {}".format(*ours) if ours != theirs else "as many, but others"
    expect(same, "num_train, num_validation, num_test", expected, got)


def _is_first() -> bool:
    """Return whether this is the first of the processes, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def _say(text: str) -> None:
    """Print a line, on the first process."""
    if _is_first():
        print(text, flush=True)


def _spread(metrics: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Write and print the mean and the standard deviation of a committee's errors."""
    names = [name for name in metrics[0] if name.startswith("test_")
             and all(name in row for row in metrics)]  # fmt: skip
    values = {name: torch.tensor([row[name] for row in metrics], dtype=torch.float64)
              for name in names}  # fmt: skip
    found = {"seeds": [row["settings"]["seed"] for row in metrics]}
    for name, x in values.items():
        found |= {name: float(x.mean()), f"{name}_std": float(x.std())}
    write_json(found, out / "metrics.json")
    shown = (f"{name.removeprefix('test_')} {float(x.mean()):.4g} ± {float(x.std()):.2g}"
             for name, x in values.items() if name.endswith("mae"))  # fmt: skip
    print(f"test, {len(metrics)} seeds, mean ± standard deviation: {', '.join(shown)}; in {out}")
    return found


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
    tested = evaluate(potential, data, test)
    errors, energy, forces, _ = tested
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
    _draw(trainer, data, test, (energy, forces))
    shown = {"energy": errors.energy_mae, "force": errors.force_mae,
             "virial per atom": errors.virial_per_atom_mae}  # fmt: skip
    known = [f"{name} MAE {x:.4g}" for name, x in shown.items() if not math.isnan(x)]
    print(f"test: {', '.join(known)}; of {_which(trainer.history)}; in {out}")
    print(by_heart(trainer.history), end="", flush=True)
    found = _doubtful(trainer, (test, tested))  # last: whoever has no time for it misses no more
    print(in_words(found), end="")
    metrics["doubtful"] = {name: sorted(chain(*(x[name] for x in found))) for name in found[0]}
    write_json(metrics, out / "metrics.json")
    return metrics


def _doubtful(trainer: Trainer, test: tuple[Tensor, Evaluation]) -> list[dict[str, list[int]]]:
    """Return the frames of each part of the run whose labels are doubtful, by the label's name."""
    model = trainer.kept
    judge = judge_of(trainer.settings.engine, model)
    parts = [part[:MOST_DOUBTED] for part in (trainer.counted, trainer.validation) if len(part)]
    found = [(part, evaluate(model, trainer.data, part, forces_of=judge)) for part in parts]
    return [doubtful(said, trainer.data, frames) for frames, said in (*found, test)]


def _which(history: list[dict[str, Any]]) -> str:
    """Return in words which weights are the best."""
    if not history:
        return "the weights in a first epoch that was cut short"
    kept = min(history, key=lambda row: row["validation"])
    which = "the running average of the weights" if kept["averaged"] else "the weights themselves"
    return f"{which} after epoch {kept['epoch']}"


def by_heart(history: list[dict[str, Any]]) -> str:
    """Return a line where validation got worse while training went on to get better, or nothing."""
    if not history:
        return ""
    best, last = min(history, key=lambda row: row["validation"]), history[-1]
    worse = last["validation"] > 1.1 * best["validation"] and last["loss"] < best["loss"]
    if not worse or last["epoch"] < 20 or best["epoch"] > last["epoch"] / 2:
        return ""
    return (f"validation was best after epoch {best['epoch']} of {last['epoch']}; since then the "
            "network learned its training frames by heart: more frames or a smaller network may "
            "give a better one, more time will not\n")  # fmt: skip


def _draw(trainer: Trainer, data: Dataset, test: Tensor, found: tuple[Tensor, Tensor]) -> None:
    unit, per_length = trainer.potential.card.units()
    target, n = data.take(test, torch.float64), data.n_atoms[test].view(-1, 1)
    known = data.labels[test]
    parts = {
        "energy_parity": (target.energies / n, found[0] / n, known[:, 0]),
        "force_parity": (target.forces, found[1], known[:, 1].repeat_interleave(n.flatten())),
    }
    names = {"energy_parity": ("energy per atom", unit), "force_parity": ("force", per_length)}
    figures = {name: parity_figure(right[rows], got[rows], *names[name])
               for name, (right, got, rows) in parts.items() if rows.any()}  # fmt: skip
    epochs = [row for row in trainer.history if math.isfinite(row["loss"])]  # NaN: earlier versions
    if epochs:
        history = {name: [row[name] for row in epochs] for name in epochs[0]}
        figures["learning_curve"] = learning_curve_figure(history)
    for name, figure in figures.items():
        write_whole(trainer.out / f"{name}.svg", figure.savefig)
