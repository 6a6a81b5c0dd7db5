"""molnets test: errors of a trained network on a file of frames, per split and per element."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from molnets import checkpoint
from molnets.checkpoint import UNKNOWN, Card
from molnets.checks import expect, expect_elements
from molnets.command.table import table
from molnets.files import write_json
from molnets.options import add_options, chosen
from molnets.training.data import PARTS, Dataset
from molnets.training.doubtful import doubtful, in_words
from molnets.training.errors import Evaluation, evaluate, force_errors_by_element
from molnets.training.reading import load
from molnets.training.signatures import are_among, signatures
from molnets.training.source import Source

DESCRIPTION = (
    "Print the errors of a trained network on files of frames, for each part of their split, else "
    "for those that trained it and those it has not seen, and for the forces on each element."
)
USE = {"train": "trained this network", "validation": "chose its weights"}
ROWS = ("frames of this file have trained this network, train, or chosen its weights, validation; "
        "unseen are all others")  # fmt: skip
NOT_SAID = "the checkpoint does not say which frames trained the network: they may be among these"


def add_arguments(parser: ArgumentParser, arguments: list[str]) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument("checkpoint", help="a file that `molnets train` wrote")
    parser.add_argument("data", nargs="+", help="frames, as `molnets train` takes them")
    add_options(parser.add_argument_group("data"), Source)
    parser.add_argument("--json", type=Path, help="where the errors go as well")


def run(options: Namespace) -> dict[str, Any]:
    """Print the tables; return the errors by split, those of the elements among them.

    Raises:
        ValueError: if the frames hold elements that the network was not trained on, or are in
            other units; or if the errors cannot go where they are to go.
    """
    if options.json:  # before the work, not after it
        ok = options.json.parent.is_dir() and not options.json.is_dir()
        expect(ok, "json", "a file in a folder that is there", options.json)
    potential = checkpoint.load(options.checkpoint)
    data = load(*options.data, source=chosen(options, Source))
    card = potential.card
    expect_elements(card, data.z.tolist(), "data")
    assumed = _assumed(card, data)
    energy, force = (unit or "the data's units" for unit in card.units())
    splits, lines = _splits(data, options.checkpoint)
    print(f"energies in {energy}, forces in {force}", *assumed, *lines, sep="\n")
    found = {name: evaluate(potential, data, frames) for name, frames in splits.items()}
    results = {name: _errors(found[name], data, frames) for name, frames in splits.items()}
    if options.json:
        write_json(results, options.json)
    _print(results)
    for name, frames in splits.items():
        print(in_words(doubtful(found[name], data, frames)), end="")
    return results


def _assumed(card: Card, data: Dataset) -> list[str]:
    """Expect data in the units of the model; return what is assumed where one side has none."""
    model, file = (card.energy_unit, card.length_unit), (data.energy_unit, data.length_unit)
    names, lines = ("energies", "lengths"), []
    for name, expected, got in zip(names, model, file, strict=True):
        expect(UNKNOWN in (expected, got) or expected == got, "data", f"{name} in {expected}", got)
    for side, own, other, units, verb in (
        ("file", file, "model", model, "--energy-unit and --length-unit say"),
        ("model", model, "file", file, "training with --energy-unit and --length-unit says"),
    ):
        taken = [f"{name} in {unit}" for name, mine, unit in zip(names, own, units, strict=True)
                 if mine == UNKNOWN != unit]  # fmt: skip
        if taken:
            lines.append(f"the {side}'s units are unknown: {' and '.join(taken)}, the {other}'s, "
                         f"are assumed; {verb} which they are")  # fmt: skip
    return lines


def _print(results: dict[str, dict[str, Any]]) -> None:
    """Print the errors of each row, and those of the elements."""
    head = ["split", "frames", "energy MAE", "RMSE", "per atom MAE", "force MAE", "RMSE"]
    keys = ["energy_mae", "energy_rmse", "energy_per_atom_mae", "force_mae", "force_rmse"]
    if any("virial_per_atom_mae" in r for r in results.values()):
        head, keys = [*head, "virial per atom MAE"], [*keys, "virial_per_atom_mae"]
    rows = [(name, str(r["frames"]), *(f"{r[key]:.4g}" if key in r else "–" for key in keys))
            for name, r in results.items()]  # fmt: skip
    print("", table(head, rows), sep="\n")
    elements = [(name, symbol, own) for name, r in results.items()
                for symbol, own in r["elements"].items()]  # fmt: skip
    rows = [(f"{name}, {symbol}", str(own["atoms"]), f"{own['force_mae']:.4g}",
             f"{own['force_rmse']:.4g}") for name, symbol, own in elements]  # fmt: skip
    print("", table(("split, element", "atoms", "force MAE", "RMSE"), rows), sep="\n")


def _splits(data: Dataset, path: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the frames of each row, and lines on those that the network was trained on.

    Rows are the file's split; where it has none, what the training used frames for.
    """
    expected, got = "frames that are no isolated atoms", f"{len(data)} of these alone"
    expect(not data.alone.all(), "data", expected, got)
    molecules, state = (~data.alone).nonzero().flatten(), checkpoint.read(path)
    lines = [] if "seen" in state else [NOT_SAID]
    seen, known = {}, signatures(data)[molecules]
    for name, theirs in state.get("seen", {}).items():
        seen[name] = are_among(known, theirs)
    unseen = ~torch.stack([*seen.values(), torch.zeros(len(molecules)).bool()]).any(dim=0)
    if data.split is not None:
        names, parts = {number: name for name, number in PARTS.items()}, data.split[molecules]
        rows = {names[number]: parts == number for number in parts.unique().tolist()}
        for part, row in rows.items():
            counts = {name: int((own & row).sum()) for name, own in seen.items()}
            lines += [f"{part}: of its {int(row.sum())} frames, {number} {USE[name]}"
                      for name, number in counts.items() if number]  # fmt: skip
    elif unseen.all():
        rows = {"all": unseen}
    else:
        rows = {name: own for name, own in (seen | {"unseen": unseen}).items() if own.any()}
        lines.append(ROWS)
    return {name: molecules[row] for name, row in rows.items()}, lines


def _errors(found: Evaluation, data: Dataset, frames: Tensor) -> dict[str, Any]:
    errors, energies, forces, _ = found
    finite = bool(energies.isfinite().all() and forces.isfinite().all())
    expect(finite, "checkpoint", "finite energies and forces", "others, of some frames")
    target = data.take(frames, torch.float64)
    known = data.labels[frames, 1].repeat_interleave(data.n_atoms[frames])
    elements = force_errors_by_element(target.z[known], target.forces[known], forces[known])
    return {
        "frames": len(frames), **errors.known(),
        "elements": {chemical_symbols[z]: {"atoms": n, "force_mae": mae, "force_rmse": rmse}
                     for z, (n, mae, rmse) in elements.items()},
    }  # fmt: skip
