"""README: its code runs as it stands, and its map names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import molnets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code_runs_in_order(monkeypatch):
    monkeypatch.chdir(ROOT)
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code) == 4
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert names["energy"].shape == (10, 1) and names["virial"].shape == (10, 3, 3)
    assert names["pos"].grad is not None
    assert names["atoms"].get_potential_energy() == pytest.approx(-4210.2, abs=0.1)


def test_map_names_what_is_there():
    block = re.search(r"## What lies where\n\n```\n(.*?)```", README, flags=re.DOTALL).group(1)
    names = [line.split()[0] for line in block.splitlines() if line.strip()]
    for name in names:
        found = [path for path in (ROOT / name, ROOT / "molnets" / name) if path.exists()]
        assert found, name
    rooms = {path.name for path in (ROOT / "molnets").iterdir() if not path.name.startswith("__")}
    assert rooms == {name.rstrip("/") for name in names} & rooms
    assert all(f"{room}" in molnets.__doc__ for room in rooms)


def test_every_subcommand_is_shown():
    from molnets.command import SUBCOMMANDS

    shown = re.findall(r"^(?:mpiexec -n \d+ )?molnets (\w+) ", README, flags=re.MULTILINE)
    assert set(SUBCOMMANDS) <= set(shown)
