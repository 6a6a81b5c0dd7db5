"""The registry, and what every network in it keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contract import PotentialContract, assert_equal, crystals, molecules, random_orthogonal
from torch import nn

from molnets import networks
from molnets.edges import Edges, Graph
from molnets.networks import NETWORKS
from molnets.networks.painn import PaiNN
from molnets.networks.tensornet import TensorNet
from molnets.potential import NUM_ELEMENTS, Potential

SMALL = {"cutoff": 3.0, "dim_embedding": 8, "num_filters": 12, "num_gaussians": 10}


def small(name: str) -> nn.Module:
    """Return a network of the registry with a short cutoff, and small where it is known how."""
    known = {field.name for field in dataclasses.fields(networks.sizes_of(name))}
    return networks.build(name, {key: size for key, size in SMALL.items() if key in known})


@pytest.mark.parametrize("network", sorted(NETWORKS))
class TestEveryNetwork(PotentialContract):
    """Every network keeps the contract once it is a potential; see `contract.py`."""

    @pytest.fixture(autouse=True)
    def _name(self, network):
        self.name = network

    def make_model(self) -> nn.Module:
        element_energies = torch.linspace(-3, 2, NUM_ELEMENTS)
        return Potential(small(self.name), 0.7, element_energies)

    def test_edges_beyond_the_cutoff_change_no_atom_s_energy(self, model):
        z, pos, batch, cells, pbc = crystals()
        near = Graph(3.0).edges(pos, batch, cells, pbc)
        far = Graph(5.0).edges(pos, batch, cells, pbc)
        expected = model.network.atomic_energies(z, near)
        assert expected.shape == (10, 1)
        assert len(far.vector) > 2 * len(near.vector)
        assert_equal(model.network.atomic_energies(z, far), expected)
        none = Edges(near.index[:, :0], near.vector[:0])
        alone = model.network.atomic_energies(z, none)
        assert alone.shape == (10, 1)
        assert (alone - expected).abs().min() > 1e-4  # control: what is nearer does count

    def test_forces_in_inference_mode(self, model):
        atoms = crystals()
        expected = model.energy_forces_virial(*atoms)
        with torch.inference_mode():
            copies = [part.clone() for part in atoms]
            for actual, wanted in zip(model.energy_forces_virial(*copies), expected, strict=True):
                assert_equal(actual, wanted, atol=0)

    def test_a_new_network_is_not_silent(self, network):
        torch.manual_seed(1)
        fresh = Potential(small(self.name)).double()  # as it is built: no parameter is shaken
        z, pos, batch, cells, pbc = crystals()
        energy_i = fresh.atomic_energies(z, pos, batch, cells, pbc)
        _, force, virial = fresh.energy_forces_virial(z, pos, batch, cells, pbc)
        assert energy_i.std() > 1e-3
        assert force[:3].abs().amax(dim=1).min() > 1e-5
        assert virial[:3].abs().amax(dim=(1, 2)).min() > 1e-5

    def test_rotation_error_in_float64(self, model):
        z, pos, batch, cells, pbc = crystals()
        expected = model.network.atomic_energies(z, Graph(3.0).edges(pos, batch, cells, pbc))
        for determinant in (1, -1):
            Q = random_orthogonal(determinant)
            edges = Graph(3.0).edges(pos @ Q.T, batch, cells @ Q.T, pbc)
            error = (model.network.atomic_energies(z, edges) - expected).abs().max()
            assert error <= 1e-12 * expected.abs().max()

    def test_weights_travel_with_the_state_dict(self, model):
        other = Potential(small(self.name)).double()
        z, pos, batch, cells, pbc = crystals()
        assert (other(z, pos, batch, cells, pbc) - model(z, pos, batch, cells, pbc)).abs().min() > 0
        other.load_state_dict(model.state_dict())
        assert_equal(other(z, pos, batch, cells, pbc), model(z, pos, batch, cells, pbc), atol=0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_sizes_have_defaults_help_and_the_name_of_their_network(name):
    kind = networks.sizes_of(name)
    sizes = kind(cutoff=4.5)
    assert networks.name_of(sizes) == name
    assert sizes.cutoff == 4.5
    assert all(field.metadata["help"] for field in dataclasses.fields(kind))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sizes.cutoff = 1.0
    assert NETWORKS[name].partition(": ")[2]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_are_built_with_the_sizes_that_are_given(name):
    torch.manual_seed(0)
    network = networks.build(name, {"cutoff": 4.5})
    assert network.cutoff == 4.5
    torch.manual_seed(0)
    same = networks.sizes_of(name)(cutoff=4.5).build()
    assert type(same) is type(network)
    weights = network.state_dict()
    for key, value in same.state_dict().items():
        assert torch.equal(value, weights[key])
    default = networks.sizes_of(name)()
    assert networks.build(name, {}).cutoff == default.cutoff
    as_saved = networks.build(name, dataclasses.asdict(default))
    shapes = [weight.shape for weight in networks.build(name, {}).parameters()]
    assert [weight.shape for weight in as_saved.parameters()] == shapes


def test_sizes_of_schnet():
    network = networks.build(
        "schnet", {"dim_embedding": 7, "num_filters": 5, "num_interactions": 4, "num_gaussians": 11,
                   "cutoff": 2.0, "gamma": 3.0}
    )  # fmt: skip
    assert network.readout[0].in_features == 7
    assert network.interactions[0].conv.lin1.out_features == 5
    assert len(network.interactions) == 4
    assert len(network.radial_expansion.mu) == 11
    assert network.radial_expansion.gamma == 3.0
    wide = networks.build("schnet", {"cutoff": 2.0, "num_gaussians": 11})
    assert float(wide.radial_expansion.gamma) == pytest.approx(0.5 / 0.2**2)  # σ is the spacing
    assert len(networks.build("schnet", {"num_gaussians": 1}).radial_expansion.mu) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: networks.build("gnn", {}),
            r"network: expected one of \[.*'schnet'.*\], got 'gnn'",
        ),
        (lambda: networks.sizes_of("SchNet"), r"network: expected one of .*, got 'SchNet'"),
        (lambda: networks.sizes_of("__init__"), r"network: expected one of .*, got '__init__'"),
        (
            lambda: networks.build("schnet", {"cutoff": 3.0, "width": 3}),
            r"sizes: expected some of \[.*'cutoff'.*\] for schnet, got \['cutoff', 'width'\]",
        ),
        (lambda: networks.build("schnet", {"cutoff": -1.0}), "cutoff: expected a positive"),
        (lambda: networks.build("schnet", {"num_filters": 0}), "num_filters: expected a positive"),
        (lambda: networks.build("schnet", {"gamma": -1.0}), "gamma: expected a positive"),
    ],
)
def test_wrong_names_and_sizes_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# PaiNN and TensorNet: networks of atoms with the same sizes

OF_ATOMS = pytest.mark.parametrize("make", [PaiNN, TensorNet])


@OF_ATOMS
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_no_number_of_a_weight_is_idle(make, blocks):
    torch.manual_seed(0)
    model = make(4, blocks, 6, 3.0).double()
    z, pos, batch = molecules()
    model.atomic_energies(z, Graph(3.0).edges(pos, batch)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "embedding.weight":  # whose other rows wait for other elements
            assert (parameter.grad != 0).all(), name


@OF_ATOMS
@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"dim_embedding": 0}, "dim_embedding: expected a positive integer, got 0"),
        ({"num_interactions": -1}, "num_interactions: expected a positive integer, got -1"),
        ({"num_gaussians": 2.5}, "num_gaussians: expected a positive integer, got 2.5"),
        ({"cutoff": 0.0}, "cutoff: expected a positive finite number, got 0.0"),
        ({"gamma": -1.0}, "gamma: expected a positive finite number, got -1.0"),
    ],
)
def test_wrong_sizes_are_errors(make, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(**sizes)
