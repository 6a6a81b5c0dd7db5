"""The systems of `benchmarks.peers`, and those that compute on them: the same weights in each."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_cluster import radius_graph
from torch_geometric.nn import SchNet as PyGSchNet

from molnets.edges import Edges, Graph
from molnets.networks.painn import PaiNN
from molnets.potential import Potential, by_autograd, energy_and_forces
from molnets.tables import SplineSchNet, tabulated
from molnets.training import Batch, Dataset, PlainForces, factors_of, loss_of, make_steps
from schnet_helpers import ElementEmbedding, SchNet

RHO = 0.01, 1.0  # weights of energies and forces in the loss
DENSITY = 0.9  # atoms in a cube whose edge is 1, for bulk; the cutoff 2.5 then holds about 59
WORKER = Path(__file__).with_name("schnetpack_worker.py")


class Case(NamedTuple):
    """Samples, atoms in each, and the sizes of the network."""

    name: str
    num_samples: int
    num_atoms: int
    num_features: int
    num_blocks: int
    num_gaussians: int
    cutoff: float


CASES = (
    Case("1 × 13", 1, 13, 32, 2, 10, 5.0),
    Case("10 × 9", 10, 9, 64, 3, 25, 5.0),
    Case("64 × 13", 64, 13, 32, 2, 10, 5.0),
    Case("32 × 21", 32, 21, 128, 6, 50, 5.0),
    Case("1,000 bulk", 1, 1000, 64, 3, 50, 2.5),
    Case("8,000 bulk", 1, 8000, 64, 3, 50, 2.5),
)
BULK = CASES[-1]


def atoms_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, pos, batch: a jittered lattice for bulk, compact molecules otherwise."""
    torch.manual_seed(0)
    side = math.ceil(case.num_atoms ** (1 / 3) - 1e-9)
    axes = torch.meshgrid(*[torch.arange(float(side))] * 3, indexing="ij")
    sites = torch.stack(axes, dim=-1).view(-1, 3)[: case.num_atoms]
    spacing = DENSITY ** (-1 / 3) if case.num_atoms > 100 else 1.2
    pos = spacing * (sites.repeat(case.num_samples, 1) + 0.05 * torch.randn(1, 3))
    pos += 0.1 * torch.randn_like(pos)
    batch = torch.arange(case.num_samples).repeat_interleave(case.num_atoms)
    return torch.randint(1, 9, (len(pos), 1)), pos, batch


class PyG(nn.Module):
    """PyG's own SchNet; the graph is torch_cluster's, or given."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.edge_index: Tensor | None = None
        self.cutoff = case.cutoff
        self.schnet = PyGSchNet(
            case.num_features, case.num_features, case.num_blocks, case.num_gaussians, case.cutoff,
            interaction_graph=self.graph,
        )  # fmt: skip

    def search(self, pos: Tensor, batch: Tensor) -> Tensor:
        """Return the edges."""
        return radius_graph(pos, self.cutoff, batch, max_num_neighbors=1000)

    def graph(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges and their lengths."""
        edges = self.search(pos, batch) if self.edge_index is None else self.edge_index
        return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=-1)

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Return the energies, (B, 1)."""
        return self.schnet(z.view(-1), pos, batch)


def same_weights(peer: PyG, case: Case) -> SchNet:
    """Return our SchNet with the peer's weights."""
    other, F = peer.schnet, case.num_features
    gamma = -float(other.distance_expansion.coeff)
    model = SchNet(F, F, case.num_blocks, case.num_gaussians, case.cutoff, gamma,
                   ElementEmbedding(F, max_z=99))  # fmt: skip
    model.embedding.load_state_dict(other.embedding.state_dict())
    model.interactions.load_state_dict(other.interactions.state_dict())
    model.readout[0].load_state_dict(other.lin1.state_dict())
    model.readout[2].load_state_dict(other.lin2.state_dict())
    return model


class System:
    """The atoms of a case, the network's weights, and the targets of a training step.

    Args:
        case: samples, atoms and sizes.
        network: "SchNet", whose weights are PyG's, or "PaiNN".
    """

    def __init__(self, case: Case, network: str = "SchNet") -> None:
        self.case, self.network, self.peer = case, network, PyG(case)
        self.atoms = atoms_of(case)
        self.plain = same_weights(self.peer, case) if network == "SchNet" else painn(case)
        z, pos, batch = self.atoms
        exact = tabulated(Potential(copy.deepcopy(self.plain).double()))
        self.energy, self.forces = energy_and_forces(exact, z, pos.double(), batch)
        self.edges = Graph(case.cutoff).edges(pos, batch)
        self.target = Batch(z, pos, batch, self.energy, self.forces.float())
        forces, n_atoms = self.forces.double(), batch.bincount()
        self.data = Dataset(z.flatten(), pos.double(), self.energy.flatten(), forces, n_atoms)
        self.factors = factors_of(self.data, *RHO, 0.0)

    def error_of(self, forces: Tensor) -> float:
        """Return the largest deviation from the forces in float64, in units of their RMS."""
        return float((forces - self.forces).abs().max() / self.forces.square().mean().sqrt())


