"""A training step on splines: energies, forces and virials, and the gradient of their loss.

The splines are made of the weights in every step, and the gradient goes back through them.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a spline.
Units:  those of the model.
Graphs: symmetric, as a cutoff makes them: with every edge its reverse.
"""

from __future__ import annotations

import math
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn

from molnets.edges import Edges
from molnets.potential import Potential, sum_over_atoms
from molnets.tables.native import EdgeList, NativeNetwork, SplineMaker, Work
from molnets.tables.structure import Structure, Watch, describe, embedding_gradients


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

    def refresh(self) -> None:
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
        self.refresh()
        weights = self.structure.all_weights()
        return _Forces.apply((self, z, batch, edges, virial), *weights)[: 3 if virial else 2]

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


class _Step(NamedTuple):
    """What the way back of a step needs of the way there."""

    structure: Structure
    maker: SplineMaker
    loan: _Loan
    z: Tensor  # in the weights' dtype, (N, 1)
    batch: Tensor
    start: Tensor  # the first atom of each sample, and N, (B + 1,)
    scale: Tensor  # in the weights' dtype


class _Forces(torch.autograd.Function):
    """Energies, forces and virials in the data's units, differentiable once by all weights.

    One operation for torch: what it would do around the passes costs as much as these do.
    """

    @staticmethod
    def forward(ctx, call, *weights):
        engine, z, batch, edges, virial = call
        structure, potential, threads = engine.structure, engine.potential, torch.get_num_threads()
        start = nn.functional.pad(batch.bincount().cumsum(0), (1, 0))
        given = EdgeList(edges.index, edges.vector, start, threads)
        own = z.to(engine.dtype)
        x, loan = structure.embedding(own).contiguous(), engine.borrow()
        if not loan.network.find(loan.work, None, start, given, structure.cutoff, threads):
            raise ValueError("edges: expected lengths above 0, got two atoms in one place")
        energy_i, forces, virials = loan.network.energies(
            loan.work, x, start, threads, keep=True, virial=virial
        )
        scale = potential.scale.to(engine.dtype)
        ctx.step = _Step(structure, engine.maker, loan, own, batch, start, scale)
        ctx.save_for_backward(*structure.filter_weights)  # torch sees whether they are changed
        energy = sum_over_atoms(energy_i.view(-1, 1), batch, len(start) - 1)
        forces, virials = forces.mul_(scale), virials.mul_(scale) if virial else None
        return potential.in_units(energy, z, batch), forces, virials

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_energy, g_forces, g_virials):
        step, network, scale = ctx.step, ctx.step.loan.network, ctx.step.scale
        seeds = (g_energy.flatten() * scale).to(scale.dtype).index_select(0, step.batch)
        strain = None if g_virials is None else g_virials * scale
        of_weights, of_splines, of_x = network.gradients(
            step.loan.work, seeds, step.start, torch.get_num_threads(), g_forces * -scale, strain
        )
        of_filters = step.maker.gradients(ctx.saved_tensors, of_splines)
        of_embedding = embedding_gradients(step.structure.embedding, step.z, of_x)
        return None, *of_weights, *of_filters, *of_embedding
