"""A network becomes a potential: its graph, the sum over atoms, forces and virial, units.

Axes:   N atoms in the batch, B samples, E directed edges j -> i.
Units:  those of the data that the network is fitted to, e.g. eV and Å; forces are energy / length.

A network maps atomic numbers and edges to the energies of atoms and knows nothing else. All that
follows from energies comes from one derivative, by the vectors of the edges r_ij = r_j + S C − r_i:

pull_e = ∂E/∂r_e;   F_i = Σ_{e to i} pull_e − Σ_{e from i} pull_e;   ∂E/∂ε = Σ_e r_e ⊗ pull_e
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from molnets.checks import (
    checked_atoms,
    expect,
    expect_positive,
    sample_sizes,
    spread_atomic_numbers,
)
from molnets.edges import Edges, Graph

NUM_ELEMENTS = 119  # rows of the table of element energies: row Z, and row 0 for nothing


class Network(Protocol):
    """What a network is: a module that says how far it sees, and what each atom's energy is."""

    cutoff: float

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        """Return the energies of the atoms, (N, 1), from atomic numbers (N, 1) and edges.

        Edges at or beyond the cutoff contribute nothing.
        """


def sum_over_atoms(energy_i: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Return the energy of each sample: (N, 1) -> (B, 1)."""
    return energy_i.new_zeros(batch_size, 1).index_add(0, batch, energy_i)


def energy_forces_virial(
    network: Network, z: Tensor, batch: Tensor, edges: Edges, *, create_graph: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return energies (B, 1), forces (N, 3) and virials ∂E/∂ε of a strain of all, (B, 3, 3).

    Args:
        network: any network.
        z: atomic numbers, (N, 1).
        batch: the sample that each atom belongs to, (N,).
        edges: the edges.
        create_graph: keep the graph of all three, so that a loss can be made of them.
    """
    batch_size = int(batch[-1]) + 1
    energy_i, pull = _energies_and_pulls(network, z, edges, create_graph)  # (N, 1), (E, 3)
    j, i = edges.index
    forces = pull.new_zeros(len(z), 3).index_add(0, i, pull).index_add(0, j, -pull)
    each = edges.vector.detach().unsqueeze(2) * pull.unsqueeze(1)  # (E, 3, 3)
    virial = pull.new_zeros(batch_size, 3, 3).index_add(0, batch[i], each)
    return sum_over_atoms(energy_i, batch, batch_size), forces, virial


def _energies_and_pulls(
    network: Network, z: Tensor, edges: Edges, create_graph: bool
) -> tuple[Tensor, Tensor]:
    def total(vector: Tensor) -> tuple[Tensor, Tensor]:
        energy_i = network.atomic_energies(z, Edges(edges.index, vector))
        return energy_i.sum(), energy_i

    if torch.is_inference_mode_enabled() and not torch.compiler.is_compiling():
        with torch.inference_mode(False):  # what was made in that mode cannot be differentiated
            z, edges = z.clone(), Edges(*(part.clone() for part in edges))
            return _energies_and_pulls(network, z, edges, create_graph)
    if torch.compiler.is_compiling():  # torch.compile knows this form of a derivative only
        pull, energy_i = torch.func.grad(total, has_aux=True)(edges.vector)
        return energy_i, pull
    vector = edges.vector.detach().requires_grad_()
    with torch.enable_grad():
        summed, energy_i = total(vector)
        (pull,) = torch.autograd.grad(summed, vector, create_graph=create_graph)
    return (energy_i if create_graph else energy_i.detach()), pull


class Potential(nn.Module):
    """A network with its graph, in the units of the data: the network learns numbers of order 1.

    E = s · Σ_i ε_i + Σ_i e(Z_i), where the network gives the ε_i

    The scale s and the element energies e are float64 buffers, whatever the network's dtype: they
    travel with the state dict, and a large offset costs no digits of the energy, which is float64.
    A network with compiled passes of its own, as `molnets.tables` makes, is asked for these.

    Args:
        network: a network.
        scale: s, energy of the data per unit of the network's output.
        element_energies: e, the energy of an atom of each element, (119,), row Z for element Z.
        graph: what finds the edges; one with the network's cutoff if not given.

    Attributes:
        card: what the model is and where it comes from, a `molnets.checkpoint.Card`, if known.

    Raises:
        TypeError: if `network` is none.
        ValueError: if `scale` is not positive and finite, or `element_energies` not finite (119,).
    """

    def __init__(
        self, network: nn.Module, scale: float = 1.0, element_energies: Tensor | None = None,
        graph: Graph | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        ok = hasattr(network, "atomic_energies") and hasattr(network, "cutoff")
        expected = "a network with `atomic_energies(z, edges)` and a `cutoff`"
        expect(ok, "network", expected, type(network).__name__, TypeError)
        expect_positive("scale", scale)
        if element_energies is None:
            element_energies = torch.zeros(NUM_ELEMENTS)
        shape = tuple(element_energies.shape)
        ok = shape == (NUM_ELEMENTS,) and bool(element_energies.isfinite().all())
        expected = f"finite energies of shape ({NUM_ELEMENTS},)"
        expect(ok, "element_energies", expected, f"shape {shape}: {element_energies}")
        self.network = network
        self.graph = Graph(network.cutoff) if graph is None else graph
        self.card = None
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        self.register_buffer("element_energies", element_energies.detach().double().clone())

    @property
    def cutoff(self) -> float:
        """The cutoff of the network."""
        return self.network.cutoff

    def forward(
        self, z: Tensor, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
        pbc: Tensor | bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the energy of each sample, (B, 1), float64.

        Args:
            z: atomic numbers, one per sample, (B, 1), or per atom, (N, 1).
            pos: positions, (N, 3), with the dtype and on the device of the parameters.
            batch: the sample that each atom belongs to, (N,), int64, ascending.
            cells: lattice vectors in rows, (B, 3, 3); None for isolated molecules.
            pbc: whether samples are periodic along each vector, as `Graph.edges` takes it.

        Raises:
            TypeError, ValueError: for bad input, or two atoms in one place.
        """
        if self._has_engine(pos):
            energy = self.network.energy(z, pos, batch, self.graph, cells, pbc)
            return self.in_units(energy, spread_atomic_numbers(z, batch, len(energy)), batch)
        z, edges, batch_size = self._prepared(z, pos, batch, cells, pbc)
        energy_i = self.network.atomic_energies(z, edges)
        return self.in_units(sum_over_atoms(energy_i, batch, batch_size), z, batch)

    def atomic_energies(
        self, z: Tensor, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
        pbc: Tensor | bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the energy of each atom, (N, 1), float64; the arguments are those of the call."""
        z, edges, _ = self._prepared(z, pos, batch, cells, pbc)
        energy_i = self.network.atomic_energies(z, edges)
        return self.scale * energy_i.double() + self._energies_of_elements(z)

    def energy_and_forces(
        self, z: Tensor, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
        pbc: Tensor | bool | None = None, *, create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return energies (B, 1), float64, and forces (N, 3); the arguments are the call's."""
        if self._has_engine(pos) and not create_graph:
            energy, forces, _ = self.network.evaluate(z, pos, batch, self.graph, cells, pbc)
            z = spread_atomic_numbers(z, batch, len(energy))
            return self.in_units(energy, z, batch), self.scale.to(forces.dtype) * forces
        with torch.no_grad():
            z, edges, _ = self._prepared(z, pos, batch, cells, pbc)
        return self.energy_and_forces_of(z, batch, edges, create_graph=create_graph)

    def energy_and_forces_of(
        self, z: Tensor, batch: Tensor, edges: Edges, *, create_graph: bool = False,
        virial: bool = False,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Return energies (B, 1), float64, and forces (N, 3) where the edges are known.

        Args:
            z: atomic numbers, (N, 1).
            batch: the sample that each atom belongs to, (N,).
            edges: the edges.
            create_graph: keep the graph of them, so that a loss can be made of them.
            virial: whether to return the virials ∂E/∂ε, (B, 3, 3), too.
        """
        energy, forces, virials = energy_forces_virial(
            self.network, z, batch, edges, create_graph=create_graph
        )
        scale = self.scale.to(forces.dtype)
        results = self.in_units(energy, z, batch), scale * forces
        return (*results, scale * virials) if virial else results

    def energy_forces_virial(
        self, z: Tensor, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
        pbc: Tensor | bool | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return also the virials ∂E/∂ε, (B, 3, 3); the arguments are those of the call."""
        if self._has_engine(pos):
            results = self.network.evaluate(z, pos, batch, self.graph, cells, pbc, virial=True)
            z = spread_atomic_numbers(z, batch, len(results[0]))
        else:
            with torch.no_grad():
                z, edges, _ = self._prepared(z, pos, batch, cells, pbc)
            results = energy_forces_virial(self.network, z, batch, edges)
        energy, forces, virial = results
        scale = self.scale.to(forces.dtype)
        return self.in_units(energy, z, batch), scale * forces, scale * virial

    def in_units(self, energy: Tensor, z: Tensor, batch: Tensor) -> Tensor:
        """Return the energies, (B, 1), for the network's own ones, (B, 1); z is (N, 1)."""
        offset = self.scale.new_zeros(len(energy), 1)
        offset = offset.index_add(0, batch, self._energies_of_elements(z))
        return self.scale * energy.double() + offset

    def _energies_of_elements(self, z: Tensor) -> Tensor:
        """Return e(Z_i), (N, 1); a number that names no element would name another one's row."""
        index = z.long().view(-1, 1)
        if not torch.compiler.is_compiling():
            ok = (index == z.view(-1, 1)) & (index >= 0) & (index < NUM_ELEMENTS)
            expect(ok.all(), "z", f"whole numbers from 0 to {NUM_ELEMENTS - 1}", z[~ok].tolist())
        return self.element_energies[index[:, 0]].view(-1, 1)

    def _prepared(
        self, z: Tensor, pos: Tensor, batch: Tensor, cells: Tensor | None, pbc: object
    ) -> tuple[Tensor, Edges, int]:
        """Return atomic numbers (N, 1), edges, and the number of samples."""
        z, n_atoms = checked_atoms(z, pos, batch, next(self.network.parameters()))
        return z, self.graph.edges(pos, batch, cells, pbc), len(n_atoms)

    def _has_engine(self, pos: Tensor) -> bool:
        known = hasattr(self.network, "evaluate") and type(self.graph) is Graph
        return known and isinstance(pos, Tensor) and self.network.applies(pos)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = self.scale, self.element_energies
        super()._apply(fn, recurse)
        device = self.scale.device  # `.float()` and `.half()` move the buffers but must not round
        self.scale, self.element_energies = (buffer.to(device) for buffer in exact)
        return self


def as_potential(model: nn.Module) -> Potential:
    """Return a potential as it is, and a network as one with scale 1; the weights are shared.

    Raises:
        TypeError: for something else.
    """
    return model if isinstance(model, Potential) else Potential(model)


def energy_and_forces(
    model: nn.Module, z: Tensor, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
    pbc: Tensor | bool | None = None, *, create_graph: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the energies, (B, 1), and the forces, (N, 3).

    F_i = −∂(Σ_b E_b) / ∂r_i: samples do not see each other, so one backward pass serves all. A
    model with a method of this name has a faster way, which is taken.

    Args:
        model: any `model(z, pos, batch) -> (B, 1)`; with cells, a `Potential`.
        z: atomic numbers, (B, 1) or (N, 1).
        pos: positions, (N, 3).
        batch: the sample that each atom belongs to, (N,).
        cells: lattice vectors in rows, (B, 3, 3); None for isolated molecules.
        pbc: whether samples are periodic along each vector, as `Graph.edges` takes it.
        create_graph: keep the graph of both, so that a loss can be made of them.

    Raises:
        TypeError: if there are cells, and the model takes none.
    """
    if isinstance(model, Potential):
        return model.energy_and_forces(z, pos, batch, cells, pbc, create_graph=create_graph)
    expected = "a Potential, which takes cells"
    expect(cells is None, "model", expected, type(model).__name__, TypeError)
    if hasattr(model, "energy_and_forces") and not create_graph:
        return model.energy_and_forces(z, pos, batch)
    return by_autograd(model, z, pos, batch, create_graph=create_graph)


def by_autograd(
    model: nn.Module, z: Tensor, pos: Tensor, batch: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what `energy_and_forces` does, for any callable, by a backward pass of torch."""
    pos = pos.detach().requires_grad_()
    with torch.enable_grad():
        energy = model(z, pos, batch)
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=create_graph)
    return (energy if create_graph else energy.detach()), -gradient


def fit_element_energies(
    z: Tensor, energies: Tensor, batch: Tensor, counted: Tensor | None = None
) -> Tensor:
    """Return the energy of an atom of each element that fits the total energies best, (119,).

    min_e Σ_b (E_b − Σ_i e(Z_i))², the solution of least norm: with one composition only the sum
    over the molecule is determined. Elements that do not occur get 0. All in float64.

    Args:
        z: atomic numbers, (B, 1) or (N, 1).
        energies: energies of the samples, (B, 1).
        batch: the sample that each atom belongs to, (N,).
        counted: which atoms have an energy to be found, (N,); None for all.
    """
    batch_size = len(sample_sizes(batch))
    elements = spread_atomic_numbers(z, batch, batch_size).long().flatten()
    counts = torch.zeros(batch_size, NUM_ELEMENTS, dtype=torch.float64)
    each = torch.ones(len(batch)) if counted is None else counted
    counts.index_put_((batch, elements), each.double(), accumulate=True)
    solution = torch.linalg.lstsq(counts, energies.double().view(-1, 1), driver="gelsd").solution
    return solution.flatten()
