"""What `benchmarks.lammps` measured, as a page, and an estimate for many processes."""

from __future__ import annotations

import statistics

from benchmarks.lammps_worker import BLOCKS, CONSTANT, CUTOFF, FEATURES, GAUSSIANS, SKIN
from benchmarks.peers_page import table

RANKS = 1000  # of the estimate
LATENCY, BANDWIDTH, NEIGHBOURS = 2e-6, 5e9, 26  # s, bytes/s of a process, processes around one
DENSITY = 8 / CONSTANT**3
PER_RANK = (64, 125, 250, 500, 1000, 2000, 4000, 8000, 32000)  # atoms


def _of(run: list[dict], forces: str, cells: int, ranks: int | None = None) -> dict:
    return next(x for x in run if x["forces"] == forces and x["cells"] == cells
                and (ranks is None or x["ranks"] == ranks))  # fmt: skip


def _spread(values: list[float], form: str = ".2f") -> str:
    low, high = min(values), max(values)
    return f"{low:{form}} to {high:{form}}" if len(values) > 1 else f"{low:{form}}"


def speeds(runs: list[list[dict]]) -> list[str]:
    """Return the table of the network's speed: medians over the runs, ratios of each run."""
    rows = []
    for cells in sorted({x["cells"] for x in runs[0] if x["forces"] == "calculator"}):
        triples = [
            [_of(run, "calculator", cells), *(_of(run, "network", cells, n) for n in (1, 2))]
            for run in runs
        ]
        serial, one, two = (
            [triple[n]["seconds"] for triple in triples] for n in range(3)
        )  # fmt: skip
        efficiency = [a / (2 * b) for a, b in zip(one, two, strict=True)]
        overhead = [b / a for a, b in zip(serial, one, strict=True)]
        last = triples[0][2]
        times = [f"{1e3 * statistics.median(t):.2f}" for t in (serial, one, two)]
        rows.append([
            f"{last['atoms']:,}", *times,
            _spread(overhead), _spread(efficiency), f"{max(last['sent']) / 1e6:.2f}",
            f"{sum(last['memory']):.1f}", f"{1e3 * last['drift']:.4f}",
        ])  # fmt: skip
    head = ["atoms", "ASE, ms a step", "LAMMPS, 1 process", "2 processes", "1 process by ASE",
            "efficiency of 2", "MB sent, each and step", "GiB of 2",
            "drift, meV an atom"]  # fmt: skip
    return table(head, rows)


def others(data: dict) -> list[str]:
    """Return the table of pair styles: atom-steps a second and core, 4,096 atoms."""
    rows, names = [], ["network", *(name for name in data["edges"] if name != "network")]
    for name in names:
        found = [_of(data["others"], name, 8, ranks) for ranks in (1, 2)]
        speed = [x["atoms"] / (x["seconds"] * x["ranks"]) for x in found]
        title = f"SchNet, F {FEATURES}, {BLOCKS} blocks" if name == "network" else name
        rows.append([title, f"{data['edges'][name]:.0f}", *(f"{1e-3 * s:,.0f}" for s in speed)])
    head = ["forces", "edges per atom", "1000 atom-steps per s and core, 1 process", "2 processes"]
    return table(head, rows)


def agreement(data: dict) -> list[str]:
    """Return the table of deviations from the calculator."""
    rows = [
        [x["dtype"], f"{x['atoms']:,}", str(x["ranks"]), f"{x['energy']:.1e}", f"{x['forces']:.1e}",
         f"{x['forces'] / x['rms']:.1e}"]
        for x in data["agreement"]
    ]  # fmt: skip
    head = ["dtype", "atoms", "processes", "energy, eV an atom", "largest force, eV/Å",
            "by the root mean square"]  # fmt: skip
    return table(head, rows)


def estimate(seconds_per_atom: float) -> list[tuple[int, float, float]]:
    """Return atoms of each process, bytes it receives in a step, and the efficiency.

    Cubes of atoms; an edge that crosses a face is computed on both sides; between blocks, rows of
    all atoms within the cutoff come, in 2 L − 1 exchanges, and positions in one more.
    """
    found = []
    for num in PER_RANK:
        side = (num / DENSITY) ** (1 / 3)
        copies = DENSITY * ((side + 2 * CUTOFF) ** 3 - side**3)
        crossing = 1 - max(0.0, 1 - 3 / 8 * CUTOFF / side) ** 3  # a uniform density: E|Δx| = 3/8 r
        exchanges = 2 * BLOCKS - 1
        received = copies * 4 * FEATURES * exchanges + 24 * copies
        own = num * seconds_per_atom
        waits = (exchanges + 1) * NEIGHBOURS * LATENCY + received / BANDWIDTH
        found.append((num, received, own / (own * (1 + crossing) + waits)))
    return found


def many_processes(runs: list[list[dict]]) -> list[str]:
    """Return what can be expected of many processes."""
    per_atom = statistics.median(
        x["seconds"] / x["atoms"] for x in (_of(run, "network", 16, 1) for run in runs)
    )
    found = estimate(per_atom)
    rows = [[f"{num:,}", f"{num * RANKS:,}", f"{received / 1e6:.2f}", f"{efficiency:.2f}"]
            for num, received, efficiency in found]  # fmt: skip
    enough = next((num for num, _, efficiency in found if efficiency >= 0.7), None)
    return [
        f"Measured: {1e6 * per_atom:.2f} µs an atom and step on one process. Assumed, not "
        f"measured: {1e6 * LATENCY:.0f} µs for a message, {NEIGHBOURS} neighbours of each process, "
        f"{BANDWIDTH / 1e9:.0f} GB/s for each process, no imbalance, lists not counted. An edge "
        "from process to process is computed on both sides, which costs more than the exchange.",
        "",
        *table(["atoms of a process", f"atoms on {RANKS:,}", "MB received a step", "efficiency"],
               rows),
        f"From about {enough:,} atoms of each process on, {enough * RANKS / 1e6:.2g} million in "
        "all, the efficiency is above 0.7; with fewer it falls below.",
        "",
    ]  # fmt: skip


def page(data: dict) -> str:
    """Return the page."""
    runs, lines = data["runs"], ["# LAMMPS with a network", ""]
    lines += [
        f"SchNet, {FEATURES} features, {BLOCKS} blocks, {GAUSSIANS} Gaussians, cutoff {CUTOFF:g} "
        f"Å, float32, random weights; silicon at 300 K, {data['edges']['network']:.0f} edges an "
        f"atom, skin {SKIN:g} Å, steps of 1 fs at constant energy. One thread for each "
        f"process, two cores; {len(runs)} separate runs: medians over the runs, ratios from the "
        "smallest to the largest. ASE: its own velocity Verlet with the calculator, one thread.",
        "",
        *speeds(runs),
    ]
    if "largest" in data:
        x = data["largest"]
        lines += [
            f"A million atoms ({x['atoms']:,}) on two processes: {x['seconds']:.2f} s a step, "
            f"{sum(x['memory']):.1f} GiB in all, {max(x['sent']) / 1e6:.0f} MB sent by each "
            "process and step.",
            "",
        ]
    if "others" in data:
        lines += ["## What else the same wheel computes on the same cores", ""]
        lines += ["4,096 atoms of silicon, one run; the parameters are files of the wheel.", ""]
        lines += others(data)
    if "agreement" in data:
        lines += ["## Agreement with the calculator", "", *agreement(data)]
    lines += ["## An estimate for many processes", "", *many_processes(runs)]
    versions = ", ".join(f"{name} {x}" for name, x in data["versions"].items())
    return "\n".join([*lines, f"{versions}.", ""])
