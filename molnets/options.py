"""Dataclasses as options of a command: one field, one option, one line of help."""

from __future__ import annotations

from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any

KINDS = {"int": (int, "N"), "float": (float, "X"), "str": (str, "NAME")}


class Help(ArgumentDefaultsHelpFormatter):
    """Help that shows defaults where there are any."""

    def _get_help_string(self, action: Action) -> str | None:
        shown = action.default is not None and action.default is not False
        return super()._get_help_string(action) if shown else action.help


class Given(Action):
    """Store a value, and its name in the namespace's `given`: it is not there by default."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        """Do so."""
        setattr(namespace, self.dest, values)
        namespace.given = getattr(namespace, "given", frozenset()) | {self.dest}


def option(default: float | str, text: str) -> Any:
    """Return a field of a dataclass with its help text."""
    return field(default=default, metadata={"help": text})


def add_options(
    parser: ArgumentParser, kind: type, choices: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Add an option for each field of a dataclass; its default is the field's.

    The names of those that come in a command line are in `given` of the namespace, if any do.

    Args:
        parser: where they are added; a group of a parser, too.
        kind: the dataclass; its fields are int, float or str, made by `option`.
        choices: the values that an option can take, for those that take not all.
    """
    for item in fields(kind):
        kind_name = item.type if isinstance(item.type, str) else item.type.__name__
        (read, letter), values = KINDS[kind_name], (choices or {}).get(item.name)
        parser.add_argument(
            "--" + item.name.replace("_", "-"), type=read, default=item.default, choices=values,
            action=Given, metavar=None if values else letter, help=item.metadata["help"],
        )  # fmt: skip


def chosen(options: Namespace, kind: type) -> Any:
    """Return the dataclass with the values of the options."""
    return kind(**{item.name: getattr(options, item.name) for item in fields(kind)})
