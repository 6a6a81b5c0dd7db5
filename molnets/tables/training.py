"""A training step on splines: energies, forces and virials, and the gradient of their loss.

The splines are made of the weights in every step, and the gradient goes back through them.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a spline.
Units:  those of the model.
Graphs: symmetric, as a cutoff makes them: with every edge its reverse.
"""

from __future__ import annotations

import math
from operator import is_

import torch
from torch import Tensor, nn

from molnets.edges import Edges
from molnets.potential import Potential, sum_over_atoms
from molnets.tables.native import EdgeList, NativeNetwork, SplineMaker, Work
from molnets.tables.structure import Watch, describe


class SplineForces(nn.Module):
    """Energies and forces of frames whose edges are known, on splines.

    The gradient of a loss reaches the weights, not the positions. The splines are made anew in
    every call: they always belong to the weights.

    Args:
        potential: the potential; a network that the engine knows is inside.
        num_intervals: K; 0 for three intervals to the width of a Gaussian, 1 / √(2γ): the slopes of
            the filters are then 1e-4 of their size off, far less than a training step moves them.

    Raises:
        UnknownPartError: if the engine does not know the network.
    """

    def __init__(self, potential: Potential, num_intervals: int = 0) -> None:
        super().__init__()
        self.potential = potential
        self._asked: int = num_intervals
        self._free: list[tuple[NativeNetwork, Work]] = []
        self._look()

    def _look(self) -> None:
        """Take the network as it is."""
        network, self._free = self.potential.network, []  # loans that are out find no way back
        self.structure, self.watch = describe(network), Watch(network)
        widths = network.cutoff * math.sqrt(2 * float(self.structure.expansion.gamma))
        self.num_intervals = self._asked or max(32, math.ceil(3 * widths))
        self.dtype = self.structure.weights[0].dtype
        self._gaussians = (
            network.radial_expansion.gamma.clone(),
            network.radial_expansion.mu.clone(),
        )
        self._tensors = self.watch.tensors()
        self.maker = SplineMaker(self.structure, self.num_intervals, self.dtype)

    def _update(self) -> None:
        """Look again if anything is not what it was but the numbers of the weights."""
        now, expansion = self.watch.tensors(), self.structure.expansion
        same = len(now) == len(self._tensors) and all(map(is_, now, self._tensors))
        same = same and self.watch.same_structure() and now[0].dtype == self.dtype
        gaussians = expansion.gamma, expansion.mu
        if not (same and all(map(torch.equal, gaussians, self._gaussians))):
            self._look()

    def forward(
        self, z: Tensor, batch: Tensor, edges: Edges, virial: bool = False
    ) -> tuple[Tensor, ...]:
        """Return energies (B, 1) and forces (N, 3) from z (N, 1), batch (N,) and the edges.

        If asked for, also the virials ∂E/∂ε, (B, 3, 3).

        Raises:
            ValueError: if an edge is there without its reverse.
        """
        self._update()
        start = torch.nn.functional.pad(torch.bincount(batch).cumsum(0), (1, 0))
        threads, scale = torch.get_num_threads(), self.potential.scale
        given = EdgeList(edges.index, edges.vector.detach(), start, threads)
        x = self.potential.network.embedding(z.to(self.dtype))
        call = self, given, start, threads, virial
        weights = *self.structure.weights, *self.structure.filter_weights
        energy_i, forces, virials = _Forces.apply(call, x, *weights)
        energy = sum_over_atoms(energy_i, batch, len(start) - 1)
        scale = scale.to(self.dtype)
        results = self.potential.in_units(energy, z, batch), scale * forces
        return (*results, scale * virials) if virial else results

    def borrow(self) -> _Loan:
        """Return a network of the weights as they are, and memory, that no other step uses."""
        splines = self.maker(self.structure.filter_weights)
        if self._free:
            network, work = self._free.pop()
            network.update(splines)
        else:
            network = NativeNetwork(self.structure, splines, self.num_intervals)
            work = Work(self.dtype)
        return _Loan(self._free, network, work)


class _Loan:
    """What goes back when its last holder is gone."""

    def __init__(self, free: list, network: NativeNetwork, work: Work) -> None:
        self.free, self.network, self.work = free, network, work

    def __del__(self) -> None:
        self.free.append((self.network, self.work))


class _Forces(torch.autograd.Function):
    """Energies of the atoms, forces and virials, differentiable once by embeddings and weights."""

    @staticmethod
    def forward(ctx, call, x, *weights):
        engine, given, start, threads, virial = call
        loan = engine.borrow()
        network, filters = loan.network, engine.structure.filter_weights
        if not network.find(loan.work, None, start, given, engine.structure.cutoff, threads):
            raise ValueError("edges: expected lengths above 0, got two atoms in one place")
        energy, forces, virials = network.energies(
            loan.work, x.detach().contiguous(), start, threads, keep=True, virial=virial
        )
        ctx.kept = call, loan
        ctx.save_for_backward(*filters)  # torch then sees whether they are changed in between
        return energy.view(-1, 1), forces, virials

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_energy, g_forces, g_virials):
        (engine, _, start, threads, _), loan = ctx.kept
        of_weights, of_splines, of_x = loan.network.gradients(
            loan.work, g_energy.reshape(-1), start, threads, -g_forces, g_virials
        )
        filters = ctx.saved_tensors
        return None, of_x, *of_weights, *engine.maker.gradients(filters, of_splines)
