"""SchNet's building blocks against oracles that cannot share their bugs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from contract import EnergyModelContract, assert_equal, molecules
from torch import nn
from torch_geometric.nn import SchNet as PyGSchNet

import schnet_helpers
from fake_data import fake_batch, fake_trajectory, lattice_sites
from schnet_helpers import (
    ElementEmbedding,
    RadialExpansion,
    RadiusInteractionGraph,
    SchNet,
    markdown_table,
    sample_sizes,
    save_figure,
    use_figure_style,
    visualize_graph,
)


class TestSchNet(EnergyModelContract):
    """SchNet keeps the contract; see `contract.py`."""

    def make_model(self) -> nn.Module:
        return SchNet(8, 12, 2, 10, cutoff=3.0, embedding=ElementEmbedding(8, max_z=10))

    def reach_further(self, model, factor):
        model.interaction_graph = RadiusInteractionGraph(factor * model.cutoff)


class TestSchNetWithLinearEmbedding(TestSchNet):
    """The sheet's embedding keeps it too: Z = 1, 6, 8 are three different inputs."""

    def make_model(self) -> nn.Module:
        return SchNet(8, 12, 2, 10, cutoff=3.0)


# The graph


def edge_set(edge_index: torch.Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edge_index.T.tolist()))


def edges_by_loops(pos: torch.Tensor, batch: torch.Tensor, cutoff: float) -> list[tuple[int, int]]:
    points = pos.double().numpy()
    distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    same = batch.numpy()[:, None] == batch.numpy()[None]
    near = same & (distance < cutoff) & ~np.eye(len(points), dtype=bool)
    return sorted(map(tuple, np.argwhere(near).tolist()))


@pytest.mark.parametrize("n_atoms, cutoff", [(7, 1.5), (7, 5.0), (7, 0.3), (520, 1.7), (520, 4.0)])
def test_graph_equals_loops(search, n_atoms, cutoff):
    _, pos, batch = fake_batch(2, n_atoms)
    edge_index, d_ij = RadiusInteractionGraph(cutoff)(pos, batch)
    assert edge_set(edge_index) == edges_by_loops(pos, batch, cutoff)
    j, i = edge_index
    assert_equal(d_ij, (pos[j] - pos[i]).square().sum(dim=1).sqrt(), atol=1e-6)


def test_graph_of_samples_of_different_sizes(search):
    pos = fake_trajectory(1, 60).positions[0]
    batch = torch.tensor([0] + [1] * 39 + [2] * 2 + [3] * 18)
    edge_index, _ = RadiusInteractionGraph(2.0)(pos, batch)
    assert edge_set(edge_index) == edges_by_loops(pos, batch, 2.0)


def test_both_searches_agree_on_atoms_exactly_at_the_cutoff(monkeypatch):
    if schnet_helpers.radius_graph is None:
        pytest.skip("torch_cluster cannot be imported here")
    pos = lattice_sites(300) + 0.1  # a lattice: many distances equal the cutoff up to rounding
    batch = torch.zeros(300, dtype=torch.int64)
    for cutoff in (1.1, 1.1 * math.sqrt(2), 1.1 * math.sqrt(3), 2.2):
        tree, _ = RadiusInteractionGraph(cutoff)(pos, batch)
        with monkeypatch.context() as patch:
            patch.setattr(schnet_helpers, "radius_graph", None)
            pairs, _ = RadiusInteractionGraph(cutoff)(pos, batch)
        assert edge_set(tree) == edge_set(pairs)


def test_all_pairs_in_pieces_are_all_pairs(monkeypatch):
    _, pos, batch = fake_batch(3, 50)
    monkeypatch.setattr(schnet_helpers, "radius_graph", None)
    whole, _ = RadiusInteractionGraph(2.0)(pos, batch)
    monkeypatch.setattr(schnet_helpers, "MAX_PAIRS", 400)
    pieces, _ = RadiusInteractionGraph(2.0)(pos, batch)
    assert torch.equal(pieces, whole)


