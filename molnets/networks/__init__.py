"""The networks, and the registry that finds them by name.

A network maps atomic numbers and edges to the energies of atoms: `molnets.potential.Network`. Each
has a file of its own, with a dataclass `Sizes` whose fields are its options on the command line and
whose `build()` makes a new one. A new network is such a file, and a line here.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any, Protocol

from torch import nn

from molnets.checks import expect

NETWORKS = {
    "dimenet": "DimeNet++: messages between edges that see the angle between them",
    "egnn": "EGNN: messages of distances between points that move as they go",
    "painn": "PaiNN: messages of scalars and vectors",
    "schnet": "SchNet: continuous-filter convolutions of distances",
    "tensornet": "TensorNet: messages of 3 x 3 matrices, and products of them",
}


class Sizes(Protocol):
    """What makes a network: a frozen dataclass of numbers, whose fields have defaults."""

    cutoff: float

    def build(self) -> nn.Module:
        """Return a new network."""


def sizes_of(name: str) -> type[Sizes]:
    """Return the dataclass of a network's sizes.

    Raises:
        ValueError: if there is no network of this name.
    """
    expect(name in NETWORKS, "network", f"one of {sorted(NETWORKS)}", repr(name))
    return importlib.import_module(f"molnets.networks.{name}").Sizes


def name_of(sizes: Sizes) -> str:
    """Return the name of the network that these sizes make."""
    return type(sizes).__module__.rpartition(".")[2]


def build(name: str, sizes: dict[str, Any]) -> nn.Module:
    """Return a new network of this name and these sizes.

    Raises:
        ValueError: for a name that is not known, or sizes that the network does not have.
    """
    kind = sizes_of(name)
    known = {field.name for field in fields(kind)}
    expect(set(sizes) <= known, "sizes", f"some of {sorted(known)} for {name}", sorted(sizes))
    return kind(**sizes).build()
