"""Atomic numbers that are none, and elements that a model has never seen, are errors everywhere."""

from __future__ import annotations

import ase
import pytest
import torch
from networks import ON_SPLINES, cluster, schnet

from molnets import Potential, tabulated
from molnets.checkpoint import Card
from molnets.coupling.ase import ModelCalculator
from molnets.dynamics import model_force_fn
from molnets.edges import Graph
from molnets.potential import energy_and_forces
from molnets.tables import SplineForces
from molnets.training import PlainForces
from schnet_helpers import SchNet

BAD = {"fraction": 6.5, "negative": -1.0, "nan": float("nan"), "infinite": float("inf")}


def calls(network):
    """Return everything that takes atomic numbers, as functions of them."""
    z, pos, batch = cluster(torch.float64)
    plain, fast = Potential(network), tabulated(Potential(network))
    edges, n = Graph(plain.cutoff).edges(pos, batch), len(pos) // (int(batch[-1]) + 1)
    found = {
        "potential": lambda z: plain(z, pos, batch),
        "tabulated": lambda z: fast(z, pos, batch),
        "energy and forces": lambda z: energy_and_forces(fast, z, pos, batch),
        "virial": lambda z: fast.energy_forces_virial(z, pos, batch),
        "training": lambda z: SplineForces(plain)(z, batch, edges),
        "plain training": lambda z: PlainForces(plain)(z, batch, edges),
        "dynamics": lambda z: model_force_fn(fast, z[:n])(pos.view(-1, n, 3)),
    }
    if isinstance(network, SchNet):
        found["network"] = lambda z: network(z, pos, batch)
    return found, z.double()


@pytest.mark.parametrize("make", ON_SPLINES.values())
@pytest.mark.parametrize("bad", BAD)
def test_numbers_that_are_no_elements(make, bad):
    found, z = calls(make(torch.float64))
    for call in found.values():
        call(z)  # control
        wrong = z.clone()
        wrong[2] = BAD[bad]
        with pytest.raises(ValueError, match=r"^z: expected"):
            call(wrong)


def test_elements_that_were_not_trained_on():
    network = schnet(torch.float64)
    potential = Potential(network)
    potential.card = Card("schnet", {}, "eV", "Å", elements=[1, 8])
    for model in (potential, tabulated(potential)):
        model_force_fn(model, torch.tensor([1, 8, 8]))
        with pytest.raises(
            ValueError, match=r"z: expected elements of .*\['H', 'O'\], got \['C'\]"
        ):
            model_force_fn(model, torch.tensor([1, 6, 8]))
    with pytest.raises(ValueError, match=r"atoms: expected elements of the training, .*\['N'\]"):
        ase.Atoms("NO", [[0, 0, 0], [1, 1, 0]], calculator=ModelCalculator(potential)).get_forces()
