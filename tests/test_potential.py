"""Energies and forces of wrapped models, in the units of the data."""

from __future__ import annotations

import pytest
import torch
from contract import EnergyModelContract, assert_equal, forces, molecules
from torch import nn

from md.potential import NUM_ELEMENTS, Standardized, energy_and_forces, fit_element_energies
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet


def offsets(**energies: float) -> torch.Tensor:
    table = torch.zeros(NUM_ELEMENTS, dtype=torch.float64)
    for element, energy in zip((1, 6, 8), energies.values(), strict=False):
        table[element] = energy
    return table


class TestStandardizedSchNet(EnergyModelContract):
    """The contract holds for the wrapped model too, with a scale and element energies."""

    def make_model(self) -> nn.Module:
        inner = SchNet(8, 12, 2, 10, cutoff=3.0, embedding=ElementEmbedding(8, max_z=10))
        return Standardized(inner, 0.7, offsets(H=-0.5, C=-1.25, O=-2.0))

    def reach_further(self, model, factor):
        model.model.interaction_graph = RadiusInteractionGraph(factor * model.cutoff)


def test_energy_and_forces_equal_the_contract_s():
    torch.manual_seed(0)
    model = SchNet(8, 8, 2, 10, cutoff=3.0).double()
    z, pos, batch = molecules()
    energy, force = energy_and_forces(model, z, pos, batch)
    assert_equal(energy, model(z, pos, batch).detach())
    assert_equal(force, forces(model, z, pos, batch))
    assert not energy.requires_grad and not force.requires_grad
    assert not pos.requires_grad
    with torch.no_grad():
        assert_equal(energy_and_forces(model, z, pos, batch)[1], force)


def test_create_graph_makes_forces_trainable():
    model = SchNet(8, 8, 2, 10, cutoff=3.0).double()
    energy, force = energy_and_forces(model, *molecules(), create_graph=True)
    (energy.sum() + force.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.interactions.parameters())


def test_units_and_offsets():
    torch.manual_seed(0)
    inner = SchNet(8, 8, 2, 10, cutoff=3.0).double()
    z, pos, batch = molecules()  # water and C O H H
    model = Standardized(inner, 3.0, offsets(H=-0.5, C=-38.0, O=-75.0))
    expected = 3 * inner(z, pos, batch) + torch.tensor([[-76.0], [-114.0]])
    assert_equal(model(z, pos, batch), expected)
    assert_equal(forces(model, z, pos, batch), 3 * forces(inner, z, pos, batch))


def test_offsets_stay_exact_in_float32():
    inner = SchNet(8, 8, 2, 10, cutoff=3.0)
    model = Standardized(inner, 1.0, offsets(H=-0.1, C=-1000.1, O=-2000.123456789)).float()
    assert next(model.parameters()).dtype == torch.float32
    z, pos, batch = molecules()
    energy = model(z, pos.float(), batch)
    assert energy.dtype == torch.float64
    network = inner(z, pos.float(), batch).double()
    expected = torch.tensor([[-2000.323456789], [-3000.423456789]], dtype=torch.float64)
    assert_equal(energy - network, expected, atol=1e-9)


def test_scale_and_offsets_travel_with_the_state_dict():
    model = Standardized(SchNet(), 3.0, offsets(H=-0.1))
    other = Standardized(SchNet())
    other.load_state_dict(model.state_dict())
    assert other.scale == 3.0
    assert torch.equal(other.element_energies, model.element_energies)
    assert other.cutoff == model.cutoff


def test_element_energies_by_least_squares():
    z = torch.tensor([8, 1, 1, 6, 1, 1, 1, 1, 8, 8]).view(-1, 1)
    batch = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    energies = torch.tensor([[-76.0], [-40.0], [-150.0]])
    fitted = fit_element_energies(z, energies, batch)
    assert_equal(fitted[[1, 6, 8]], torch.tensor([-0.5, -38.0, -75.0]).double(), atol=1e-9)
    assert (fitted.abs() > 1e-9).sum() == 3


def test_element_energies_of_one_composition_sum_to_the_mean():
    z, batch = torch.tensor([[8], [1], [1]] * 4), torch.arange(4).repeat_interleave(3)
    energies = torch.tensor([[-76.0], [-76.2], [-75.8], [-76.4]])
    fitted = fit_element_energies(z, energies, batch)
    assert_equal(fitted[8] + 2 * fitted[1], energies.double().mean(), atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Standardized(SchNet(), 0.0), "scale: expected a positive finite number, got 0.0"),
        (lambda: Standardized(SchNet(), float("nan")), "scale: .* got nan"),
        (lambda: Standardized(SchNet(), 1.0, torch.zeros(3)), r"element_energies: .* shape \(3,\)"),
        (lambda: Standardized(SchNet(), 1.0, torch.full((119,), torch.nan)), "element_energies: "),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
