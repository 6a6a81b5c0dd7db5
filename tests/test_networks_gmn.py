"""GMN: lengths that stay, symmetry for any number of objects, and accelerations of mechanics."""

from __future__ import annotations

import pytest
import torch
from contract import assert_equal, random_orthogonal
from torch import Tensor

from molnets.networks.gmn import GMN, Objects, hinge_accelerations, turned, turning

LENGTH = 1e-12
KINDS = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (3, 0), (0, 3), (1, 2), (2, 1), (4, 0), (2, 2)]


def particles(num_sticks: int, num_hinges: int, alone: int = 2, dim: int = 5):
    """Return h, x, v, edges and objects, whose velocities stretch no rod; members in any order."""
    generator = torch.Generator().manual_seed(7 * num_sticks + num_hinges)
    n = 2 * num_sticks + 3 * num_hinges + alone
    h, x, v = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (dim, 3, 3))
    v *= 0.3
    order = torch.randperm(n, generator=generator)
    sticks = order[: 2 * num_sticks].view(num_sticks, 2)
    hinges = order[2 * num_sticks : n - alone].view(num_hinges, 3)
    objects = Objects(sticks, hinges)
    for a, b in objects.rods().tolist():
        spin = 0.3 * torch.randn(3, generator=generator, dtype=torch.float64)
        v[b] = v[a] + torch.linalg.cross(spin, x[b] - x[a])
    i, j = torch.where(~torch.eye(n, dtype=torch.bool))
    return h, x, v, torch.stack([j, i]), objects


def network(learnable: bool, dim: int = 5) -> GMN:
    torch.manual_seed(0)
    return GMN(dim, 3, learnable=learnable).double()


def lengths(x: Tensor, objects: Objects) -> Tensor:
    a, b = objects.rods().T
    return (x[a] - x[b]).norm(dim=1)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
class TestAnyObjects:
    def test_lengths_stay_and_inputs_too(self, kind, learnable):
        h, x, v, index, objects = particles(*kind)
        model, copies = network(learnable), [y.clone() for y in (h, x, v)]
        new = model(h, x, v, index, objects)
        assert_equal(lengths(new[1], objects), lengths(x, objects), atol=LENGTH)
        a, b = objects.rods().T  # and no velocity stretches a rod
        stretch = ((new[1][b] - new[1][a]) * (new[2][b] - new[2][a])).sum(dim=1)
        assert_equal(stretch, torch.zeros_like(stretch), atol=1e-10)
        for now, before in zip((h, x, v), copies, strict=True):
            assert torch.equal(now, before)
        assert (new[1] - x).abs().max() > 1e-2

    @pytest.mark.parametrize("determinant", [1, -1])
    def test_turns_with_its_particles(self, kind, learnable, determinant):
        h, x, v, index, objects = particles(*kind)
        model = network(learnable)
        Q, t = random_orthogonal(determinant), torch.randn(3, dtype=torch.float64)
        new_h, new_x, new_v = model(h, x, v, index, objects)
        actual = model(h, x @ Q.T + t, v @ Q.T, index, objects)
        for got, wanted in zip(actual, (new_h, new_x @ Q.T + t, new_v @ Q.T), strict=True):
            assert_equal(got, wanted, atol=1e-11 * max(1.0, wanted.abs().max().item()))
        assert (new_x - x).abs().max() > 1e-2
        assert (new_v - v).abs().max() > 1e-2

    def test_numbering_does_not_matter(self, kind, learnable):
        h, x, v, index, objects = particles(*kind)
        model = network(learnable)
        expected = model(h, x, v, index, objects)
        order = torch.randperm(len(h), generator=torch.Generator().manual_seed(1))
        place = order.argsort()
        renamed = Objects(*(place[part].flip(0) for part in objects))
        actual = model(h[order], x[order], v[order], place[index].flip(1), renamed)
        for got, wanted in zip(actual, expected, strict=True):
            assert_equal(got, wanted[order], atol=1e-11 * max(1.0, wanted.abs().max().item()))


def test_objects_one_by_one_are_what_they_are_together():
    h, x, v, _, objects = particles(2, 2, alone=0)
    none, model = torch.empty(2, 0, dtype=torch.int64), network(False)
    together = model(h, x, v, none, objects)
    for kind, members in zip(Objects._fields, objects, strict=True):
        for own in members:
            only = {"sticks": torch.empty(0, 2, dtype=torch.int64),
                    "hinges": torch.empty(0, 3, dtype=torch.int64)}  # fmt: skip
            only[kind] = torch.arange(len(own)).view(1, -1)
            alone = model(h[own], x[own], v[own], none, Objects(**only))
            for got, wanted in zip(alone, together, strict=True):
                assert_equal(got, wanted[own])