def test_graph_has_every_edge_in_both_directions(search):
    _, pos, batch = fake_batch(2, 100)
    edge_index, _ = RadiusInteractionGraph(4.0)(pos, batch)
    assert edge_index[1].bincount().max() > 32
    assert edge_set(edge_index) == edge_set(edge_index.flip(0))


def test_limit_that_would_drop_an_edge_raises(search):
    _, pos, batch = fake_batch(1, 100)
    most = int(RadiusInteractionGraph(4.0)(pos, batch)[0][1].bincount().max())
    edge_index, _ = RadiusInteractionGraph(4.0, max_num_neighbors=most)(pos, batch)
    assert edge_set(edge_index) == edges_by_loops(pos, batch, 4.0)
    with pytest.raises(
        ValueError, match=f"max_num_neighbors: expected {most} or more .*{most - 1}"
    ):
        RadiusInteractionGraph(4.0, max_num_neighbors=most - 1)(pos, batch)


class DefaultLimit(nn.Module):
    """torch_cluster's own graph with its default limit of 32 neighbours."""

    def forward(self, pos, batch):
        edge_index = schnet_helpers.radius_graph(pos, 5.0, batch)
        return edge_index, (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=1)


def test_energy_depends_on_the_order_of_atoms_with_torch_cluster_s_limit_but_not_with_ours():
    if schnet_helpers.radius_graph is None:
        pytest.skip("torch_cluster cannot be imported here")
    torch.manual_seed(0)
    model, (z, pos, batch) = SchNet(), fake_batch(1, 100)
    orders = [torch.randperm(100) for _ in range(5)]
    exact = torch.cat([model(z, pos[order], batch) for order in orders])
    model.interaction_graph = DefaultLimit()
    limited = torch.cat([model(z, pos[order], batch) for order in orders])
    assert exact.max() - exact.min() < 1e-4
    assert limited.max() - limited.min() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_neighbours(search, dtype):
    pos, batch = fake_trajectory(1, 520).positions[0].to(dtype), torch.zeros(520).long()
    pos = pos[: 1 + int((torch.pdist(pos.float()) > 0).all()) * 519]
    edge_index, _ = RadiusInteractionGraph(4.0)(pos, batch[: len(pos)])
    assert edge_set(edge_index) == edges_by_loops(pos.float(), batch[: len(pos)], 4.0)
    assert len(pos) == 520


def test_graph_distances_are_differentiable(search, float64):
    _, pos, batch = fake_batch(1, 7)
    pos = pos.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda pos: RadiusInteractionGraph(1.8)(pos, batch)[1], pos)


# Embedding and radial expansion


def test_expansion_equals_typed_numbers():
    expansion = RadialExpansion(4.0, torch.linspace(0, 5, 10))
    expected = torch.tensor(
        [
            [0.36788, 0.98773, 0.22451, 0.00432, 0.00001],
            [0.01832, 0.45379, 0.95182, 0.16901, 0.00254],
            [0.00012, 0.02821, 0.54611, 0.89484, 0.12413],
        ]
    )
    assert_equal(expansion.expand(torch.tensor([0.5, 1.0, 1.5]))[:, :5], expected, atol=1e-5)


def test_expansion_adds_one_axis():
    expansion = RadialExpansion(4.0, [0.0, 1.0, 2.0])
    for shape in [(), (0,), (4,), (2, 4)]:
        d = torch.rand(shape)
        assert expansion.expand(d).shape == (*shape, 3)
        assert torch.equal(expansion(d), expansion.expand(d))
    assert expansion.expand(torch.tensor(1.0)).argmax() == 1


