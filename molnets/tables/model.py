"""The same network with its filters as splines: fast, for energies, forces, virials, and training.

W(d) C(d), the filters of a block times the cutoff function, depend on one number, the distance.
Splines of them take the place of the filter networks, made of the very weights of the block;
compiled loops join them with the sum over neighbours.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a spline.
Units:  those of the model.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molnets.checks import (
    checked_atoms,
    expect,
    expect_positions,
    sample_sizes,
    spread_atomic_numbers,
)
from molnets.edges import Graph
from molnets.networks.painn import PaiNN
from molnets.networks.tensornet import TensorNet
from molnets.potential import by_autograd, sum_over_atoms
from molnets.tables.energy import Call, EnergyOfCall, bundle_of
from molnets.tables.library import NoLibraryError, library
from molnets.tables.native import PRECISIONS, EdgeList, NativeNetwork, SplineMaker, Work
from molnets.tables.state import Atoms, Engine, say_why
from schnet_helpers import RadiusInteractionGraph, SchNet


class System(NamedTuple):
    """What energies are asked of: atoms, the graph that finds their edges, and their cells."""

    z: Tensor
    pos: Tensor
    batch: Tensor
    graph: Graph | None = None  # None: the model's own search for isolated molecules
    cells: Tensor | None = None
    pbc: Tensor | bool | None = None


class _Tabulated:
    """What every tabulated network does; the class that it comes before is the plain network."""

    plain: type[nn.Module]

    def __init__(self, model: nn.Module, tolerance: float = 0.0) -> None:
        ok = type(model) in (self.plain, type(self))  # a subclass could compute anything
        expect(ok, "model", f"a {self.plain.__name__}", type(model).__name__, TypeError)
        expect(0 <= tolerance < 1, "tolerance", "a number >= 0, below 1", tolerance)
        self.__dict__.update(model.__dict__)  # the same modules: the weights are shared
        self._modules = dict(model._modules)
        self.__dict__.pop("_engine_", None)
        self.tolerance = tolerance

    @property
    def _engine(self) -> Engine:
        try:
            return self.__dict__["_engine_"]
        except KeyError:
            return self.__dict__.setdefault("_engine_", Engine(self))

    def __getstate__(self) -> dict[str, object]:
        """Return what is copied or pickled: a copy makes an engine of its own."""
        return {name: x for name, x in super().__getstate__().items() if name != "_engine_"}

    @property
    def num_intervals(self) -> int:
        """K, of the weights as they are."""
        return self._engine.current().num_intervals

    def applies(self, like: Tensor) -> bool:
        """Return whether splines are used, for this network, dtype and device."""
        if torch.compiler.is_compiling() or not tables_apply(like.device, like.dtype):
            return False
        return self._engine.knows()

    def energy_and_forces(self, z: Tensor, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3), without the graph of either: the fast way.

        Arguments and errors are those of the call.
        """
        if not (self._searches() and self.applies(pos)):
            return by_autograd(self, z, pos, batch)
        return self.evaluate(z, pos, batch)[:2]

    def energy(
        self, z: Tensor, pos: Tensor, batch: Tensor, graph: Graph | None = None,
        cells: Tensor | None = None, pbc: Tensor | bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the energies, (B, 1), whose derivatives are compiled; arguments as `evaluate`."""
        if not torch.is_grad_enabled():
            return self.evaluate(z, pos, batch, graph, cells, pbc)[0]
        system = System(z, pos, batch, graph, cells, pbc)
        if cells is not None and cells.requires_grad:
            return self.general_energy(system)
        energy, forces, _, network = self._evaluate(system)
        bundle = self._bundle(network)
        if bundle is None and not pos.requires_grad:
            return energy
        call = Call(self, system, forces, pos._version, network, bundle)
        return EnergyOfCall.apply(pos, bundle, call, [energy])

    def general_energy(self, system: System) -> Tensor:
        """Return the energies, (B, 1), of the plain network, differentiable any number of times."""
        z, pos, batch, graph, cells, pbc = system
        plain = super()
        if graph is None:
            return plain.forward(z, pos, batch)
        batch_size = len(sample_sizes(batch))
        z = spread_atomic_numbers(z, batch, batch_size)
        energy_i = plain.atomic_energies(z, graph.edges(pos, batch, cells, pbc))
        return sum_over_atoms(energy_i, batch, batch_size)

    def evaluate(
        self, z: Tensor, pos: Tensor, batch: Tensor, graph: Graph | None = None,
        cells: Tensor | None = None, pbc: Tensor | bool | None = None, virial: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Return energies (B, 1), forces (N, 3) and, if asked for, virials ∂E/∂ε, (B, 3, 3).

        Arguments and errors are those of a `Potential`; without a graph, isolated molecules are
        searched for edges in compiled code.
        """
        return self._evaluate(System(z, pos, batch, graph, cells, pbc), virial)[:3]

    def _evaluate(
        self, system: System, virial: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, NativeNetwork]:
        """Return what `evaluate` does, and of which weights it is."""
        system = system._replace(pos=system.pos.detach().contiguous())
        engine, work, atoms, threads = self._begin(system)
        energy_i, forces, virials = atoms.network.energies(
            work, atoms.x, atoms.start, threads, virial=virial
        )
        engine.free.append(work)
        return _sum(energy_i, atoms), forces, virials, atoms.network

    def weight_gradients(self, system: System, g: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of Σ_b g_b E_b by the embeddings, (N, F), and by the weights.

        The weights are those of `Structure.weights` and `Structure.filter_weights`.
        """
        fixed = system._replace(pos=system.pos.detach().contiguous())
        engine, work, atoms, threads = self._begin(fixed)
        network, structure = atoms.network, atoms.network.structure
        network.energies(work, atoms.x, atoms.start, threads, keep=True)
        seeds = g.detach().flatten()[atoms.batch]
        parts, of_splines, of_x = network.gradients(work, seeds, atoms.start, threads, None)
        engine.free.append(work)
        weights = structure.filter_weights
        maker = SplineMaker(structure, network.num_intervals, torch.float64)
        of_filters = maker.gradients(weights, of_splines.double())
        return of_x, [*parts, *(g.to(of_x.dtype) for g in of_filters)]

    def state_of_weights(self) -> object:
        """Return an object that stays the same as long as the weights and the structure do."""
        return self._engine.current() if self._engine.knows() else None

    def _bundle(self, network: NativeNetwork) -> Tensor | None:
        """Return what stands for all weights in the graph, if any of them is to be trained."""
        engine, weights = self._engine, network.structure.all_weights()
        state = network, [weight.requires_grad for weight in weights]
        if engine.bundled[0] != state:
            engine.bundled = state, bundle_of(weights) if any(state[1]) else None
        return engine.bundled[1]

    def _begin(self, system: System) -> tuple[Engine, Work, Atoms, int]:
        """Return the engine, memory where the edges have been found, the atoms, and threads."""
        threads, engine = torch.get_num_threads(), self._engine
        network = engine.current()
        atoms = self._atoms_of(engine, network, system)
        work = engine.work(network)
        _, pos, batch, graph, cells, pbc = system
        ok = self._searches() if graph is None else type(graph) is Graph
        expect(ok, "graph", "a Graph, whose edges have their reverse", type(graph).__name__)
        is_open = cells is None and (pbc is None or not torch.as_tensor(pbc).any())
        edges, cutoff = None, (self.interaction_graph if graph is None else graph).cutoff
        if graph is not None and not (is_open and graph.skin == 0):
            edges = self._list_of(engine, graph, system, atoms.start, threads)
        if not network.find(work, pos, atoms.start, edges, min(cutoff, self.cutoff), threads):
            engine.free.append(work)  # the next line raises the error that names the atoms
            (Graph(self.cutoff) if graph is None else graph).edges(pos, batch, cells, pbc)
        return engine, work, atoms, threads

    def _atoms_of(self, engine: Engine, network: NativeNetwork, system: System) -> Atoms:
        """Check the input; return what depends on it but not on where the atoms are."""
        z, pos, batch, *_ = system
        atoms = engine.atoms
        if not (atoms and atoms.network is network and _same(z, atoms.z)
                and _same(batch, atoms.batch) and pos.dtype == network.dtype
                and pos.shape == (len(batch), 3) and _finite(pos)):  # fmt: skip
            per_atom, n_atoms = checked_atoms(z, pos, batch, network.structure.weights[0])
            expect_positions(pos, batch)
            with torch.no_grad(), torch.inference_mode(False):
                x = self.embedding(per_atom.clone().to(pos.dtype)).contiguous()
                shape = len(pos), network.structure.sizes[1]
                expect(x.shape == shape, "embedding", f"features of shape {shape}", tuple(x.shape))
                start = F.pad(n_atoms.cumsum(0), (1, 0))
            engine.atoms = atoms = Atoms(z.clone(), batch.clone(), network, x, start)
        return atoms

    def _list_of(
        self, engine: Engine, graph: Graph, system: System, start: Tensor, threads: int
    ) -> EdgeList:
        """Return the edges of a graph's list; those of the last call as long as it is the same."""
        _, pos, batch, _, cells, pbc = system
        index, offset = graph.candidates(pos, batch, cells, pbc)
        known = engine.list
        if not (known and known[0] is index and known[1] is offset and known[2] == threads):
            edges = EdgeList(index, offset, start, threads, self.cutoff, pos)
            engine.list = known = (index, offset, threads, edges)
        return known[3]

    def _searches(self) -> bool:
        """Return whether the model's own graph is the one that the compiled search equals."""
        graph = getattr(self, "interaction_graph", None)
        return type(graph) is RadiusInteractionGraph and graph.max_num_neighbors is None


class SplineSchNet(_Tabulated, SchNet):
    """A `SchNet` whose filters are read from splines; it shares the weights of the one it is given.

    It is called the same way and gives the same energies and forces, to the splines' tolerance. A
    spline has so many intervals that the filters and their slopes deviate by less than `tolerance`
    times their largest value, and is made anew as soon as the weights differ. On a GPU, without a
    C++ compiler, or where any part of the network is not the one that the engine knows, it computes
    as the plain network does, and says why, once.

    The energy of a call has compiled derivatives by positions and weights. Only derivatives that
    are to be differentiated again, under `create_graph=True`, are the plain network's.

    Args:
        model: the network.
        tolerance: of the splines; 0 for that of the dtype: 5e-7 in float32, 1e-10 in float64.

    Raises:
        TypeError: if `model` is no `SchNet`.
        ValueError: if `tolerance` is negative, or cannot be kept with `MAX_INTERVALS`.
    """

    plain = SchNet

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Return the energy of each sample, (B, 1); arguments and errors are those of `SchNet`."""
        if isinstance(pos, Tensor) and self._searches() and self.applies(pos):
            return self.energy(z, pos, batch)
        return super().forward(z, pos, batch)


class SplinePaiNN(_Tabulated, PaiNN):
    """A `PaiNN` whose filters are read from splines; all else is as with `SplineSchNet`.

    Like the plain one it is given edges; inside a `Potential` its compiled passes find them.
    """

    plain = PaiNN


class SplineTensorNet(_Tabulated, TensorNet):
    """A `TensorNet` whose filters are read from splines; all else is as with `SplinePaiNN`."""

    plain = TensorNet


TABULATED = {SchNet: SplineSchNet, PaiNN: SplinePaiNN, TensorNet: SplineTensorNet}


def tabulated(model: nn.Module) -> nn.Module:
    """Return the model with a tabulated network for each one that can be; weights are shared.

    These are `SchNet`, `PaiNN` and `TensorNet`, not their subclasses, which may compute other
    things.
    """
    if type(model) in TABULATED:
        return TABULATED[type(model)](model)
    result = copy.copy(model)
    result._modules = {name: tabulated(child) for name, child in model.named_children()}
    return result


@cache
def tables_apply(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether splines can be used; where they cannot, say so, once."""
    why = None if device.type == "cpu" and dtype in PRECISIONS else f"{dtype} on {device}"
    try:
        library()
    except NoLibraryError as error:
        why = str(error)
    if why is not None:
        say_why(why)
    return why is None


def _sum(energy_i: Tensor, atoms: Atoms) -> Tensor:
    if len(atoms.start) == 2:
        return energy_i.sum().view(1, 1)
    return sum_over_atoms(energy_i.view(-1, 1), atoms.batch, len(atoms.start) - 1)


def _same(a: Tensor, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.dtype == b.dtype and a.is_cpu and torch.equal(a, b)


def _finite(pos: Tensor) -> bool:
    return bool(getattr(library(), f"finite_{PRECISIONS[pos.dtype]}")(pos.data_ptr(), pos.numel()))
