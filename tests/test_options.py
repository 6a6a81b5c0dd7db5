"""Dataclasses as options: one field, one option, one line of help."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, make_dataclass

import pytest

from molnets.options import Help, add_options, chosen, option


@dataclass(frozen=True)
class Plan:
    """What the tests are about."""

    steps_in_all: int = option(10, "how many steps")
    width: float = option(0.5, "how wide")
    colour: str = option("red", "which colour")
    shape: str = option("round", "which shape")


def parser(kind: type = Plan) -> ArgumentParser:
    result = ArgumentParser(formatter_class=Help, prog="paint")
    result.add_argument("--quiet", action="store_true", help="say nothing")
    result.add_argument("--name", help="what it is called")
    result.add_argument("--out", default="here", help="where to")
    add_options(result, kind, {"shape": ("round", "flat")})
    return result


def test_defaults_are_those_of_the_dataclass():
    assert chosen(parser().parse_args([]), Plan) == Plan()


def test_options_become_fields_of_their_types():
    arguments = ["--steps-in-all=3", "--width", "2", "--colour=blue", "--shape=flat"]
    plan = chosen(parser().parse_args(arguments), Plan)
    assert plan == Plan(3, 2.0, "blue", "flat")
    assert [type(x) for x in (plan.steps_in_all, plan.width)] == [int, float]


@pytest.mark.parametrize("wrong", [["--steps-in-all=1.5"], ["--width=wide"], ["--shape=square"]])
def test_values_of_other_types_or_choices_are_refused(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(wrong)
    assert wrong[0].partition("=")[0] in capsys.readouterr().err


def test_help_shows_each_option_with_its_default_where_it_has_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.strip() for line in parser().format_help().splitlines()]
    for expected in (
        "--steps-in-all N      how many steps (default: 10)",
        "--width X             how wide (default: 0.5)",
        "--colour NAME         which colour (default: red)",
        "--shape {round,flat}  which shape (default: round)",
        "--quiet               say nothing",
        "--name NAME           what it is called",
        "--out OUT             where to (default: here)",
    ):
        assert expected in lines


def test_types_may_be_given_as_types_or_by_name():
    """A module without `from __future__ import annotations` has types, not their names."""
    for kind in (int, "int"):
        made = make_dataclass("Made", [("size", kind, option(3, "how large"))])
        assert chosen(parser(made).parse_args(["--size=4"]), made).size == 4
