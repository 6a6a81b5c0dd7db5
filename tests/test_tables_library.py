"""How the engine's library comes about: compiled once, kept where that is possible, else not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from molnets.tables import library

ROOT = Path(__file__).parent.parent
CALL = """
import torch
from molnets import tabulated
from schnet_helpers import SchNet
atoms = torch.ones(4, 1), torch.arange(12.0).view(4, 3), torch.zeros(4, dtype=torch.int64)
model = SchNet()
energy, forces = tabulated(model).energy_and_forces(*atoms)
print(abs(float((energy - model(*atoms)).sum())) < 1e-5)
"""


def run(**environment: str) -> subprocess.CompletedProcess:
    """Run a call in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True,
                          text=True, timeout=300)  # fmt: skip


def test_without_a_compiler_there_is_no_library_but_one_that_is_there(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path / "kept"])
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(library.NoLibraryError, match="there is no C"):
        library._built()
    library.library.cache_clear()
    library.prepare()
    library.library.cache_clear()
    assert "without the engine: there is no C++ compiler." in capsys.readouterr().out
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / library._name()).write_text("library")
    assert library._built().read_text() == "library"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'no headers' >&2; exit 1\n",
         "the engine does not compile: no headers"),
        ("#!/bin/sh\nexit 3\n", "c++ ended with 3"),
        ("#!/bin/sh\n[ $1 = --version ] && exit 0\nfor out; do :; done; echo text > $out\n",
         "the compiled engine does not load"),
    ],
)  # fmt: skip
def test_a_compiler_that_does_not_work_is_named(tmp_path, script, message):
    compiler = tmp_path / "c++"
    compiler.write_text(script)
    compiler.chmod(0o755)
    done = run(CXX=str(compiler), XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout == "True\n", done.stderr
    assert message in done.stderr
    for path in library._folders()[0].glob("*.so"):
        if path.read_bytes()[:4] == b"text":
            path.unlink()


def test_where_nothing_can_be_kept_a_temporary_folder_is_used(tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")  # no folder can be made below
    monkeypatch.setattr(library, "_folders", lambda: [blocked / "a", blocked / "b"])
    made = []
    monkeypatch.setattr(library, "_compile", lambda compiler, target: made.append(target))
    path = library._built()
    assert made == [path] and not path.is_relative_to(tmp_path)
    assert capsys.readouterr().err.count("cannot be kept") == 1


def test_a_library_is_compiled_once_and_named_for_what_it_is_made_of(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path / "kept"])
    made = []

    def compile_it(compiler: str, target: Path) -> None:
        made.append(target.name)
        target.write_text("library")

    monkeypatch.setattr(library, "_compile", compile_it)
    first = library._built()
    assert first == library._built() and first.read_text() == "library" and len(made) == 1
    monkeypatch.setattr(library, "FLAGS", [*library.FLAGS, "-g"])
    assert library._built() != first and len(made) == 2
    monkeypatch.setattr(library, "_processor", lambda: b"another")
    assert library._built().name not in {first.name, made[1]} and len(made) == 3
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == sorted(made)


def test_the_package_carries_the_sources():
    kept = {path.name for path in library.SOURCES.glob("*.[ch]*")}
    assert {"engine.cpp", "graph.h", "threads.h"} <= kept
    text = (ROOT / "pyproject.toml").read_text()
    assert '"molnets.tables" = ["engine/*.cpp", "engine/*.h"]' in text
