"""The networks that are wrong on purpose are wrong in the way they say, and in no other."""

from __future__ import annotations

import pytest
import torch
from contract import assert_equal

from benchmarks import faulty
from fake_data import fake_batch
from molnets import Potential, model_force_fn
from schnet_helpers import ElementEmbedding, SchNet


def network(num_gaussians: int = 10) -> SchNet:
    torch.manual_seed(0)
    return SchNet(8, 8, 2, num_gaussians, cutoff=1.6, embedding=ElementEmbedding(8)).double()


def pair_energy(model: SchNet, elements: tuple[float, float], d: float) -> float:
    pos = torch.tensor([[0.0, 0, 0], [d, 0, 0]]).double()
    with torch.no_grad():
        return float(model(torch.tensor([elements]).T.double(), pos, torch.zeros(2).long()))


def test_hard_cutoff_jumps_where_a_sound_one_fades():
    def jump(model):
        return abs(
            pair_energy(model, (1.0, 1.0), 1.59999) - pair_energy(model, (1.0, 1.0), 1.60001)
        )

    assert jump(network()) < 1e-8
    assert jump(faulty.hard_cutoff(network())) > 1e-5


def test_own_features_do_not_know_their_neighbours():
    def exchange(model):
        E = {pair: pair_energy(model, pair, 1.0) for pair in ((6, 8), (1, 1), (6, 1), (1, 8))}
        return abs(E[6, 8] + E[1, 1] - E[6, 1] - E[1, 8])

    assert exchange(network()) > 1e-4
    assert exchange(faulty.own_features(network())) < 1e-12


def test_without_expansion_filters_get_the_distance():
    model = faulty.no_expansion(network(num_gaussians=1))
    d = torch.rand(4).double()
    assert_equal(model.radial_expansion.expand(d), d.unsqueeze(1))
    assert torch.isfinite(model(*(x.double() for x in fake_batch(2)[:2]), fake_batch(2)[2])).all()


def test_few_neighbors_keep_the_first_of_each_atom():
    _, pos, batch = fake_batch(1, 60)
    model = network()
    whole, _ = model.interaction_graph(3 * pos / 4, batch)
    kept, d_ij = faulty.FewNeighbors(model.interaction_graph, most=5)(3 * pos / 4, batch)
    assert whole[1].bincount().max() > 5 == kept[1].bincount().max()
    assert len(d_ij) == kept.shape[1]
    for i in range(60):
        first = whole[0][whole[1] == i].sort().values[:5]
        assert kept[0][kept[1] == i].sort().values.tolist() == first.tolist()


@pytest.mark.parametrize("every", [0, 3])
def test_a_stale_list_is_renewed_when_it_says(every):
    potential, z = Potential(network()), torch.ones(7, 1).double()
    _, pos, _ = fake_batch(2, 7)
    x = pos.double().view(2, 7, 3)
    sound, stale = model_force_fn(potential, z), faulty.stale_list(potential, z, every)
    assert_equal(stale(x)[1], sound(x)[1], atol=1e-12)
    differs = [not torch.allclose(stale(0.8 * x)[0], sound(0.8 * x)[0]) for _ in range(4)]
    assert differs == ([True] * 4 if every == 0 else [True, True, False, False])


def test_direct_forces_are_off_by_their_share_and_do_work_on_a_loop():
    sound = model_force_fn(Potential(network()), torch.ones(7))
    _, pos, _ = fake_batch(1, 7)
    x = pos.double()[None]
    ratio = faulty.no_gradient(sound)(x)[1] / sound(x)[1]
    assert 0.001 < (ratio - 1).abs().max() <= 0.01
    angle = torch.linspace(0, 2 * torch.pi, 201, dtype=torch.float64)[:-1]
    loop = x.repeat(200, 1, 1)  # one atom goes round, the others stay
    loop[:, 1, 0] += 0.2 * torch.cos(angle)
    loop[:, 1, 1] += 0.2 * torch.sin(angle)
    step = 0.5 * (loop.roll(-1, 0) - loop.roll(1, 0))
    work = [float((f(loop)[1] * step).sum().abs()) for f in (sound, faulty.no_gradient(sound))]
    assert work[1] > 50 * work[0]  # whose loop crosses the kink at the cutoff
