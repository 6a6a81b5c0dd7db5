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
from molnets.potential import Potential
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
UNSEEN = "unseen"


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
    splits, uses, lines = _splits(data, card, checkpoint.read(options.checkpoint).get("seen"))
    print(f"energies in {energy}, forces in {force}", *assumed, *lines, sep="\n")
    found = {name: evaluate(potential, data, frames) for name, frames in splits.items()}
    results = {name: _errors(found[name], data, frames) for name, frames in splits.items()}
    if options.json:
        write_json(results, options.json)
    _print(results)
    known = [(frames, found[name]) for name, frames in splits.items()]
    print(in_words(_doubtful(potential, data, uses, known)), end="")
    return results


def _doubtful(
    potential: Potential, data: Dataset, uses: dict[str, Tensor],
    known: list[tuple[Tensor, Evaluation]],
) -> list[dict[str, list[int]]]:  # fmt: skip
    """Return the doubtful frames of each use in the training; what is known is not done again."""
    named = []
    for frames in uses.values():
        same = (said for other, said in known if torch.equal(other, frames))
        said = next(same, None) or evaluate(potential, data, frames)
        named.append(doubtful(said, data, frames))
    return named


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


def _splits(
    data: Dataset, card: Card, seen: dict[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Return the frames of each row, what the training used frames for, and lines that say so.

    Rows are the file's split; where it has none, what the training used the frames for.

    Args:
        data: the frames.
        card: that of the model.
        seen: signatures of frames by what the training used them for; None if that is not known.
    """
    expected, got = "frames that are no isolated atoms", f"{len(data)} of these alone"
    expect(not data.alone.all(), "data", expected, got)
    molecules = (~data.alone).nonzero().flatten()
    known, left, uses, lines = signatures(data)[molecules], molecules, {}, []
    for name, theirs in (seen or {}).items():
        uses[name] = molecules[are_among(known, theirs)]
        left = left[~torch.isin(left, uses[name])]
    uses = {name: own for name, own in (uses | {UNSEEN: left}).items() if len(own)}
    if seen is None:
        same = card.fingerprint == data.fingerprint()
        lines.append("the network was trained on frames of this file" if same else "it is not known"
                     " which frames trained the network; they may be among these")  # fmt: skip
    if data.split is not None:
        rows = {name: molecules[data.split[molecules] == code] for name, code in PARTS.items()}
        rows = {name: frames for name, frames in rows.items() if len(frames)}
        lines += [f"{row}: {n} of its {len(frames)} frames {USE[name]}"
                  for row, frames in rows.items() for name, own in uses.items()
                  if name in USE and (n := int(torch.isin(frames, own).sum()))]  # fmt: skip
    elif [*uses] == [UNSEEN]:
        rows = {"all": molecules}
    else:
        rows = uses
        lines += [f"{name}: frames that {USE.get(name, 'did neither')}" for name in rows]
    return rows, uses if seen is not None else {}, lines


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
