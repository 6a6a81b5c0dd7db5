"""A process's part of a system that several share: two ways to its energies and forces.

ByRows    networks on splines: copies of others' atoms within the cutoff, whose rows are fetched
          between the blocks
ByShell   any network: copies as far as the energies of own atoms depend on them, and the forces on
          copies are given back; several times the work

Axes:   N own atoms, C copies of atoms near by, own ones (images) or others'.
Both are made by all processes together, and so is each call of theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from molnets.checks import expect
from molnets.coupling.halo import Halo
from molnets.edges import Edges, Graph
from molnets.tables import Domain, DomainPasses, tables_apply

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

ALMOST = 1 - 1e-8  # so that no distance of a perfect lattice lies exactly at the end of a list
LONGEST_CHAIN = 16  # edges that a network is probed with


class Way(Protocol):
    """How energies, (N,), forces, (N, 3), and virials of atoms, (N, 3, 3), are computed."""

    reach: float  # how far from own atoms copies are needed
    halo: Halo | None  # the exchange, once there is one

    def build(self, num_own: int, tags: np.ndarray, pos: np.ndarray) -> None:
        """Take other atoms, own ones and copies, (N + C,): find edges, and who has the copies."""

    def compute(self, z: np.ndarray, pos: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return what own atoms have, given atomic numbers and positions of all, (N + C,)."""


class ByRows:
    """Splines: copies within the cutoff, rows are fetched between blocks."""

    def __init__(self, network: nn.Module, skin: float, comm: Comm) -> None:
        self.reach, self.skin, self.comm, self.halo = network.cutoff, skin, comm, None
        self._passes = DomainPasses(network)

    def build(self, num_own: int, tags: np.ndarray, pos: np.ndarray) -> None:  # noqa: D102
        image = images_of(tags, num_own)
        self._domain = domain = Domain(pos, tags, image, ALMOST * (self.reach + self.skin))
        expect_all_copies(self.comm, domain)
        wanted, first, copy_of = np.unique(
            tags[num_own:][domain.needed], return_index=True, return_inverse=True
        )
        rows = np.empty(num_own, dtype=np.int64)
        rows[domain.order] = np.arange(num_own)
        self.halo = halo = Halo(self.comm, tags[:num_own], rows, wanted)
        of_copies = np.full(len(image), -1)
        of_copies[domain.needed] = halo.place[copy_of]
        domain.give_rows(of_copies, len(wanted))
        self._others = np.empty(len(wanted), dtype=np.int64)  # one copy of each that is fetched
        self._others[halo.place] = num_own + domain.needed.nonzero()[0][first]

    def compute(self, z: np.ndarray, pos: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        num_own, halo = self._domain.num_own, self.halo
        of_rows = np.concatenate([z[:num_own], z[self._others]])
        fetch = None if halo.is_empty else halo.fetch
        return self._passes(self._domain, of_rows, pos, fetch)


class ByShell:
    """Any network: copies as far as the energies of own atoms depend on them, forces given back."""

    def __init__(self, network: nn.Module, skin: float, comm: Comm) -> None:
        self.network, self.comm, self.halo = network, comm, None
        self.dtype = next(network.parameters()).dtype
        self.hops = hops_of(network)
        self.reach, self.skin = self.hops * network.cutoff, skin
        self.graph = Graph(network.cutoff, skin)

    def build(self, num_own: int, tags: np.ndarray, pos: np.ndarray) -> None:  # noqa: D102
        image = images_of(tags, num_own)
        if tables_apply(torch.device("cpu"), torch.float64):  # the search is compiled
            reach = ALMOST * (self.reach + self.skin)
            expect_all_copies(self.comm, Domain(pos, tags, image, reach))
        wanted, copy_of = np.unique(tags[num_own:][image < 0], return_inverse=True)
        self.halo = Halo(self.comm, tags[:num_own], np.arange(num_own), wanted)
        self._row = np.concatenate([np.arange(num_own), image])
        self._row[num_own:][image < 0] = num_own + self.halo.place[copy_of]
        self._num_own, self._num_rows = num_own, num_own + len(wanted)

    def compute(self, z: np.ndarray, pos: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        N = self._num_own
        energy = torch.zeros(N, dtype=self.dtype)
        results = torch.zeros(self._num_rows, 12, dtype=self.dtype)  # forces, and virials by halves
        if N:
            x = torch.from_numpy(pos - pos[:N].mean(axis=0)).to(self.dtype)
            edges = self.graph.edges(x, torch.zeros(len(x), dtype=torch.int64))
            vector = edges.vector.detach().requires_grad_()
            with torch.enable_grad():
                column = torch.from_numpy(z).view(-1, 1).to(self.dtype)
                energy = self.network.atomic_energies(column, Edges(edges.index, vector))[:N]
                (pull,) = torch.autograd.grad(energy.sum(), vector)
            j, i = torch.from_numpy(self._row)[edges.index]
            half = (0.5 * vector.detach().unsqueeze(2) * pull.unsqueeze(1)).flatten(1)  # (E, 9)
            results.index_add_(0, i, torch.cat([pull, half], dim=1))
            results.index_add_(0, j, torch.cat([-pull, half], dim=1))
            energy = energy.detach()
        self.halo.give_back(results.numpy())
        return energy.ravel(), results[:N, :3], results[:N, 3:].view(-1, 3, 3)


def expect_all_copies(comm: Comm, domain: Domain) -> None:
    """Expect that whoever sees an atom is seen by it; called by all processes together."""
    total = np.zeros((), dtype=np.uint64)
    comm.Allreduce(domain.one_sided, total)
    expected = "copies of all atoms near by; comm_modify, neigh_modify and pair_style decide which"
    expect(total == 0, "atoms", expected, "others: one process sees a pair that another does not")


def hops_of(network: nn.Module) -> int:
    """Return how many edges away the energy of an atom depends on others; tried on a chain.

    Raises:
        ValueError: if that is more than `LONGEST_CHAIN`.
    """
    dtype = next(network.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    num = LONGEST_CHAIN + 2
    step = torch.rand(num - 1, 3, generator=generator, dtype=torch.float64) - 0.5
    step *= 0.5 * network.cutoff / torch.linalg.vector_norm(step, dim=1, keepdim=True)
    k = torch.arange(num - 1)
    index = torch.cat([torch.stack([k, k + 1]), torch.stack([k + 1, k])], dim=1)
    vector = torch.cat([-step, step]).to(dtype).requires_grad_()
    z = torch.full((num, 1), 6, dtype=dtype)
    with torch.enable_grad():
        energy = network.atomic_energies(z, Edges(index, vector))[0].sum()
        (gradient,) = torch.autograd.grad(energy, vector)
    felt = gradient.abs().sum(dim=1).view(2, -1).sum(dim=0).nonzero()
    hops = int(felt.max()) + 1 if len(felt) else 1
    ok = hops <= LONGEST_CHAIN
    expect(ok, "model", f"energies of atoms that see at most {LONGEST_CHAIN} edges far", "others")
    return hops


def images_of(tags: np.ndarray, num_own: int) -> np.ndarray:
    """Return the own atom that each copy is an image of, (C,); -1 for others' atoms."""
    own, copies = tags[:num_own], tags[num_own:]
    if num_own == 0:
        return np.full(len(copies), -1)
    order = np.argsort(own, kind="stable")
    at = order[np.minimum(np.searchsorted(own, copies, sorter=order), num_own - 1)]
    return np.where(own[at] == copies, at, -1)
