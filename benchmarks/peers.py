"""How fast SchNet and PaiNN run beside their peers: the same atoms, in one run, in turn.

    python -m benchmarks.peers [--quick] [--schnetpack PYTHON] [--compiled] [--json FILE]

Energies and forces include the search for the graph (SchNetPack's is given); training steps
(energies, forces, their loss, its gradient by the weights) are all given it. Every engine runs for
a short while, then the next one, and so on, several times; times are medians, ratios those of
medians. All of it is done in several separate runs, of which the page gives the smallest ratio, and
once more in each with one core kept busy by another process. Writes peers.md and peers.svg;
`--quick` prints the tables of one short run and writes nothing.

SchNetPack 2.1.1 needs an environment of its own, which these commands make:

    python3 -m venv .venv/schnetpack
    .venv/schnetpack/bin/pip install -r benchmarks/schnetpack.txt
    .venv/schnetpack/bin/pip install --no-deps schnetpack==2.1.1
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch_geometric
from torch import Tensor

from benchmarks.accuracy_of_tables import accuracy
from benchmarks.engines import (
    BULK,
    CASES,
    Case,
    Engine,
    PyG,
    SchNetPack,
    System,
    atoms_of,
    call_of_tables,
    compiled,
    painn,
    plain,
    pyg,
    same_weights,
    tables,
)
from benchmarks.peers_page import call_table, draw, page, speed_tables
from molnets.edges import Graph
from molnets.files import write_json
from molnets.potential import Potential, energy_and_forces
from molnets.tables import SplineSchNet, compiler_version, tabulated

ROUNDS = 4
SIZES = {"PyG": (100, 1000, 8000), "tables": (100, 1000, 8000, 64_000, 1_000_000),
         "PaiNN": (1000, 8000, 64_000, 500_000)}  # fmt: skip
SKIN, STEP = 0.3, 0.004  # an atom of speed 1, about what a Lennard-Jones liquid has at T = 1


def medians(
    engines: dict[str, Engine], kind: str, seconds: float, rounds: int = ROUNDS
) -> dict[str, float | None]:
    """Let the engines run in turn for so many seconds each; return the median time of each."""
    times: dict[str, list[float] | None] = {}
    for name, engine in engines.items():
        try:
            engine.burst(kind, 0.0)  # what is compiled, is compiled here
            times[name] = []
        except torch._inductor.exc.InductorError:  # of one sample, torch 2.13 fails to compile
            times[name] = None
    for _ in range(rounds):
        for name, engine in engines.items():
            if times[name] is not None:
                burst = engine.burst(kind, seconds / rounds)
                times[name] += burst[1:] or burst  # the first call finds the cache full of others
    return {name: None if t is None else statistics.median(t) for name, t in times.items()}


def measure(
    case: Case, network: str, seconds: float, options: argparse.Namespace
) -> dict[str, object]:
    """Return the times of all engines, and how far their forces are from those in float64."""
    system = System(case, network)
    engines = {"PyG": pyg(system)} if network == "SchNet" else {"plain": plain(system)}
    engines["tables"] = tables(system)
    quick, schnetpack = options.quick, options.schnetpack
    if network == "SchNet" and options.compiled:
        engines["compiled"] = compiled(system)
    if schnetpack:
        engines["SchNetPack"] = SchNetPack(system, schnetpack)
    checked = [name for name in engines if (network, name) != ("PaiNN", "SchNetPack")]
    result = {
        "case": case.name, "network": network, "edges": len(system.edges.vector),
        "force_error": {name: system.error_of(engines[name].forces()) for name in checked},
        "multiply_adds": multiply_adds(case, len(system.edges.vector)),
    }  # fmt: skip
    two = {name: engines[name] for name in list(engines)[:2]}
    for kind in ("inference", "training"):
        slow = case.num_atoms > 1000 and kind == "training"  # a peer needs ten seconds for a step
        if slow and (quick or network == "PaiNN"):
            continue
        result[kind] = medians(engines, kind, seconds, 2 if slow else ROUNDS)
        if not (quick or slow):
            with busy_core():
                result[f"{kind}, busy"] = medians(two, kind, seconds / 2, 2)
    if network == "SchNet":
        calls = {"energy_and_forces": engines["tables"], "call": call_of_tables(system)}
        result["call"] = medians(calls, "inference", seconds / 2)
    if schnetpack:
        engines["SchNetPack"].close()
    return result


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Let another process compute without end meanwhile."""
    loop = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    other = subprocess.Popen([sys.executable, "-c", loop])
    try:
        time.sleep(0.2)
        yield
    finally:
        other.kill()
        other.wait()


def multiply_adds(case: Case, num_edges: int) -> int:
    """Return how many multiply-adds the tables take for energies and forces.

    Per atom the dense layers, forward and back; per pair and feature 7 forward, W and its products
    with x_i and x_j, and 15 back: W, W', the products with g, and (g_i x_j + g_j x_i) W'. Of the
    first block the last 8 are enough. Edges between parts count as if they were pairs.
    """
    atoms, F, L = case.num_samples * case.num_atoms, case.num_features, case.num_blocks
    dense = 2 * atoms * (3 * L * F * F + F * F // 2) - atoms * F * F
    return dense + (22 * L - 7) * F * num_edges // 2


def peak() -> float:
    """Return how many multiply-adds in float32 a second a product of large matrices makes."""
    a, times = torch.rand(2048, 2048), []
    for _ in range(20):
        begin = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begin)
    return 2048**3 / statistics.median(times)


