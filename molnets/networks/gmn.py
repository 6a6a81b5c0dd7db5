"""GMN: a simulator of particles, sticks and hinges that keeps their lengths [1].

Axes:   N particles, E directed edges j -> i, F features, S sticks, H hinges.
Units:  masses are 1 and a step lasts 1: velocities and forces are lengths per step and step².

A layer hears forces from the neighbours, turns them into accelerations that the rods allow, and
moves each object along these, (h, x, v) -> (h, x, v):

| equation                                                               | code                    |
| ---------------------------------------------------------------------- | ----------------------- |
| φ(Z, h) = Z σ(ZᵀZ, h) of vectors Z = (x_j − x_i, v_j − v_i), [1] (5)   | `Interaction`           |
| f_i = Σ_j φ(Z_ij, h_i, h_j, a_ij) + φ(v_i, h_i);  h_i' from m_i        | `Interaction`           |
| ω = r × ṙ / r²;  α = r × r̈ / r²                                        | `turning`               |
| stick, about its middle: p̈ = (f_1 + f_2) / 2;  r̈ = ± (f_1 − f_2) / 2   | `accelerations`         |
| hinge, about its joint 0: r̈_k = ẍ_k − ẍ_0, with the tensions λ of its  | `hinge_accelerations`   |
|   rods: ẍ_k = f_k + λ_k r_k;  ẍ_0 = f_0 − Σ λ_k r_k;  r_k·r̈_k = −ṙ_k²  |                         |
| learnable: p̈ = Σ_i w_i f_i;  r̈_k = w_k' (f_k − p̈), w of invariants     | `accelerations`         |
| u' = g u + p̈;  p' = p + u';  ω' = g ω + α;  r' = R(ω') r               | `Kinematics.forward`    |
| x = p' + r';  v = u' + ω' × r'                                         | `Kinematics.forward`    |

R(ω) turns by the angle |ω| about ω, so lengths stay what they were, whatever the network says. [1]
takes an approximation for the joint of a hinge; here its two tensions are solved for.

[1] Huang, Han, Rong, Xu, Sun & Huang, ICLR 2022, arXiv:2203.06442.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from molnets.networks.egnn import velocity_gate
from molnets.networks.parts import perceptron
from schnet_helpers import expect, expect_sizes

RIGID = 1e-3  # of its ends' velocities: what may stretch a rod in the data, which may be rounded


class Objects(NamedTuple):
    """Which particles belong together; all others are on their own.

    Args:
        sticks: the two ends of each stick, (S, 2).
        hinges: the joint and the two ends of each hinge, (H, 3).
    """

    sticks: Tensor
    hinges: Tensor

    def rods(self) -> Tensor:
        """Return the particles at both ends of all rods, (S + 2 H, 2)."""
        return torch.cat([self.sticks, self.hinges[:, :2], self.hinges[:, ::2]])


class Interaction(nn.Module):
    """Forces and messages of neighbours: φ of two vectors, and of a particle's own velocity."""

    def __init__(self, dim: int, num_edge_features: int) -> None:
        super().__init__()
        width = 2 * dim + 3 + num_edge_features
        self.message = nn.Sequential(perceptron(width, dim, dim), nn.SiLU())
        self.weights = perceptron(dim, dim, 2)
        with torch.no_grad():  # small forces to begin with: velocities count by their squares
            self.weights[2].weight *= 0.1
            self.weights[2].bias *= 0.1
        self.own = perceptron(dim + 1, dim, 1)
        self.phi_h = perceptron(2 * dim, dim, dim)

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor, index: Tensor, a_ij: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the new features, (N, F), and forces, (N, 3)."""
        j, i = index
        Z = torch.stack([x[j] - x[i], v[j] - v[i]], dim=2)  # (E, 3, 2)
        products = (Z.mT @ Z).flatten(1)[:, [0, 1, 3]]  # (E, 3): those that differ
        products = products / (1 + products[:, ::2].sum(dim=1, keepdim=True))  # of order 1
        m_ij = self.message(torch.cat([h[i], h[j], products, a_ij], dim=1))  # (E, F)
        f_ij = (Z @ self.weights(m_ij).unsqueeze(2)).squeeze(2)  # (E, 3)
        C = 1 / i.bincount(minlength=len(x)).clamp(min=1).to(x).unsqueeze(1)  # (N, 1)
        f = C * torch.zeros_like(x).index_add(0, i, f_ij)
        f = f + v * self.own(torch.cat([h, dot(v, v) / (1 + dot(v, v))], dim=1))
        m_i = C * torch.zeros_like(h).index_add(0, i, m_ij)
        return h + self.phi_h(torch.cat([h, m_i], dim=1)), f


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of rows, (…, 1)."""
    return (a * b).sum(dim=-1, keepdim=True)