def test_accelerations_of_hinges_are_those_of_least_constraint():
    torch.manual_seed(0)
    r, f = torch.randn(4, 2, 3).double(), torch.randn(4, 3, 3).double()
    rate = torch.linalg.cross(torch.randn(4, 2, 3).double(), r)
    actual = hinge_accelerations(r, rate, f)
    for n in range(4):  # Gauss: min Σ (ẍ_i − f_i)² where r_k·(ẍ_k − ẍ_0) = −ṙ_k²
        J = torch.zeros(2, 9, dtype=torch.float64)
        for k in range(2):
            J[k, 3 * (k + 1) : 3 * (k + 2)], J[k, :3] = r[n, k], -r[n, k]
        wanted = -rate[n].square().sum(dim=1) - J @ f[n].flatten()
        expected = f[n].flatten() + torch.linalg.pinv(J) @ wanted
        assert_equal(actual[n].flatten(), expected)
    assert (actual - f).abs().max() > 1e-1
    assert_equal(actual.sum(dim=1), f.sum(dim=1))  # tensions are inner forces


def test_a_free_hinge_moves_as_mechanics_says():
    """Small steps without forces: the energy and the momentum of a hinge stay."""
    _, x, v, _, objects = particles(0, 1, alone=0)
    members = objects.hinges[0]
    x, v = x[members][None], 3 * v[members][None]
    r0 = x[:, 1:] - x[:, :1]
    dt, energies = 1e-4, []
    momentum = v.sum(dim=1)
    for _ in range(5000):  # the same parts as a layer, as a leapfrog in the angular velocities
        r, rate = x[:, 1:] - x[:, :1], v[:, 1:] - v[:, :1]
        a = hinge_accelerations(r, rate, torch.zeros_like(x))
        u = v[:, :1] + dt * a[:, :1]
        omega = turning(r, rate) + dt * turning(r, a[:, 1:] - a[:, :1])
        r = turned(r, dt * omega)
        p = x[:, :1] + dt * u
        x = torch.cat([p, p + r], dim=1)
        v = torch.cat([u, u + torch.linalg.cross(omega, r)], dim=1)
        energies.append(0.5 * v.square().sum().item())
    assert abs(energies[-1] / energies[0] - 1) < 1e-3
    assert_equal(v.sum(dim=1), momentum, atol=1e-3)
    assert (x[:, 1:] - x[:, :1] - r0).abs().max() > 0.1  # control: the rods have turned


def test_turned_is_a_rotation():
    torch.manual_seed(0)
    r = torch.randn(6, 3).double()
    omega = torch.linalg.cross(torch.randn(6, 3).double(), r)
    omega[0] = 0.0
    expected = torch.stack([
        torch.linalg.matrix_exp(torch.linalg.cross(w.expand(3, 3), torch.eye(3).double()).T) @ x
        for w, x in zip(omega, r, strict=True)
    ])  # fmt: skip
    assert_equal(turned(r, omega), expected)
    omega.requires_grad_()
    assert torch.autograd.grad(turned(r, omega).sum(), omega)[0].isfinite().all()


@pytest.mark.parametrize("learnable", [False, True])
def test_every_parameter_gets_a_gradient(learnable):
    h, x, v, index, objects = particles(2, 2)
    model = network(learnable)
    sum(y.square().sum() for y in model(h, x, v, index, objects)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda o, v: (Objects(o.sticks[:, :1], o.hinges), v), "objects.sticks: expected int64"),
        (lambda o, v: (Objects(o.sticks, o.hinges.float()), v), "objects.hinges: expected int64"),
        (lambda o, v: (Objects(o.sticks, o.sticks[:, [0, 1, 1]]), v), "objects: expected each"),
        (lambda o, v: (o, v + torch.randn_like(v)), "v: expected velocities that stretch no rod"),
    ],
)  # fmt: skip
def test_wrong_objects_are_errors(change, message):
    h, x, v, index, objects = particles(1, 1)
    objects, v = change(objects, v)
    with pytest.raises(ValueError, match=message):
        network(False)(h, x, v, index, objects)