def moving(case: Case, seconds: float) -> dict[str, float]:
    """Return the steps a second of dynamics whose atoms fly freely, with lists and without.

    The forces are computed and not used: with random weights they would tear the atoms apart.
    """
    z, start, batch = atoms_of(case)
    velocities = torch.randn_like(start)
    peer = PyG(case)
    models = {"PyG": peer}
    for name, skin in (("tables, list with a skin", SKIN), ("tables, new list", 0.0)):
        graph = Graph(case.cutoff, skin)
        models[name] = tabulated(Potential(same_weights(peer, case), graph=graph))
    speeds = {}
    for name, model in models.items():
        energy_and_forces(model, z, start, batch)
        steps, begin = 0, time.perf_counter()
        while steps < 3 or time.perf_counter() - begin < seconds:
            back_and_forth = steps % 200 if steps % 200 < 100 else 200 - steps % 200
            energy_and_forces(model, z, start + STEP * back_and_forth * velocities, batch)
            steps += 1
        speeds[name] = steps / (time.perf_counter() - begin)
    return speeds


def alone(function: Callable, *arguments: object) -> object:
    """Call the function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def size_and_time(num_atoms: int, engine: str) -> dict[str, float]:
    """Return seconds for energies and forces of so many atoms in bulk, and MB of extra memory."""
    small, large = BULK._replace(num_atoms=100), BULK._replace(num_atoms=num_atoms)
    peer = PyG(BULK)
    model = {"PyG": lambda: peer, "tables": lambda: SplineSchNet(same_weights(peer, BULK)),
             "PaiNN": lambda: tabulated(Potential(painn(BULK)))}[engine]()  # fmt: skip
    energy_and_forces(model, *atoms_of(small))  # loads and compiles all that is needed
    atoms: tuple[Tensor, ...] = atoms_of(large)
    _forget_peak()
    before = _memory("VmRSS")
    energy_and_forces(model, *atoms)
    times, extra = [], _memory("VmHWM") - before
    while len(times) < 3 or (len(times) < 200 and sum(times) < 2):
        begin = time.perf_counter()
        energy_and_forces(model, *atoms)
        times.append(time.perf_counter() - begin)
    extra = max(extra, _memory("VmHWM") - before)
    return {"atoms": num_atoms, "seconds": statistics.median(times), "extra_mb": extra}


def size_and_time_of_schnetpack(num_atoms: int, python: Path) -> dict[str, float]:
    """Return the same of SchNetPack, to which the graph is given."""
    engine = SchNetPack(System(BULK._replace(num_atoms=num_atoms)), python)
    extra, seconds = engine.memory(), statistics.median(engine.burst("inference", 2.0))
    engine.close()
    return {"atoms": num_atoms, "seconds": seconds, "extra_mb": extra}


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # there on Linux alone
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not on Linux: the highest so far stands for both
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def machine() -> str:
    """Return the versions and the machine."""
    return (
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, "
        f"PyG {torch_geometric.__version__}, {compiler_version()}."
    )


def speeds(seconds: float, options: argparse.Namespace) -> list[dict]:
    """Return the results of all cases; they are written to a file as they come."""
    results = []
    for network in ("SchNet", "PaiNN"):
        for case in CASES:
            print(f"{network}, {case.name} ...", flush=True)
            results.append(measure(case, network, seconds, options))
            if options.json:
                write_json(results, options.json)
    return results


def separate_runs(options: argparse.Namespace) -> list[list[dict]]:
    """Return the results of several runs, each in a process of its own."""
    found = []
    for number in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            command = [sys.executable, "-m", "benchmarks.peers", "--once", "--json", path]
            if options.schnetpack and number == 0:  # its steps take as long as all others
                command += ["--schnetpack", options.schnetpack]
            if options.compiled:
                command.append("--compiled")
            subprocess.run(command, check=True)
            found.append(json.loads(path.read_text()))
    return found


def main() -> None:
    """Measure all cases, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short run, printed")
    parser.add_argument("--once", action="store_true", help="one run, into the file of --json")
    parser.add_argument("--compiled", action="store_true", help="PyG's under torch.compile too")
    parser.add_argument("--runs", type=int, default=3, help="separate runs")
    parser.add_argument("--schnetpack", type=Path, help="the Python of its environment")
    parser.add_argument("--json", type=Path, help="where the numbers go as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    logging.getLogger("torch._inductor").setLevel(logging.CRITICAL)
    if options.quick or options.once:
        seconds = 0.5 if options.quick else 1.0
        results = speeds(seconds, options)
        if options.quick:
            print(
                "\n".join([*speed_tables([results]), *call_table([results])]), machine(), sep="\n"
            )
        return
    numbers = {"machine": machine(), "cores": os.cpu_count()}
    numbers["runs"] = separate_runs(options)
    numbers["sizes"] = {name: [alone(size_and_time, n, name) for n in sizes]
                        for name, sizes in SIZES.items()}  # fmt: skip
    if options.schnetpack:
        numbers["sizes"]["SchNetPack"] = [
            size_and_time_of_schnetpack(n, options.schnetpack) for n in SIZES["PyG"]
        ]
    numbers["steps"] = {case.name: moving(case, 4.0) for case in (CASES[0], *CASES[-2:])}
    numbers["multiply_adds"], numbers["accuracy"] = peak(), accuracy()
    if options.json:
        write_json(numbers, options.json)
    options.out.write_text(page(numbers))
    draw(numbers["sizes"], options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
