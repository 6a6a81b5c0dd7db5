"""What `benchmarks.recipes` measured, as a page: every number on it comes from `recipes.json`."""

from __future__ import annotations

from typing import Any

from benchmarks.peers_page import table
from molnets.training.recipes import RECIPES

MEV = 1000.0
TITLES = {
    "painn-molecule": "PaiNN, one molecule (revised MD17, ethanol)",
    "schnet-molecule": "SchNet, one molecule (revised MD17, ethanol)",
    "tensornet-molecule": "TensorNet, one molecule (revised MD17, ethanol)",
    "painn-bulk": "PaiNN, bulk (silicon in cells of 12 to 96 atoms)",
    "schnet-bulk": "SchNet, bulk (the same)",
    "tensornet-bulk": "TensorNet, bulk (the same)",
    "tensornet-bulk-long": "TensorNet, bulk, three times as long",
}
LEVERS = {"num_train": "frames", "seconds": "seconds", "dim_embedding": "features",
          "num_interactions": "blocks"}  # fmt: skip
OWN = ("num_train", "seconds")  # of a trial: no part of a recipe
STOPS = {
    "painn-molecule": "The data stop it, not capacity: new frames are much worse than those of the "
    "training, more frames help, and smaller networks do not hurt. What helps beside frames is a "
    "shorter cutoff, to a point. Weight decay does little, then harm; energies that weigh more "
    "cost forces. The recipe keeps the default cutoff: beyond 3.5 Å lies what molecules do to each "
    "other.",
    "schnet-molecule": (
        "No line is ahead of all others by more than seeds and chance may do. Gradients of a norm "
        "of 1 at most do not hurt, and give better energies: the recipe has that. More Gaussians "
        "and a larger rate fit the training frames much better and new ones no better; more "
        "blocks or features come to less in the same time. Errors on new frames are two to four "
        "times those in training: the data stop it, and what a network of distances makes of "
        "them."
    ),
    "tensornet-molecule": (
        "With the same frames, and half as much time again, it errs a quarter less than the best "
        "PaiNN, and three to four times as much as in training: the data stop it, too. Decay of "
        "the weights, a shorter cutoff and larger gradients change less than a seed may."
    ),
    "painn-bulk": (
        "Errors in training are close to those on new frames, after so few epochs: steps or "
        "capacity stop it, not data. Wide Gaussians (γ 1) and a cutoff of 4 Å are a fifth worse; a "
        "larger rate costs energies; the rest changes no more than another seed. Width, depth and "
        "longer trainings were not searched."
    ),
    "schnet-bulk": (
        "Narrower Gaussians (γ 4) are better by a twentieth, more than another seed; a cutoff of "
        "4 Å is worse by an eighth. Errors in training are nearly those on new frames: capacity or "
        "steps stop it, what a network of distances says of silicon, and not data. Width, depth "
        "and longer trainings were not searched."
    ),
    "tensornet-bulk": (
        "A quarter better than PaiNN in the same time; errors in training are four fifths of those "
        "on new frames: steps stop it. A cutoff of 4 Å, a larger rate and energies that weigh more "
        "are worse in forces; half the features take a third of the time a step and come to the "
        "same. No line is better by more than another seed."
    ),
    "tensornet-bulk-long": (
        "The base is no better than after a third of the time, and so is another seed: the data "
        "stop it now. Decay of the weights makes it worse, the more the worse; smaller networks "
        "are better, in energies by a quarter to a third, and take a third and a fifth of the time "
        "a step. The recipe takes half the features. A quarter of them does better still on these "
        "few frames of one element; of more frames and elements that says nothing."
    ),
}
TESTED = [
    "The recipes with all training frames, minutes of one core, several seeds and beside other",
    "networks: [`minutes.md`](minutes.md).",
]
MANY = (
    "The recipe `molecules` was not searched: there were no frames of many molecules. It takes "
    "what was found on one."
)
Row = dict[str, Any]