class Engine:
    """Energies and forces, with the graph, and a training step, to which the graph is given.

    A training step is energies and forces, their loss, and its gradient by the weights.
    """

    def __init__(
        self, evaluate: Callable[[], tuple[Tensor, Tensor]], step: Callable[[], None]
    ) -> None:
        self.evaluate, self.calls = evaluate, {"inference": evaluate, "training": step}

    def forces(self) -> Tensor:
        """Return the forces."""
        return self.evaluate()[1]

    def burst(self, kind: str, seconds: float) -> list[float]:
        """Return the times of calls one after the other, for so many seconds, but at least one."""
        call, times = self.calls[kind], []
        while not times or sum(times) < seconds:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return times


def pyg(system: System) -> Engine:
    """Return PyG's SchNet."""
    peer = system.peer

    def step() -> None:
        peer.edge_index = system.edges.index
        energy, forces = by_autograd(peer, *system.atoms, create_graph=True)
        loss_of((energy, forces), system.target, system.factors).backward()
        peer.edge_index = None

    return Engine(lambda: by_autograd(peer, *system.atoms), step)


def painn(case: Case) -> PaiNN:
    """Return a PaiNN of the case's sizes."""
    torch.manual_seed(0)
    return PaiNN(case.num_features, case.num_blocks, case.num_gaussians, case.cutoff)


def plain(system: System) -> Engine:
    """Return our network without the engine."""
    potential = Potential(system.plain)
    return Engine(lambda: potential.energy_and_forces(*system.atoms), _step_of("plain", system))


def compiled(system: System) -> Engine:
    """Return the same under `torch.compile`.

    A training step differentiates twice, which it cannot; there PyG's blocks are compiled together
    with `torch.func.grad`, as `--engine compiled` does.
    """
    peer, (z, pos, batch) = PyG(system.case), system.atoms
    peer.load_state_dict(system.peer.state_dict())
    peer.schnet.compile()

    def evaluate() -> tuple[Tensor, Tensor]:
        peer.edge_index = peer.search(pos, batch)
        return by_autograd(peer, z, pos, batch)

    return Engine(evaluate, _step_of("compiled", system))


def tables(system: System) -> Engine:
    """Return ours."""
    model = tabulated(system.plain if system.network == "SchNet" else Potential(system.plain))
    return Engine(lambda: energy_and_forces(model, *system.atoms), _step_of("spline", system))


def call_of_tables(system: System) -> Engine:
    """Return the same energies and forces by what everyone writes: a call, and autograd."""
    model = SplineSchNet(system.plain)
    return Engine(lambda: by_autograd(model, *system.atoms), _step_of("spline", system))


def _step_of(name: str, system: System) -> Callable[[], None]:
    """Return a training step: by torch, where frames are a batch already, or in one call."""
    potential = Potential(system.plain)
    if name == "spline":
        take_step = make_steps(name, potential, system.data, system.factors)
        weights, chosen = [*potential.parameters()], torch.arange(len(system.data))
        gradient = torch.zeros(sum(weight.numel() for weight in weights))

        def step() -> None:
            take_step(chosen, weights, gradient)

        return step
    engine = PlainForces(potential)
    if name == "compiled":
        engine.compile()
    target, edges = system.target, Edges(*(x.detach() for x in system.edges))

    def step() -> None:
        results = engine(target.z, target.batch, edges)
        loss_of(results, target, system.factors).backward()

    return step


class SchNetPack(Engine):
    """SchNetPack, in a process of its own, as it needs other versions; its graph is given."""

    def __init__(self, system: System, python: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "system.pt"
            z, pos, batch = system.atoms
            torch.save({
                "case": system.case._asdict(), "weights": system.peer.schnet.state_dict(),
                "z": z.view(-1), "pos": pos, "batch": batch, "edges": system.edges.index,
                "energy": system.energy.float(), "forces": system.target.forces,
                "network": system.network,
            }, path)  # fmt: skip
            self.process = subprocess.Popen(
                [python, WORKER, path, str(torch.get_num_threads())], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": ""},
            )  # fmt: skip
            self.version = self._ask()["version"]

    def _ask(self, **command: Any) -> dict[str, Any]:
        if command:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        while line := self.process.stdout.readline():
            if line.startswith("{"):  # it may print other things
                return json.loads(line)
        raise RuntimeError(f"SchNetPack: its process ended with {self.process.wait()}")

    def forces(self) -> Tensor:
        """Return the forces."""
        return torch.tensor(self._ask(do="forces")["forces"])

    def burst(self, kind: str, seconds: float) -> list[float]:
        """Return the times of calls one after the other, for so many seconds, but at least one."""
        return self._ask(do=kind, seconds=seconds)["times"]

    def memory(self) -> float:
        """Return by how many MB energies and forces raised its peak memory, at most."""
        return self._ask(do="memory")["mb"]

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