def turning(r: Tensor, rate: Tensor) -> Tensor:
    """Return r × rate / r², the angular velocity of ṙ or acceleration of r̈: (…, 3)."""
    return torch.linalg.cross(r, rate, dim=-1) / dot(r, r)


def turned(r: Tensor, omega: Tensor) -> Tensor:
    """Return r, (…, 3), turned by the angle |ω| about ω, which is at right angles to it."""
    angle = torch.linalg.vector_norm(omega, dim=-1, keepdim=True)
    sine_over_angle = torch.sinc(angle / torch.pi)  # smooth at 0
    return torch.cos(angle) * r + sine_over_angle * torch.linalg.cross(omega, r, dim=-1)


def hinge_accelerations(r: Tensor, rate: Tensor, f: Tensor) -> Tensor:
    """Return the accelerations of joint and ends that keep the lengths of both rods, (H, 3, 3).

    Args:
        r: from the joint to the ends, (H, 2, 3).
        rate: ṙ, (H, 2, 3).
        f: forces on joint and ends, (H, 3, 3).
    """
    # r_k·(ẍ_k − ẍ_0) = −ṙ_k² for both: two equations, for the tensions of both rods
    gram = r @ r.mT  # (H, 2, 2)
    matrix = gram + torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    wanted = -dot(rate, rate) - dot(r, f[:, 1:] - f[:, :1])  # (H, 2, 1)
    pull = torch.linalg.solve(matrix, wanted) * r  # λ_k r_k, (H, 2, 3)
    return f + torch.cat([-pull.sum(dim=1, keepdim=True), pull], dim=1)