def page(numbers: dict[str, list[Row]], searches: dict[str, Any]) -> str:
    """Return the page.

    Args:
        numbers: the trials that were measured.
        searches: what was searched, by name, as in `benchmarks.recipes`.
    """
    lines = [
        "# Recipes", "",
        "How `molnets train --recipe` comes to its numbers. Each trial changes what its line names",
        "in the base above its table, with the same processor time on one core; errors are those",
        "of frames that neither train nor choose the weights. All frames of a trial are training",
        "frames of the files: no test frame was looked at. One seed a trial; another seed of the",
        "base shows how much that means. Other work shared the machine: as much processor time was",
        "not always as many epochs.", "",
    ]  # fmt: skip
    for name, search in searches.items():
        rows = [row for row in numbers["trials"] if row["search"] == name]
        if rows:
            lines += [f"## {TITLES[name]}", "", *_trials(search, rows), *_limits(rows)]
            values = RECIPES[name.split("-")[1]].of(search.network)
            lines += [STOPS[name], "", f"The recipe: {_change(values)}.", ""]
    lines += ["## On test frames", "", *TESTED, "", "## Many molecules", "", MANY]
    return "\n".join(lines).rstrip() + "\n"


def _trials(search: Any, rows: list[Row]) -> list[str]:
    """Return what was tried, the best first."""
    base = ", ".join(f"{name} {x:g}" for name, x in search.base.items())
    judged = rows[0]["judged"]["frames"]
    intro = (f"Base: {base}. {search.num_train} training frames, {search.seconds:g} s; judged on "
             f"{judged} others.")  # fmt: skip
    unit = "energy per atom, meV" if "bulk" in rows[0]["search"] else "energy, meV"
    key = "energy_per_atom_mae" if "bulk" in rows[0]["search"] else "energy_mae"
    head = ["changed", "force MAE, meV/Å", unit, "force MAE in training", "epochs", "weights"]
    order = sorted(_equal(rows), key=lambda row: row["judged"]["force_mae"])
    cells = [[_change(row["changes"]), f"{MEV * row['judged']['force_mae']:.2f}",
              f"{MEV * row['judged'][key]:.2f}", f"{MEV * row['train']['force_mae']:.2f}",
              str(row["epochs"]), f"{row['num_parameters']:,}"] for row in order]  # fmt: skip
    return [intro, "", *table(head, cells)]


def _change(changes: dict[str, float]) -> str:
    return ", ".join(f"{name} {x:g}" for name, x in changes.items()) or "**nothing: the base**"


def _equal(rows: list[Row]) -> list[Row]:
    """Return the trials with as many frames and as much time as the base."""
    return [row for row in rows if not any(name in row["changes"] for name in OWN)]


def _limits(rows: list[Row]) -> list[str]:
    """Return what stops the network: what more frames, more time and a larger one do."""
    by_changes = {tuple(sorted(row["changes"].items())): row for row in rows}
    said = []
    for row in rows:
        for lever in (lever for lever in LEVERS if lever in row["changes"]):
            rest = {name: x for name, x in row["changes"].items() if name != lever}
            other = by_changes.get(tuple(sorted(rest.items())))
            if other is not None:
                said.append([
                    LEVERS[lever], f"{_value(other, lever):g} → {_value(row, lever):g}",
                    _change(rest), " → ".join(f"{MEV * x['judged']['force_mae']:.2f}"
                                              for x in (other, row)),
                    " → ".join(f"{MEV * x['train']['force_mae']:.2f}" for x in (other, row)),
                ])  # fmt: skip
    best = min(_equal(rows), key=lambda row: row["judged"]["force_mae"])
    ratio = best["judged"]["force_mae"] / best["train"]["force_mae"]
    lines = [f"The best line errs {ratio:.1f} times as much on new frames as in training.", ""]
    if not said:
        return lines
    head = ["of", "", "with", "force MAE, meV/Å", "in training"]
    return [*lines, *table(head, sorted(said))]


def _value(row: Row, lever: str) -> float:
    return row[lever] if lever in OWN else row["sizes"][lever]
