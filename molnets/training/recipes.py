"""Recipes: what a search has found to train well with, for each kind of data.

A recipe holds settings and sizes for each network that was searched. The search, what
it tried and what stops each recipe: `benchmarks/recipes.md`.

Units:  cutoff in Å, gamma in 1 / Å².
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TypeVar

import torch

from molnets.checkpoint import UNKNOWN
from molnets.checks import expect
from molnets.training.data import Dataset

Values = TypeVar("Values")  # a dataclass
AUTO, NONE = "auto", "none"
LENGTH_UNITS = ("Å", UNKNOWN)  # in which the recipes' lengths are taken


@dataclass(frozen=True)
class Recipe:
    """How to train on some kind of data.

    Args:
        what: the kind.
        values: settings and sizes by name, for each network that was searched.
    """

    what: str
    values: Mapping[str, Mapping[str, float]]

    def of(self, network: str) -> Mapping[str, float]:
        """Return settings and sizes for a network; none if it was not searched."""
        return self.values.get(network, MappingProxyType({}))


MOLECULE = {
    "painn": {"batch_size": 5, "lr": 3e-3, "rho_energy": 0.05, "gamma": 4.0},
    "schnet": {"batch_size": 5, "lr": 1e-3, "rho_energy": 0.05, "gamma": 1.0, "clip_norm": 1.0},
    "tensornet": {
        "batch_size": 5, "lr": 3e-3, "rho_energy": 0.05, "gamma": 4.0, "clip_norm": 1.0,
    },
}  # fmt: skip
BULK = {
    "painn": {"batch_size": 2, "lr": 1e-3, "gamma": 4.0},
    "schnet": {"batch_size": 2, "lr": 1e-3, "gamma": 4.0},
    "tensornet": {"batch_size": 2, "lr": 1e-3, "gamma": 4.0, "dim_embedding": 32},
}
RECIPES = {
    "molecule": Recipe("frames of one molecule", MOLECULE),
    "molecules": Recipe("several molecules, not searched: as for one", MOLECULE),
    "bulk": Recipe("periodic frames", BULK),
}
NAMES = (AUTO, *RECIPES, NONE)


def choose(data: Dataset) -> str:
    """Return the name of the recipe for some data; NONE where lengths are in no unit of its.

    One composition: "molecule"; several: "molecules"; any frame in a cell: "bulk". Isolated atoms
    do not count.
    """
    if data.length_unit not in LENGTH_UNITS:
        return NONE
    frames = (~data.alone).nonzero().flatten()
    if data.cells is not None and bool(data.cells[frames].any()):
        return "bulk"
    atoms = data.z.split(data.n_atoms.tolist())
    kinds = {tuple(torch.sort(atoms[frame]).values.tolist()) for frame in frames.tolist()}
    return "molecule" if len(kinds) == 1 else "molecules"


def values_of(name: str, network: str) -> Mapping[str, float]:
    """Return a recipe's settings and sizes for a network, by name.

    Raises:
        ValueError: for a recipe that is not known.
    """
    names = (*RECIPES, NONE)
    expect(name in names, "recipe", f"one of {names}", repr(name))
    return MappingProxyType({}) if name == NONE else RECIPES[name].of(network)


def with_values(kind: Values, values: Mapping[str, float], given: Collection[str] = ()) -> Values:
    """Return settings or sizes with those of the values that they have a field for.

    Args:
        kind: the settings or sizes, a dataclass.
        values: by name.
        given: names that stay as they are.
    """
    own = {item.name for item in fields(kind)} - set(given)
    return replace(kind, **{name: x for name, x in values.items() if name in own})


def said(name: str, network: str, values: Mapping[str, float], given: Collection[str] = ()) -> str:
    """Return in one line which recipe was chosen, what it sets, and what it leaves as given."""
    if name == NONE:
        return "recipe none: defaults, and what is given"
    used = ", ".join(f"{key} {x:g}" for key, x in values.items() if key not in given)
    kept = ", ".join(key for key in values if key in given)
    line = f"recipe {name} ({RECIPES[name].what}) for {network}: {used or 'nothing of its own'}"
    return f"{line}; as given: {kept}" if kept else line
