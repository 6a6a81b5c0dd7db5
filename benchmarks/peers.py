"""How fast SchNet runs beside its peers: the same weights, the same atoms, in one run, in turn.

    python -m benchmarks.peers [--quick] [--json FILE]

Each line is a system. For energies and forces every engine finds the graph itself, unless the
column says that it is given; for a training step (energies, forces, their loss, its gradient) all
get the same edges. Times are medians; ratios are ratios of medians. Writes the table peers.md.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch_geometric
from torch import Tensor, nn
from torch_cluster import radius_graph
from torch_geometric.nn import SchNet as PyGSchNet

from md.potential import Standardized, by_autograd, energy_and_forces
from md.spline import SplineSchNet
from md.spline_training import SplineForces
from md.training import Settings, loss_of
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet

DENSITY = 0.9  # atoms in a cube whose edge is 1, for bulk; the cutoff 2.5 then holds about 46


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
        self.edge_index: Tensor | None = None
        self.cutoff = case.cutoff
        self.schnet = PyGSchNet(
            case.num_features, case.num_features, case.num_blocks, case.num_gaussians, case.cutoff,
            interaction_graph=self.graph,
        )  # fmt: skip

    def graph(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges and their lengths."""
        edges = self.edge_index
        if edges is None:
            edges = radius_graph(pos, self.cutoff, batch, max_num_neighbors=1000)
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


def medians(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Call all functions in turn for so many seconds each; return the median time of each."""
    for function in functions.values():
        function(), function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    while min(map(sum, times.values())) < seconds or min(map(len, times.values())) < 5:
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: Case, seconds: float) -> dict[str, object]:
    """Return times, and how far the forces are from those in float64."""
    torch.manual_seed(0)
    z, pos, batch = atoms_of(case)
    peer = PyG(case)
    plain = same_weights(peer, case)
    fast = SplineSchNet(plain)
    exact_energy, exact = by_autograd(same_weights(peer, case).double(), z, pos.double(), batch)
    forces = {"PyG": by_autograd(peer, z, pos, batch)[1]}
    forces["tables"] = energy_and_forces(fast, z, pos, batch)[1]
    rms = exact.square().mean().sqrt()
    errors = {name: float((f - exact).abs().max() / rms) for name, f in forces.items()}
    inference = medians({
        "PyG": lambda: by_autograd(peer, z, pos, batch),
        "tables": lambda: energy_and_forces(fast, z, pos, batch),
    }, seconds)  # fmt: skip
    edge_index, _ = RadiusInteractionGraph(case.cutoff)(pos, batch)
    target = (z, pos, batch, exact_energy, exact.float())
    training = medians(training_steps(peer, plain, target, edge_index), seconds)
    return {
        "case": case.name, "edges": edge_index.shape[1], "intervals": fast.num_intervals,
        "inference": inference, "training": training, "force_error": errors,
    }  # fmt: skip


def training_steps(
    peer: PyG, plain: SchNet, target: tuple[Tensor, ...], edge_index: Tensor
) -> dict[str, Callable[[], None]]:
    """Return a training step of each: energies, forces, loss, and its gradient by the weights."""
    from md.data import Batch

    batch, settings = Batch(*target), Settings()
    B, offset = len(batch.energies), torch.zeros(edge_index.shape[1], 3)
    engine = SplineForces(Standardized(plain))

    def step_of_peer() -> None:
        peer.edge_index = edge_index
        loss_of(*energy_and_forces(peer, *batch[:3], create_graph=True), batch, settings).backward()
        peer.edge_index = None

    def step() -> None:
        loss_of(*engine(*batch[:3], edge_index, offset, B), batch, settings).backward()

    return {"PyG": step_of_peer, "tables": step}


def peak_memory(case: Case, engine: str) -> float:
    """Return by how many MB energies and forces raise the peak memory of a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (case, engine))


def _peak_memory(case: Case, engine: str) -> float:
    small = case._replace(num_atoms=min(case.num_atoms, 100))
    for scale in (small, case):  # the small one loads and compiles all that is needed
        z, pos, batch = atoms_of(scale)
        peer = PyG(scale)
        model = peer if engine == "PyG" else SplineSchNet(same_weights(peer, scale))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        energy_and_forces(model, z, pos, batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def table(results: list[dict], memory: dict[str, float]) -> str:
    """Return the page."""
    head = ("atoms", "edges", "PyG", "tables", "ratio", "PyG, training step", "tables", "ratio",
            "largest force error, PyG", "tables")  # fmt: skip
    lines = ["# Beside PyG's SchNet", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for r in results:
        cells = [r["case"], f"{r['edges']:,}"]
        for kind in ("inference", "training"):
            a, b = r[kind]["PyG"], r[kind]["tables"]
            cells += [f"{1e3 * a:.2f} ms", f"{1e3 * b:.2f} ms", f"{a / b:.1f}×"]
        cells += [f"{r['force_error'][name]:.0e}" for name in ("PyG", "tables")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Energies and forces include the graph, which training steps are given. Random",
              "weights, float32; errors relative to the force RMS, against float64."]  # fmt: skip
    if memory:
        sizes = ", ".join(f"{name} {mb:,.0f} MB" for name, mb in memory.items())
        lines += ["", f"Extra peak memory of energies and forces at 8,000 atoms: {sizes}."]
    threads, versions = torch.get_num_threads(), (torch.__version__, torch_geometric.__version__)
    lines += [
        "",
        f"{threads} threads, {platform.machine()}, torch {versions[0]}, PyG {versions[1]}.",
    ]
    return "\n".join([*lines, "`python -m benchmarks.peers` makes this page."]) + "\n"


def main() -> None:
    """Measure all cases, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter, without memory")
    parser.add_argument("--json", type=Path, help="where the numbers go as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    results = [measure(case, 1.0 if options.quick else 5.0) for case in CASES]
    memory = {}
    if not options.quick:
        memory = {engine: peak_memory(CASES[-1], engine) for engine in ("PyG", "tables")}
    options.out.write_text(table(results, memory))
    if options.json:
        numbers = {"results": results, "memory_mb": memory, "cores": os.cpu_count()}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
