"""Threads, forks, and places where nothing may be written."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from networks import ON_SPLINES, cluster, schnet

from molnets.coupling.ase import ModelCalculator
from molnets.edges import Graph
from molnets.potential import Potential, energy_and_forces
from molnets.tables import tabulated

ROOT = Path(__file__).parent.parent.parent
MAKE = ON_SPLINES


@pytest.mark.parametrize("name", sorted(MAKE))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_calls_from_several_threads(name, dtype):
    atoms, network = cluster(dtype), MAKE[name](dtype)
    weights = [weight.detach().clone() for weight in network.parameters()]
    expected = energy_and_forces(tabulated(Potential(MAKE[name](dtype))), *atoms)
    for _ in range(10):
        model = tabulated(Potential(network))
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, m=model: energy_and_forces(m, *atoms), range(8)))
        for energy, forces in found:
            assert torch.equal(energy, expected[0]) and torch.equal(forces, expected[1])
    assert all(map(torch.equal, weights, network.parameters()))


@pytest.mark.parametrize("name", sorted(MAKE))
def test_calls_of_different_atoms_and_changing_weights_from_threads(name):
    """Each result belongs to one set of weights, whatever the others do meanwhile."""
    given, network = [cluster(n=n) for n in (7, 3, 12, 30)], MAKE[name]()
    model = tabulated(Potential(network))
    bias = network.readout[2].bias  # an energy's part that is the same for every atom
    with torch.no_grad():
        bias.zero_()
    expected = [energy_and_forces(tabulated(Potential(network)), *atoms) for atoms in given]

    def call(number: int) -> bool:
        atoms, (energy, forces) = given[number % 4], expected[number % 4]
        if number % 7 == 0:
            with torch.no_grad():
                bias.fill_(float(number % 2))
        e, f = energy_and_forces(model, *atoms)
        per_atom = (e - energy) / (len(atoms[1]) / 4)
        whole = (per_atom - per_atom.round()).abs().max() < 1e-9 and per_atom.std() < 1e-9
        return bool(whole and (f - forces).abs().max() < 1e-9)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(200)))


@pytest.mark.parametrize("name", sorted(MAKE))
def test_calculators_built_in_threads(name):
    atoms, network = Atoms("CHOH", 1.1 * np.eye(4, 3)), MAKE[name]()
    weights = [weight.detach().clone() for weight in network.parameters()]

    def forces(_: int) -> np.ndarray:
        mine = atoms.copy()
        mine.calc = ModelCalculator(network)
        return mine.get_forces()

    alone = forces(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(alone, each) for each in pool.map(forces, range(40)))
    assert all(map(torch.equal, weights, network.parameters()))


def _forces_of(number: int) -> torch.Tensor:
    return energy_and_forces(MODEL, *cluster(n=20 + number % 3))[1]


MODEL = tabulated(Potential(schnet()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_pool_of_forked_processes():
    before, expected = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        expected = [_forces_of(n) for n in range(8)]  # the parent's threads are at work already
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(_forces_of, range(8)).get(timeout=60)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, expected))


ALONE = """
import torch
from molnets import Potential, energy_and_forces, tabulated
from schnet_helpers import SchNet
atoms = torch.ones(4, 1), torch.arange(12.0).view(4, 3), torch.zeros(4, dtype=torch.int64)
energy, _ = energy_and_forces(tabulated(Potential(SchNet())), *atoms)
print(energy.shape)
"""


@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_a_checkout_and_a_home_that_cannot_be_written_to(tmp_path):
    """The sources are linked from a folder without a library, where nothing may be made."""
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "molnets", tree / "molnets",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    shutil.copy(ROOT / "schnet_helpers.py", tree)
    engine = tree / "molnets" / "tables" / "engine"
    (engine / "__pycache__").write_text("")  # no folder can be made in its place, even by root
    home = tmp_path / "home"
    home.write_text("")
    engine.chmod(stat.S_IRUSR | stat.S_IXUSR)
    environment = {**os.environ, "PYTHONPATH": str(tree), "HOME": str(home), "PYTHONSAFEPATH": "1",
                   "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment, cwd=tree, text=True,
                          capture_output=True, timeout=300)  # fmt: skip
    engine.chmod(stat.S_IRWXU)
    assert done.stdout == "torch.Size([1, 1])\n", done.stderr
    assert done.stderr.count("cannot be kept") == 1


@pytest.mark.parametrize("name", sorted(MAKE))
def test_virials_and_forces_go_through_one_door(name):
    """A graph of another kind, whose edges may have no reverse, is not taken by the engine."""

    class Directed(Graph):
        def edges(self, *arguments):
            edges = super().edges(*arguments)
            keep = edges.index[0] < edges.index[1]
            return type(edges)(edges.index[:, keep], edges.vector[keep])

    atoms = cluster()
    plain = Potential(MAKE[name](), graph=Directed(2.5))
    model = tabulated(plain)
    for a, b in zip(model.energy_forces_virial(*atoms), plain.energy_forces_virial(*atoms),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert torch.equal(model(*atoms), plain(*atoms))
    with pytest.raises(ValueError, match="graph: expected a Graph, whose edges have their reverse"):
        model.network.evaluate(*atoms, graph=plain.graph, virial=True)