class Kinematics(nn.Module):
    """Move one kind of objects: a point of theirs, and arms that turn about it.

    Args:
        dim: number of features F.
        hinged: whether the point is the first particle, the joint, and every arm turns on its own;
            if not, it is the middle, about which the arms turn as one.
        learnable: whether forces become accelerations by learned weights in place of mechanics.
    """

    def __init__(self, dim: int, hinged: bool, learnable: bool) -> None:
        super().__init__()
        self.hinged = hinged
        self.keep = velocity_gate(dim)
        self.weights = perceptron(dim + 1, dim, 2) if learnable else None

    def forward(self, h: Tensor, x: Tensor, v: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions and velocities, (O, n, 3), from (O, n, F) and (O, n, 3) three times."""
        p, u = self.point(x), self.point(v)  # (O, 1, 3)
        r, rate = self.arms(x) - p, self.arms(v) - u  # (O, arms, 3)
        a, second = self.accelerations(h, r, rate, f)
        omega, alpha = turning(r, rate), turning(r, second)
        if not self.hinged:  # equal for all arms, but for rounding and learned weights
            omega, alpha = omega.mean(dim=1, keepdim=True), alpha.mean(dim=1, keepdim=True)
        keep = self.keep(h.sum(dim=1, keepdim=True))  # (O, 1, 1)
        u, omega = keep * u + a, keep * omega + alpha
        p, r = p + u, turned(r, omega)
        ends, rates = p + r, u + torch.linalg.cross(omega.expand_as(r), r, dim=-1)
        if not self.hinged:
            return ends, rates
        return torch.cat([p, ends], dim=1), torch.cat([u, rates], dim=1)

    def point(self, y: Tensor) -> Tensor:
        """Return what the point has of positions, velocities or forces: (O, n, 3) -> (O, 1, 3)."""
        return y[:, :1] if self.hinged else y.mean(dim=1, keepdim=True)

    def arms(self, y: Tensor) -> Tensor:
        """Return what the ends of the arms have: (O, n, …) -> (O, arms, …)."""
        return y[:, 1:] if self.hinged else y

    def accelerations(self, h: Tensor, r: Tensor, rate: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the point, (O, 1, 3), and r̈ of the arms, (O, arms, 3)."""
        if self.weights is None:
            a_i = hinge_accelerations(r, rate, f) if self.hinged else f
            return self.point(a_i), self.arms(a_i) - self.point(a_i)
        lengths = dot(r, r)
        if self.hinged:
            lengths = torch.cat([torch.zeros_like(lengths[:, :1]), lengths], dim=1)
        w = nn.functional.softplus(self.weights(torch.cat([h, lengths], dim=2)))  # (O, n, 2)
        a = (w[..., :1] * f).sum(dim=1, keepdim=True)
        return a, self.arms(w)[..., 1:] * (self.arms(f) - a)


class GMN(nn.Module):
    """Move particles, sticks and hinges: (h, x, v) -> (h, x, v) after a while.

    Args:
        dim: number of features F.
        num_layers: number of layers.
        num_edge_features: number K of features of an edge.
        learnable: whether forces become accelerations by learned weights in place of mechanics;
            lengths are kept all the same.
    """

    def __init__(
        self, dim: int = 64, num_layers: int = 4, num_edge_features: int = 0,
        learnable: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_sizes(dim=dim, num_layers=num_layers)
        layers = range(num_layers)
        self.interactions = nn.ModuleList(Interaction(dim, num_edge_features) for _ in layers)
        self.free = nn.ModuleList(velocity_gate(dim) for _ in layers)
        self.sticks = nn.ModuleList(Kinematics(dim, False, learnable) for _ in layers)
        self.hinges = nn.ModuleList(Kinematics(dim, True, learnable) for _ in layers)

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor, index: Tensor, objects: Objects,
        a_ij: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return new features (N, F), positions (N, 3) and velocities (N, 3); inputs stay.

        Args:
            h: features, (N, F).
            x: positions, (N, 3).
            v: velocities, (N, 3), lengths per time that the network covers; they stretch no rod.
            index: particles j and i of the edges, (2, E).
            objects: the sticks and hinges.
            a_ij: features of the edges, (E, K), if there are any.

        Raises:
            ValueError: if objects share particles, or velocities stretch a rod.
        """
        expect_rigid(x, v, objects)
        a_ij = x.new_zeros(index.shape[1], 0) if a_ij is None else a_ij
        layers = zip(self.interactions, self.free, self.sticks, self.hinges, strict=True)
        for interaction, free, *kinds in layers:
            keep = free(h)
            h, f = interaction(h, x, v, index, a_ij)
            new_v = keep * v + f  # of those on their own
            new = [x + new_v, new_v]
            for kinematics, members in zip(kinds, objects, strict=True):
                parts = kinematics(h[members], x[members], v[members], f[members])  # (O, n, 3)
                for k, part in enumerate(parts):
                    new[k] = new[k].index_copy(0, members.flatten(), part.flatten(0, 1))
            x, v = new
        return h, x, v


def expect_rigid(x: Tensor, v: Tensor, objects: Objects) -> None:
    """Expect objects that share no particle, and velocities that stretch none of their rods."""
    for name, members, size in zip(Objects._fields, objects, (2, 3), strict=True):
        ok = members.ndim == 2 and members.shape[1] == size and members.dtype == torch.int64
        expected, got = f"int64 (…, {size})", f"{members.dtype} {tuple(members.shape)}"
        expect(ok, f"objects.{name}", expected, got)
    members = torch.cat([part.flatten() for part in objects])
    expect(len(members.unique()) == len(members), "objects", "each particle once", members.tolist())
    a, b = objects.rods().unbind(dim=1)
    if len(a) > 0:
        r, rate = x[b] - x[a], v[b] - v[a]
        stretch = (dot(r, rate) / dot(r, r).sqrt()).abs().squeeze(1)
        ok = (stretch <= RIGID * (v[a].norm(dim=1) + v[b].norm(dim=1))).all()
        expect(ok, "v", "velocities that stretch no rod", f"rods that grow by {stretch.tolist()}")
