"""Energies, forces and virials of networks, in the units of the data."""

from __future__ import annotations

import copy

import pytest
import torch
from contract import (
    EnergyModelContract,
    PotentialContract,
    assert_equal,
    by_strain,
    crystals,
    forces,
    molecules,
)
from torch import Tensor, nn

from molnets.edges import Edges, Graph
from molnets.potential import (
    NUM_ELEMENTS,
    Potential,
    as_potential,
    by_autograd,
    energy_and_forces,
    energy_forces_virial,
    fit_element_energies,
    sum_over_atoms,
)
from molnets.tables import tabulated
from schnet_helpers import ElementEmbedding, SchNet


def offsets(**energies: float) -> Tensor:
    table = torch.zeros(NUM_ELEMENTS, dtype=torch.float64)
    for element, energy in zip((1, 6, 8), energies.values(), strict=False):
        table[element] = energy
    return table


def small_schnet() -> SchNet:
    return SchNet(8, 12, 2, 10, cutoff=3.0, embedding=ElementEmbedding(8, max_z=10))


class TestPotentialOfSchNet(PotentialContract):
    """The contract holds for a network as a potential, with a scale and element energies."""

    def make_model(self) -> nn.Module:
        return Potential(small_schnet(), 0.7, offsets(H=-0.5, C=-1.25, O=-2.0))


class TestPotentialOfTables(PotentialContract):
    """A network with compiled passes of its own is asked for these."""

    def make_model(self) -> nn.Module:
        return tabulated(Potential(small_schnet(), 0.7, offsets(H=-0.5, C=-1.25, O=-2.0)))


class TestPotentialInFloat64WithoutUnits(EnergyModelContract):
    """A network as it is, is a potential with scale 1."""

    def make_model(self) -> nn.Module:
        return as_potential(small_schnet())

    def reach_further(self, model, factor):
        model.graph = Graph(factor * model.cutoff)


class Directed(nn.Module):
    """A network that knows directions: E_i = Σ_j Z_j (1 + Z_i) (a · r_ij)³ (1 − d_ij² / r_c²)².

    It is no energy of an atom, but its virials are not symmetric, and an edge and the one back
    pull differently: what SchNet's own symmetry would hide, it shows.
    """

    cutoff = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64))

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        (j, i), r = edges.index, edges.vector
        z = z.to(r).squeeze(1)
        closeness = (1 - r.square().sum(dim=1) / self.cutoff**2).clamp(min=0) ** 2
        each = z[j] * (1 + z[i]) * (r @ self.a) ** 3 * closeness
        return r.new_zeros(len(z)).index_add(0, i, each).unsqueeze(1)


def test_forces_and_virials_of_a_network_without_symmetry():
    atoms = crystals()
    model = Potential(Directed())
    expected = by_strain(model, *atoms)
    for actual, wanted in zip(model.energy_forces_virial(*atoms), expected, strict=True):
        assert_equal(actual, wanted, atol=1e-9)
    virial = expected[2][[0, 2, 3]]  # control: but for the atom among its own images
    assert (virial - virial.mT).abs().amax(dim=(1, 2)).min() > 1.0


def test_forces_and_virials_of_an_edge_by_hand():
    """E = Z_j (1 + Z_i) (a · r)³ (1 − r² / 9)² of one edge, from atom 0 to atom 1."""
    network, z, batch = Directed(), torch.tensor([[2], [3]]), torch.tensor([0, 0])
    r = torch.tensor([[0.4, -0.6, 1.2]], dtype=torch.float64)
    results = energy_forces_virial(network, z, batch, Edges(torch.tensor([[0], [1]]), r))
    s, q = 1.34, 1 - 1.96 / 9  # a · r and 1 − r² / 9
    energy = 8 * s**3 * q**2
    a = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)
    pull = 8 * (3 * s**2 * q**2 * a - s**3 * 2 * q * 2 / 9 * r[0])
    assert_equal(results[0], torch.tensor([[energy]], dtype=torch.float64))
    assert_equal(results[1], torch.stack([-pull, pull]))  # atom 1 receives
    assert_equal(results[2], (r[0].unsqueeze(1) * pull).unsqueeze(0))