def test_mu_follows_the_module():
    expansion = RadialExpansion(4.0, torch.linspace(0, 5, 10)).double()
    assert expansion.expand(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    assert "radial_expansion.mu" in SchNet().state_dict()
    assert "radial_expansion.mu" not in dict(SchNet().named_parameters())


def test_element_embedding_tells_elements_apart():
    embedding = ElementEmbedding(4, max_z=8)
    rows = embedding(torch.tensor([[1.0], [8.0], [1.0]]))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    for bad in (9.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="z: expected whole numbers from 0 to 8"):
            embedding(torch.tensor([[bad]]))


# The model


def softplus(x):
    return np.log1p(np.exp(x)) - math.log(2)


def dense(layer: nn.Linear, x):
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    return layer.weight.detach().numpy() @ x + bias


def energy_by_loops(model: SchNet, z: float, pos: np.ndarray) -> float:
    """SchNet's energy of one sample with a double loop over its atoms, in numpy."""
    mu, gamma = model.radial_expansion.mu.numpy(), float(model.radial_expansion.gamma)
    x = [dense(model.embedding, np.array([z])) for _ in pos]
    for block in model.interactions:
        new = []
        for i, r_i in enumerate(pos):
            message = np.zeros(block.conv.lin1.out_features)
            for j, r_j in enumerate(pos):
                d = math.dist(r_i, r_j)
                if j == i or d >= model.cutoff:
                    continue
                e = np.exp(-gamma * (d - mu) ** 2)
                w = dense(block.mlp[2], softplus(dense(block.mlp[0], e)))
                w = w * 0.5 * (math.cos(math.pi * d / model.cutoff) + 1)
                message += w * dense(block.conv.lin1, x[j])
            new.append(x[i] + dense(block.lin, softplus(dense(block.conv.lin2, message))))
        x = new
    return sum(dense(model.readout[2], softplus(dense(model.readout[0], x_i))).item() for x_i in x)


def test_energy_equals_loops_over_atoms(search, float64):
    torch.manual_seed(1)
    model = SchNet(6, 5, 2, 10, cutoff=1.8)
    z, pos, batch = fake_batch(2, 7)
    pos = pos.double()
    expected = [energy_by_loops(model, 1.0, p.numpy()) for p in pos.view(2, 7, 3)]
    assert_equal(model(z, pos, batch).flatten(), torch.tensor(expected))
    assert abs(expected[0] - expected[1]) > 1e-6


def pyg_twin(model: SchNet, hidden: int, filters: int, blocks: int, gaussians: int) -> PyGSchNet:
    graph = model.interaction_graph
    twin = PyGSchNet(hidden, filters, blocks, gaussians, model.cutoff, interaction_graph=graph)
    twin.interactions.load_state_dict(model.interactions.state_dict())
    twin.lin1.load_state_dict(model.readout[0].state_dict())
    twin.lin2.load_state_dict(model.readout[2].state_dict())
    twin.embedding.weight.data = model.embedding(torch.arange(100.0).view(-1, 1)).detach()
    twin.distance_expansion.coeff = -model.radial_expansion.gamma
    twin.distance_expansion.offset = model.radial_expansion.mu
    return twin


def test_energy_equals_pyg_with_the_same_weights(float64):
    torch.manual_seed(2)
    model = SchNet(16, 24, 3, 12, cutoff=3.0)
    z, pos, batch = molecules()
    expected = pyg_twin(model, 16, 24, 3, 12)(z.flatten(), pos, batch)
    torch.testing.assert_close(model(z, pos, batch), expected, rtol=1e-12, atol=0)


class Edges(NamedTuple):
    index: torch.Tensor
    vector: torch.Tensor


def test_energies_of_atoms_from_lengths_and_from_vectors():
    torch.manual_seed(2)
    model = SchNet(8, 12, 2, 10, cutoff=3.0).double()
    z, pos, batch = molecules()
    edge_index, d_ij = model.interaction_graph(pos, batch)
    j, i = edge_index
    energy_i = model.energy_per_atom(z, edge_index, d_ij)
    assert energy_i.shape == (7, 1)
    by_sample = torch.stack([energy_i[:3].sum(0), energy_i[3:].sum(0)])
    assert_equal(by_sample, model(z, pos, batch))
    of_vectors = model.atomic_energies(z, Edges(edge_index, pos[j] - pos[i]))
    assert_equal(of_vectors, energy_i)


def test_lengths_at_and_beyond_the_cutoff_count_for_nothing():
    torch.manual_seed(2)
    model = SchNet(8, 12, 2, 10, cutoff=3.0).double()
    z, edge_index = torch.tensor([[8], [1]]), torch.tensor([[1, 0], [0, 1]])

    def energy_and_slope(d: float) -> tuple[torch.Tensor, torch.Tensor]:
        d_ij = torch.full((2,), d, dtype=torch.float64, requires_grad=True)
        energy_i = model.energy_per_atom(z, edge_index, d_ij)
        return energy_i.detach(), torch.autograd.grad(energy_i.sum(), d_ij)[0]

    alone = model.energy_per_atom(z, edge_index[:, :0], torch.zeros(0).double()).detach()
    for d in (3.0, 3.0001, 4.0, 6.0, 9.0):  # PyG's cosine is 1 again at twice the cutoff
        energy_i, slope = energy_and_slope(d)
        assert_equal(energy_i, alone)
        assert_equal(slope, torch.zeros(2).double())
    energy_i, slope = energy_and_slope(2.0)  # control
    assert (energy_i - alone).abs().min() > 1e-5 and slope.abs().min() > 1e-5


def test_atomic_numbers_per_sample_per_atom_flat_float_or_integer():
    _, pos, batch = fake_batch(3, 7)
    model = SchNet()
    numbers = torch.tensor([[1], [6], [8]])
    expected = model(numbers, pos, batch)
    assert (expected.diff(dim=0).abs() > 1e-4).all()
    for z in (
        numbers.float(),
        numbers.flatten(),
        numbers[batch],
        numbers[batch].flatten().double(),
    ):
        assert torch.equal(model(z, pos, batch), expected)


def test_samples_of_different_sizes_and_samples_without_a_pair(search):
    torch.manual_seed(0)
    model = SchNet(cutoff=1.5)
    pos = fake_trajectory(1, 12).positions[0]
    pos[8] = pos[7] + torch.tensor([0.6, 0.6, 0.6])  # sample 1: a pair in range
    pos[9:] += torch.tensor([[10.0], [20.0], [30.0]])  # sample 2: three lonely atoms
    batch = torch.tensor([0] * 7 + [1] * 2 + [2] * 3)
    z = torch.ones(3, 1)
    energy = model(z, pos, batch)
    lonely = model(z[:1], pos[:1], batch[:1])
    torch.testing.assert_close(energy[2], 3 * lonely[0])
    assert not torch.isclose(energy[1], 2 * lonely[0])
    torch.testing.assert_close(energy[1:2], model(z[:1], pos[7:9], batch[:2]))


def test_both_searches_give_the_same_energy(monkeypatch):
    if schnet_helpers.radius_graph is None:
        pytest.skip("torch_cluster cannot be imported here")
    model = SchNet().double()
    z, pos, batch = fake_batch(2, 100)
    tree = model(z, pos.double(), batch)
    monkeypatch.setattr(schnet_helpers, "radius_graph", None)
    assert_equal(model(z, pos.double(), batch), tree)


def test_default_sizes_and_positional_arguments():
    a, b = SchNet(), SchNet(32, 32, 2, 10, 5.0)
    assert str(a) == str(b)
    assert a.radial_expansion.gamma == 4.0
    assert len(a.radial_expansion.mu) == 10
    assert float(a.radial_expansion.mu[-1]) == a.cutoff == 5.0


def test_one_feature_is_enough():
    assert SchNet(dim_embedding=1)(*fake_batch(2)).shape == (2, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_atoms", [7, 520])
def test_cuda_gives_the_energy_of_the_cpu(n_atoms, float64):
    model = SchNet()
    z, pos, batch = (x.double() if x.is_floating_point() else x for x in fake_batch(3, n_atoms))
    expected = model(z, pos, batch)
    energy = model.cuda()(z.cuda(), pos.cuda(), batch.cuda())
    torch.testing.assert_close(energy.cpu(), expected)
    with pytest.raises(ValueError, match="pos: expected device cuda"):
        model(z, pos, batch)


# Errors

Z, POS, BATCH = fake_batch(2, 7)
NAN_POS = POS.index_put((torch.tensor(9),), torch.tensor(float("nan")))
TWICE = POS.index_put((torch.tensor(9),), POS[8])
MODEL_ERRORS = [
    ("z of another length", torch.ones(3, 1), POS, BATCH, r"z: .*\(2, 1\).*\(14, 1\).*\(3, 1\)"),
    ("z of rank 3", torch.ones(2, 1, 1), POS, BATCH, r"z: .*got \(2, 1, 1\)"),
    ("z with two columns", torch.ones(2, 2), POS, BATCH, r"z: .*got \(2, 2\)"),
    ("scalar z", torch.tensor(1.0), POS, BATCH, r"z: .*got \(\)"),
    ("boolean z", torch.ones(2, 1).bool(), POS, BATCH, "z: .*torch.bool"),
    ("NaN in z", torch.tensor([[1.0], [math.nan]]), POS, BATCH, "z: expected finite"),
    ("flat pos", Z, POS.flatten(), BATCH, r"pos: expected shape \(14, 3\), got \(42,\)"),
    ("pos per frame", Z, POS.view(2, 7, 3), BATCH, r"pos: .*got \(2, 7, 3\)"),
    ("pos in a plane", Z, POS[:, :2], BATCH, r"pos: expected shape \(14, 3\), got \(14, 2\)"),
    ("pos shorter than batch", Z, POS[:13], BATCH, r"pos: expected shape \(14, 3\), got \(13, 3\)"),
    ("batch shorter, z per sample", Z, POS, BATCH[:13], r"pos: expected shape \(13, 3\), got"),
    ("batch shorter, z per atom", Z[BATCH], POS, BATCH[:13], r"batch: .*\(14,\) as z and pos.*13"),
    ("z shorter, per atom", Z[BATCH][1:], POS, BATCH, r"z: .*\(2, 1\).*\(14, 1\).*got \(13, 1\)"),
    ("pos shorter, z per atom", Z[BATCH], POS[:13], BATCH, r"pos: expected shape \(14, 3\)"),
    ("integer pos", Z, POS.long(), BATCH, "pos: .*torch.int64"),
    ("NaN in pos", Z, NAN_POS, BATCH, "pos: expected finite numbers, got .*nan.* for atom 9"),
    ("infinite pos", Z, POS / 0, BATCH, "pos: expected finite numbers"),
    (
        "two atoms in one place",
        Z,
        TWICE,
        BATCH,
        "pos: expected distinct .* got atoms .*8.* one place",
    ),
    (
        "float64 pos, float32 model",
        Z,
        POS.double(),
        BATCH,
        "pos: expected dtype torch.float32 .*64",
    ),
    ("unsorted batch", Z, POS, BATCH.flip(0), "batch: expected sample numbers in ascending order"),
    ("float batch", Z, POS, BATCH.float(), "batch: expected dtype torch.int64, got torch.float32"),
    ("int32 batch", Z, POS, BATCH.int(), "batch: expected dtype torch.int64, got torch.int32"),
    ("batch with a gap", Z, POS, 2 * BATCH, "batch: .* without gaps"),
    ("batch from 1", Z, POS, BATCH + 1, "batch: .* without gaps"),
    ("negative batch", Z, POS, BATCH - 1, "batch: .* without gaps"),
    ("batch of rank 2", Z, POS, BATCH.view(2, 7), r"batch: expected shape \(N,\), got \(2, 7\)"),
    ("z as a list", [[1.0], [1.0]], POS, BATCH, "z: expected a tensor, got <class 'list'>"),
    ("pos as a list", Z, POS.tolist(), BATCH, "pos: expected a tensor, got <class 'list'>"),
    ("batch as a list", Z, POS, BATCH.tolist(), "batch: expected a tensor, got <class 'list'>"),
    ("empty batch", Z[:0], POS[:0], BATCH[:0], "batch: expected at least one atom"),
    ("z on another device", Z.to("meta"), POS, BATCH, "z: expected device cpu .*, got meta"),
    ("pos on another device", Z, POS.to("meta"), BATCH, "pos: expected device cpu .*, got meta"),
]


@pytest.mark.parametrize(
    "what, z, pos, batch, message", MODEL_ERRORS, ids=[e[0] for e in MODEL_ERRORS]
)
def test_bad_input_names_the_argument(search, what, z, pos, batch, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SchNet()(z, pos, batch)


NOT_OF_THE_GRAPH = (
    "z ",
    "batch shorter, z per atom",
    "scalar z",
    "boolean z",
    "NaN in z",
    "float64 pos",
    "pos on another",
)
GRAPH_ERRORS = [error for error in MODEL_ERRORS if not error[0].startswith(NOT_OF_THE_GRAPH)]
GRAPH_ERRORS += [("another device", Z, POS.to("meta"), BATCH, "batch: expected device meta as pos")]


@pytest.mark.parametrize(
    "what, z, pos, batch, message", GRAPH_ERRORS, ids=[e[0] for e in GRAPH_ERRORS]
)
def test_bad_input_to_the_graph_names_the_argument(search, what, z, pos, batch, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RadiusInteractionGraph(2.0)(pos, batch)


CONSTRUCTOR_ERRORS = [
    (lambda: RadiusInteractionGraph(-1.0), "cutoff: expected a positive finite number, got -1.0"),
    (lambda: RadiusInteractionGraph(0), "cutoff: .* got 0"),
    (lambda: RadiusInteractionGraph(math.inf), "cutoff: .* got inf"),
    (lambda: RadiusInteractionGraph("5"), "cutoff: .* got 5"),
    (lambda: RadiusInteractionGraph(1e20), "cutoff: .* got 1e\\+20"),
    (
        lambda: RadiusInteractionGraph(5.0, 0),
        "max_num_neighbors: expected a positive integer, got 0",
    ),
    (lambda: RadialExpansion(-4.0, [0.0]), "gamma: .* got -4.0"),
    (lambda: RadialExpansion(4.0, []), r"mu: expected shape \(K,\), K > 0, got \(0,\)"),
    (lambda: RadialExpansion(4.0, [[1.0]]), r"mu: .* got \(1, 1\)"),
    (lambda: RadialExpansion(4.0, [0.0, math.nan]), "mu: expected finite centres"),
    (lambda: RadialExpansion(4.0, [0.0]).expand(torch.ones(1).double()), "d: .*float32.*float64"),
    (lambda: RadialExpansion(4.0, [0.0]).expand(torch.arange(3)), "d: .*float32.*int64"),
    (lambda: SchNet(dim_embedding=0), "dim_embedding: expected a positive integer, got 0"),
    (lambda: SchNet(num_filters=1.5), "num_filters: expected a positive integer, got 1.5"),
    (lambda: SchNet(num_interactions=-2), "num_interactions: .* got -2"),
    (lambda: SchNet(num_gaussians=0), "num_gaussians: .* got 0"),
    (lambda: SchNet(cutoff=math.nan), "cutoff: .* got nan"),
    (lambda: SchNet(gamma=0.0), "gamma: .* got 0.0"),
]


@pytest.mark.parametrize(
    "make, message", CONSTRUCTOR_ERRORS, ids=[e[1] for e in CONSTRUCTOR_ERRORS]
)
def test_bad_constructor_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_embedding_of_another_width_is_named():
    with pytest.raises(
        ValueError, match=r"embedding: expected a module that returns \(14, 32\), got"
    ):
        SchNet(embedding=nn.Linear(1, 16))(Z, POS, BATCH)


def test_state_dict_of_another_cutoff_is_refused():
    state = SchNet(cutoff=5.0).state_dict()
    with pytest.raises(ValueError, match=r"state_dict: expected weights for cutoff 3\.0"):
        SchNet(cutoff=3.0).load_state_dict(state)
    model = SchNet(cutoff=5.0, gamma=9.0)
    model.load_state_dict(state)
    assert model.radial_expansion.gamma == 4.0


def test_numpy_numbers_are_numbers():
    model = SchNet(np.int64(8), cutoff=np.float32(5))
    assert model.cutoff == 5.0


@pytest.mark.filterwarnings("ignore")
def test_compiled_model_gives_the_same_energy():
    model = SchNet()
    torch.testing.assert_close(
        torch.compile(model, backend="eager")(Z, POS, BATCH), model(Z, POS, BATCH)
    )


def test_sample_sizes_count_the_atoms_of_each():
    assert sample_sizes(torch.tensor([0, 0, 0, 1, 2, 2])).tolist() == [3, 1, 2]


# Drawing


@pytest.fixture
def figure():
    plt.close("all")
    with matplotlib.rc_context():
        yield
    plt.close("all")


def test_visualize_graph_draws_the_projection(figure):
    positions = fake_trajectory(1).positions[0]
    edge_index, d_ij = RadiusInteractionGraph(1.5)(positions, torch.zeros(7, dtype=torch.int64))
    _, given = plt.subplots()
    ax = visualize_graph(positions, edge_index, 2, 0, ax=given)
    assert ax is given
    lines, points = ax.collections
    np.testing.assert_allclose(points.get_offsets(), positions[:, [2, 0]])
    segments = positions[edge_index.T][:, :, [2, 0]]
    np.testing.assert_allclose(np.array(lines.get_segments()), segments)
    np.testing.assert_allclose(lines.get_array(), d_ij)
    assert ax.get_xlabel().startswith("$z$") and ax.get_ylabel().startswith("$x$")
    assert visualize_graph(positions, edge_index[:, :0], 0, 1) is not given


@pytest.mark.parametrize(
    "positions, edge_index, dims, message",
    [
        (POS.view(2, 7, 3), torch.zeros(2, 0).long(), (0, 1), r"positions: .*\(2, 7, 3\)"),
        (
            POS,
            torch.zeros(3, 4).long(),
            (0, 1),
            r"edge_index: expected shape \(2, E\), got \(3, 4\)",
        ),
        (POS, torch.zeros(4).long(), (0, 1), r"edge_index: .* got \(4,\)"),
        (POS, torch.tensor([[0], [14]]), (0, 1), "edge_index: expected atoms 0 to 13"),
        (POS, torch.zeros(2, 0).long(), (1, 1), r"dim_1, dim_2: .* got \(1, 1\)"),
        (POS, torch.zeros(2, 0).long(), (0, 3), r"dim_1, dim_2: .* got \(0, 3\)"),
    ],
)
def test_visualize_graph_names_bad_arguments(figure, positions, edge_index, dims, message):
    with pytest.raises(ValueError, match=message):
        visualize_graph(positions, edge_index, *dims)


def test_markdown_table_is_markdown():
    table = markdown_table(["quantity", "value"], [["edges", 12], ["degree", "1.7"]])
    assert table.data == "| quantity | value |\n| --- | --- |\n| edges | 12 |\n| degree | 1.7 |"


def test_save_figure_writes_whole_equal_files(figure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_figure_style()
    fig, ax = plt.subplots()
    ax.plot([1, 2], label="line")
    ax.legend()
    first = save_figure(fig, "a.svg").read_bytes()
    assert save_figure(fig, "a.svg") == Path("figures", "a.svg")
    assert Path("figures", "a.svg").read_bytes() == first
    assert [path.name for path in Path("figures").iterdir()] == ["a.svg"]
    with pytest.raises(
        ValueError, match=r"name: expected a file name that ends in \.svg, got a\.png"
    ):
        save_figure(fig, "a.png")


def test_failed_save_leaves_the_old_figure(figure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fig, ax = plt.subplots()
    old = save_figure(fig, "a.svg").read_bytes()
    ax.set_title("$\\unknown$")
    with pytest.raises(ValueError, match="unknown"):
        save_figure(fig, "a.svg")
    assert Path("figures/a.svg").read_bytes() == old
