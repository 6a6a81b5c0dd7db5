"""Checkpoints: a trained model in a file, what it is, and where it comes from.

A file holds plain tensors and values only, nothing that could run code. Its `card` says which
network it is and on what it was trained; building and loading need no training code.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from ase.data import chemical_symbols

from molnets import networks
from molnets.checks import expect, no_file
from molnets.files import write_whole
from molnets.potential import Potential

FORMAT = 2  # files without a number are of the first kind, which knew nothing but SchNet
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Card:
    """What a model is and where it comes from.

    Args:
        network: its name in `molnets.networks`.
        sizes: what it was built with.
        energy_unit: unit of the data's energies.
        length_unit: unit of the data's lengths; forces are energy / length.
        elements: atomic numbers seen in training, ascending.
        num_frames: number of frames it was trained on.
        fingerprint: of the data, `molnets.training.data.Dataset.fingerprint`.
        versions: of Python and of the packages that made it.
        errors: on test frames, by name, in the units of the data.
    """

    network: str
    sizes: dict[str, float]
    energy_unit: str = UNKNOWN
    length_unit: str = UNKNOWN
    elements: list[int] = field(default_factory=list)
    num_frames: int = 0
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def units(self) -> tuple[str, str]:
        """Return the units of energies and forces; "" where they are not known."""
        known = UNKNOWN not in (self.energy_unit, self.length_unit)
        energy = "" if self.energy_unit == UNKNOWN else self.energy_unit
        return energy, f"{self.energy_unit}/{self.length_unit}" if known else ""


def versions() -> dict[str, str]:
    """Return the versions of what runs here."""
    from molnets import __version__

    return {"molnets": __version__, "python": platform.python_version(),
            "torch": str(torch.__version__), "numpy": numpy.__version__}  # fmt: skip


def build(card: Card) -> Potential:
    """Return a new potential with the network of a card, with random weights and no units.

    Raises:
        ValueError: for a network or sizes that are not known.
    """
    potential = Potential(networks.build(card.network, card.sizes))
    potential.card = card
    return potential


def state_of(potential: Potential, **more: Any) -> dict[str, Any]:
    """Return what a checkpoint of a potential holds: plain tensors and values.

    Args:
        potential: what is saved; its `card` says how it was built.
        more: what else goes into the file: the state of a training.

    Raises:
        ValueError: if the potential has no card.
    """
    expect(potential.card is not None, "potential", "one with a card, as `build` makes", None)
    dtype = str(next(potential.network.parameters()).dtype).removeprefix("torch.")
    return {"format": FORMAT, "card": asdict(potential.card), "dtype": dtype,
            "model": potential.state_dict(), **more}  # fmt: skip


def copied(value: Any) -> Any:
    """Return a value whose tensors, however deep in dictionaries, are copies."""
    if isinstance(value, dict):
        return {name: copied(x) for name, x in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def write(state: dict[str, Any], path: str | Path) -> None:
    """Write what a checkpoint holds, whole or not at all."""
    write_whole(Path(path), lambda unfinished: torch.save(state, unfinished))


def save(potential: Potential, path: str | Path, **more: Any) -> None:
    """Write a potential and its card; the arguments are those of `state_of`."""
    write(state_of(potential, **more), path)


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values only, nothing that could run code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file needs more than plain tensors, or is no checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a checkpoint, got {no_file(path)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is long, and says how to run the code all the same
        got = f"{path}, which torch refuses: {type(error).__name__}"
        raise ValueError(f"path: expected a checkpoint of plain tensors, got {got}") from error
    ok = isinstance(state, dict) and {"card", "model", "dtype"} <= state.keys()
    expect(ok, "path", "a checkpoint with card, model and dtype", path)
    number = state.get("format")
    expect(number == FORMAT, "path", f"a checkpoint of format {FORMAT}", f"{number} in {path}")
    card, known = state["card"], {item.name for item in fields(Card)}
    ok = isinstance(card, dict) and {"network", "sizes"} <= card.keys() <= known
    expected = f"a card with network, sizes and others of {sorted(known)} in {path}"
    expect(ok, "path", expected, sorted(card) if isinstance(card, dict) else card)
    ok = isinstance(getattr(torch, str(state["dtype"]), None), torch.dtype)
    expect(ok, "path", f"a dtype of torch in {path}", state["dtype"])
    return state


def load(path: str | Path) -> Potential:
    """Return the trained model of a checkpoint, in evaluation mode, in the units of its data.

    Raises:
        FileNotFoundError, ValueError: as `read`, or if weights do not fit the card.
    """
    state = read(path)
    potential = build(Card(**state["card"])).to(getattr(torch, state["dtype"]))
    try:
        potential.load_state_dict(state["model"])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"path: expected weights that fit the card in {path}, {error}") from error
    return potential.eval()


def with_errors(path: str | Path, errors: dict[str, float]) -> None:
    """Write test errors into the card of a checkpoint."""
    state = read(path)
    state["card"] = asdict(replace(Card(**state["card"]), errors=errors))
    write(state, path)


def describe(path: str | Path) -> list[tuple[str, str]]:
    """Return what a checkpoint says of itself, as rows of a table.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    state = read(path)
    card = Card(**state["card"])
    units = dict(zip(("energy", "force"), card.units(), strict=True))
    num_weights = sum(weight.numel() for weight in build(card).parameters())
    rows = [
        ("network", card.network),
        *((f"  {name}", f"{value:g}") for name, value in card.sizes.items()),
        ("numbers in the weights", f"{num_weights:,}"),
        ("dtype", state["dtype"]),
        ("energy unit", card.energy_unit),
        ("length unit", card.length_unit),
        ("elements", " ".join(chemical_symbols[z] for z in card.elements) or UNKNOWN),
        ("frames trained on", f"{card.num_frames:,}" if card.num_frames else UNKNOWN),
        ("fingerprint of the data", card.fingerprint or UNKNOWN),
        *((f"test {name.replace('_', ' ')}",
           f"{value:.4g} {units.get(name.split('_')[0], '')}".rstrip())
          for name, value in card.errors.items()),
        ("made with", ", ".join(f"{k} {v}" for k, v in card.versions.items()) or UNKNOWN),
    ]  # fmt: skip
    return rows