def test_virial_in_the_graph_is_that_of_autograd():
    """What depends on a virial can be trained as well."""
    z, pos, batch, cells, pbc = crystals()
    network = Directed()
    edges = Graph(3.0).edges(pos, batch, cells, pbc)
    virial = energy_forces_virial(network, z, batch, edges, create_graph=True)[2]
    (fast,) = torch.autograd.grad(virial.square().sum(), network.a)
    step, expected = 1e-6, torch.zeros(3, dtype=torch.float64)
    for k in range(3):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                network.a[k] += sign * step
                moved = energy_forces_virial(network, z, batch, edges)[2]
                network.a[k] -= sign * step
            losses.append(moved.square().sum())
        expected[k] = (losses[0] - losses[1]) / (2 * step)
    torch.testing.assert_close(fast, expected, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_compiled_derivatives_are_the_same():
    z, pos, batch, cells, pbc = crystals()
    network = small_schnet().double()
    edges = Graph(3.0).edges(pos, batch, cells, pbc)
    compiled = torch.compile(energy_forces_virial, backend="eager")
    expected = energy_forces_virial(network, z, batch, edges)
    for actual, wanted in zip(compiled(network, z, batch, edges), expected, strict=True):
        assert_equal(actual.detach(), wanted)


def test_sum_over_atoms():
    energy_i = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    batch = torch.tensor([0, 0, 1, 1])
    assert sum_over_atoms(energy_i, batch, 2).tolist() == [[3.0], [12.0]]


def test_energy_and_forces_equal_the_contract_s():
    torch.manual_seed(0)
    model = SchNet(8, 8, 2, 10, cutoff=3.0).double()
    z, pos, batch = molecules()
    for same in (model, Potential(model)):
        energy, force = energy_and_forces(same, z, pos, batch)
        assert_equal(energy, model(z, pos, batch).detach())
        assert_equal(force, forces(model, z, pos, batch))
        assert not energy.requires_grad and not force.requires_grad
        assert not pos.requires_grad
        with torch.no_grad():
            assert_equal(energy_and_forces(same, z, pos, batch)[1], force)
        for actual, wanted in zip(by_autograd(same, z, pos, batch), (energy, force), strict=True):
            assert_equal(actual, wanted)


def test_positions_that_need_a_gradient_get_none_by_the_way():
    z, pos, batch = molecules()
    pos.requires_grad_()
    for model in (SchNet(cutoff=3.0).double(), Potential(SchNet(cutoff=3.0).double())):
        energy, force = energy_and_forces(model, z, pos, batch)
        assert not energy.requires_grad and not force.requires_grad
        assert pos.grad is None


def test_create_graph_makes_forces_trainable():
    for wrap in (nn.Identity(), Potential):
        network = SchNet(8, 8, 2, 10, cutoff=3.0).double()
        energy, force = energy_and_forces(wrap(network), *molecules(), create_graph=True)
        (energy.sum() + force.square().sum()).backward()
        assert all(p.grad is not None and p.grad.any() for p in network.interactions.parameters())


def test_energy_and_forces_of_known_edges():
    torch.manual_seed(0)
    model = Potential(small_schnet().double(), 0.7, offsets(H=-0.5, C=-1.25, O=-2.0))
    z, pos, batch, cells, pbc = crystals()
    edges = Graph(3.0).edges(pos, batch, cells, pbc)
    expected = energy_and_forces(model, z, pos, batch, cells, pbc)
    for create_graph in (False, True):
        results = model.energy_and_forces_of(z, batch, edges, create_graph=create_graph)
        for actual, wanted in zip(results, expected, strict=True):
            assert_equal(actual.detach(), wanted)
            assert actual.requires_grad == create_graph


def test_cells_of_a_model_that_takes_none_are_an_error():
    z, pos, batch = molecules()
    cells = 9 * torch.eye(3).double().expand(2, 3, 3)
    schnet = SchNet(cutoff=3.0).double()
    for model in (schnet, tabulated(schnet), nn.Linear(1, 1)):
        name = type(model).__name__
        with pytest.raises(TypeError, match=f"model: expected a Potential, .*, got {name}"):
            energy_and_forces(model, z, pos, batch, cells)
    energy_and_forces(Potential(schnet), z, pos, batch, cells)  # control


def test_units_and_offsets():
    torch.manual_seed(0)
    inner = SchNet(8, 8, 2, 10, cutoff=3.0).double()
    z, pos, batch = molecules()  # water and C O H H
    model = Potential(inner, 3.0, offsets(H=-0.5, C=-38.0, O=-75.0))
    expected = 3 * inner(z, pos, batch) + torch.tensor([[-76.0], [-114.0]])
    assert_equal(model(z, pos, batch), expected)
    assert_equal(forces(model, z, pos, batch), 3 * forces(inner, z, pos, batch))
    energy, force, virial = model.energy_forces_virial(z, pos, batch)
    assert_equal(energy, expected.detach())
    assert_equal(force, 3 * forces(inner, z, pos, batch))
    assert_equal(virial, 3 * Potential(inner).energy_forces_virial(z, pos, batch)[2])
    assert_equal(energy_and_forces(model, z, pos, batch)[1], force)
    of_atoms = 3 * Potential(inner).atomic_energies(z, pos, batch)
    of_atoms += torch.tensor([-75, -0.5, -0.5, -38, -75, -0.5, -0.5]).double().view(-1, 1)
    assert_equal(model.atomic_energies(z, pos, batch), of_atoms)
    for in_units in (model, tabulated(model)):
        assert_equal(energy_and_forces(in_units, z, pos, batch)[0], expected.detach(), atol=1e-8)


@pytest.mark.parametrize("wrap", [nn.Identity(), tabulated])
def test_offsets_stay_exact_in_float32(wrap):
    inner = SchNet(8, 8, 2, 10, cutoff=3.0)
    model = wrap(Potential(inner, 1.0, offsets(H=-0.1, C=-1000.1, O=-2000.123456789)).float())
    assert next(model.parameters()).dtype == torch.float32
    z, pos, batch = molecules()
    energy = model(z, pos.float(), batch)
    assert energy.dtype == torch.float64
    network = model.network(z, pos.float(), batch).double()
    expected = torch.tensor([[-2000.323456789], [-3000.423456789]], dtype=torch.float64)
    assert_equal(energy - network, expected, atol=1e-9)
    for other, *_ in (
        model.energy_and_forces(z, pos.float(), batch),
        model.energy_forces_virial(z, pos.float(), batch),
        model.energy_and_forces(z, pos.float(), batch, create_graph=True),
    ):
        assert_equal(other, energy, atol=1e-6)
        assert other.dtype == torch.float64
    of_atoms = model.atomic_energies(z, pos.float(), batch)
    assert of_atoms.dtype == torch.float64
    assert_equal(sum_over_atoms(of_atoms, batch, 2), energy, atol=1e-6)


def test_forces_and_virials_have_the_type_of_the_network():
    z, pos, batch, cells, pbc = crystals()
    for dtype in (torch.float32, torch.float64):
        model = Potential(small_schnet(), 2.0).to(dtype)
        system = z, pos.to(dtype), batch, cells.to(dtype), pbc
        energy, force, virial = model.energy_forces_virial(*system)
        assert energy.dtype == torch.float64
        assert force.dtype == virial.dtype == dtype
        assert model.energy_and_forces(*system)[1].dtype == dtype
        assert energy.shape == (4, 1) and force.shape == (10, 3) and virial.shape == (4, 3, 3)


def test_atomic_numbers_per_sample_or_per_atom_whole_or_floating():
    model = Potential(small_schnet().double(), 1.0, offsets(H=-0.5, C=-1.25, O=-2.0))
    _, pos, batch = molecules()
    numbers = torch.tensor([[8], [6]])
    expected = model.energy_forces_virial(numbers[batch], pos, batch)
    of_atoms = model.atomic_energies(numbers[batch], pos, batch)
    for z in (numbers, numbers.flatten(), numbers.double(), numbers[batch].float()):
        for actual, wanted in zip(model.energy_forces_virial(z, pos, batch), expected, strict=True):
            assert torch.equal(actual, wanted)
        assert torch.equal(model.atomic_energies(z, pos, batch), of_atoms)


def test_scale_and_offsets_travel_with_the_state_dict():
    model = Potential(SchNet(), 3.0, offsets(H=-0.1))
    other = Potential(SchNet())
    other.load_state_dict(model.state_dict())
    assert other.scale == 3.0
    assert torch.equal(other.element_energies, model.element_energies)
    assert other.cutoff == model.cutoff


def test_a_network_is_wrapped_once_and_shares_its_weights():
    network = small_schnet()
    model = as_potential(network)
    assert model.network is network
    assert model.graph.cutoff == model.cutoff == 3.0
    assert model.graph.skin == 0
    assert model.card is None
    assert as_potential(model) is model
    graph = Graph(4.0, skin=0.2)
    assert Potential(network, graph=graph).graph is graph


@pytest.mark.parametrize("skin", [0.0, 0.3])
@pytest.mark.parametrize("cutoff", [2.0, 4.0])
def test_tables_see_the_edges_of_the_graph_that_they_are_given(cutoff, skin):
    torch.manual_seed(0)
    network, graph = small_schnet().double(), Graph(cutoff, skin)
    model = Potential(network, 0.7, graph=graph)
    for atoms in (crystals(), molecules()):
        expected = model.energy_forces_virial(*atoms)
        results = tabulated(model).energy_forces_virial(*atoms)
        for actual, wanted in zip(results, expected, strict=True):
            assert_equal(actual, wanted, atol=1e-7)
        whole = Potential(network, 0.7)(*atoms)  # control: a short graph does hide atoms
        assert ((whole - expected[0]).abs().max() > 1e-4) == (cutoff < 3.0)


def test_cells_that_are_none_may_come_with_a_periodicity_that_is_none():
    model, atoms = Potential(small_schnet().double()), molecules()
    for same in (model, tabulated(model)):
        expected = same(*atoms)
        for pbc in (False, (False,) * 3, torch.zeros(3).bool(), torch.zeros(2, 3).bool()):
            assert_equal(same(*atoms, None, pbc), expected, atol=0)
            assert_equal(same.energy_forces_virial(*atoms, None, pbc)[0], expected.detach())


def test_copies_keep_their_lists_apart():
    z, pos, batch, cells, pbc = crystals()
    model = Potential(small_schnet().double(), graph=Graph(3.0, skin=0.4))
    expected = model(z, pos, batch, cells, pbc)
    other = copy.deepcopy(model)
    other(z, pos + 1.0 * torch.rand_like(pos), batch, cells, pbc)
    assert (model.graph.num_builds, other.graph.num_builds) == (1, 2)
    assert torch.equal(model(z, pos, batch, cells, pbc), expected)


def test_atoms_without_neighbours_have_no_forces_and_no_virial():
    model = Potential(small_schnet().double(), 2.0, offsets(H=-0.5))
    z, pos, batch = torch.tensor([[1], [1]]), torch.zeros(2, 3).double(), torch.tensor([0, 1])
    for system in (model, tabulated(model)):
        energy, force, virial = system.energy_forces_virial(z, pos, batch)
        assert_equal(energy[0], energy[1])
        assert energy[0] != -0.5
        assert not force.any() and force.shape == (2, 3)
        assert not virial.any() and virial.shape == (2, 3, 3)


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


# Errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Potential(SchNet(), 0.0), "scale: expected a positive finite number, got 0.0"),
        (lambda: Potential(SchNet(), -1.0), "scale: expected a positive finite number, got -1.0"),
        (lambda: Potential(SchNet(), float("nan")), "scale: .* got nan"),
        (lambda: Potential(SchNet(), 1.0, torch.zeros(3)), r"element_energies: .* shape \(3,\)"),
        (lambda: Potential(SchNet(), 1.0, torch.full((119,), torch.nan)), "element_energies: "),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wrong", [nn.Linear(1, 1), nn.ModuleList([SchNet()]), None, "model.pt"])
def test_what_is_no_network_is_refused(wrong):
    name = type(wrong).__name__
    with pytest.raises(TypeError, match=f"network: expected a network .* got {name}"):
        as_potential(wrong)


Z, POS, BATCH = molecules()
CELLS = 9 * torch.eye(3).double().expand(2, 3, 3)
ERRORS = [
    ((Z, POS.float(), BATCH), "pos: expected dtype torch.float64 as the model, got torch.float32"),
    ((Z, POS.tolist(), BATCH), "pos: expected a tensor"),
    ((Z.tolist(), POS, BATCH), "z: expected a tensor"),
    ((Z[:5], POS, BATCH), r"z: expected shape \(2, 1\), .* or \(7, 1\), .* got \(5, 1\)"),
    ((Z, POS[:6], BATCH), r"pos: expected shape \(7, 3\), got \(6, 3\)"),
    ((Z, POS * float("nan"), BATCH), "pos: expected finite numbers, got .* for atom 0"),
    ((Z, POS[[0, 0, 1, 2, 3, 4, 5]], BATCH), "pos: expected distinct positions, got atoms"),
    ((Z, POS, BATCH.flip(0)), "batch: expected sample numbers in ascending order"),
    ((Z, POS, BATCH, CELLS[0]), r"cells: expected shape \(2, 3, 3\) as samples in batch"),
    ((Z, POS, BATCH, CELLS.float()), "cells: expected dtype torch.float64 as pos"),
    ((Z, POS, BATCH, CELLS * float("nan")), "cells: expected finite numbers"),
    ((Z, POS, BATCH, 0 * CELLS), "cells: expected independent vectors"),
    ((Z, POS, BATCH, 1e-9 * CELLS), "cells: expected at most 1000000 images"),
    ((Z, POS, BATCH, None, True), "cells: expected cells for periodic samples, got None"),
    ((Z, POS, BATCH, CELLS, (True, False)), r"pbc: expected shape \(\), \(3,\) or \(2, 3\)"),
]


@pytest.mark.parametrize("atoms, message", ERRORS, ids=[message for _, message in ERRORS])
@pytest.mark.parametrize("wrap", [nn.Identity(), tabulated], ids=["plain", "tables"])
def test_bad_input_names_the_argument(wrap, atoms, message):
    model = wrap(Potential(small_schnet().double()))
    for call in (
        model,
        model.atomic_energies,
        model.energy_forces_virial,
        lambda *atoms: energy_and_forces(model, *atoms),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call(*atoms)


@pytest.mark.parametrize("wrong", [-1.0, 1.5, 119.0])
@pytest.mark.parametrize("wrap", [lambda model: model, tabulated])
def test_numbers_that_name_no_element_are_refused(wrong, wrap):
    """The sheet's embedding takes any number; the table of element energies must not."""
    model, (z, pos, batch) = wrap(Potential(SchNet().double())), molecules()
    z = z.double()
    assert model(z, pos, batch).isfinite().all()
    z[2] = wrong
    for way in (model, model.energy_and_forces, model.energy_forces_virial, model.atomic_energies):
        with pytest.raises(ValueError, match=f"z: expected whole numbers.*, got .*{wrong}"):
            way(z, pos, batch)
