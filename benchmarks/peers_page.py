"""What `benchmarks.peers` measured, as a page and a figure."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib.pyplot as plt

PEERS = ("PyG", "plain", "compiled", "SchNetPack")
TITLES = {
    "PyG": "PyG",
    "plain": "ours, plain",
    "compiled": "PyG, torch.compile",
    "SchNetPack": "SchNetPack 2.1.1",
}
STYLE = {
    "PyG": ("o--", "#d55e00", "PyTorch Geometric's SchNet"),
    "tables": ("s-", "#0072b2", "the same weights, splines"),
    "PaiNN": ("d-", "#cc79a7", "PaiNN, splines"),
    "SchNetPack": ("^:", "#009e73", "SchNetPack's SchNet"),
}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{_short(1e3 * seconds)} ms"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _of(run: list[dict], network: str, case: str) -> dict:
    found = (r for r in run if (r["network"], r["case"]) == (network, case))
    return next(found, {})


def _ratios(runs: list[dict], kind: str, peer: str) -> list[float]:
    """Return the peer's time by ours in each run, the smallest first."""
    both = [(r[kind].get(peer), r[kind]["tables"]) for r in runs if kind in r]
    return sorted(theirs / ours for theirs, ours in both if theirs)


def _range(ratios: list[float]) -> str:
    if not ratios:
        return "–"
    if len(ratios) == 1:
        return f"{ratios[0]:.1f} ×"
    return f"{ratios[0]:.1f} × (to {ratios[-1]:.1f})"


def speed_tables(runs: list[list[dict]]) -> list[str]:
    """Return the tables of energies and forces and of training steps, of both networks."""
    lines = []
    for network in ("SchNet", "PaiNN"):
        for kind, title in (("inference", "energies and forces"), ("training", "training step")):
            shown = [r for r in runs[0] if r["network"] == network and kind in r]
            peers = [name for name in PEERS if name in shown[0][kind]]
            head = [f"{network}, {title}", "edges", *(TITLES[name] for name in peers), "ours"]
            head += [f"to {TITLES[name]}" for name in peers] + ["one core busy"]
            rows = []
            for r in shown:
                each = [_of(run, network, r["case"]) for run in runs]
                each = [found for found in each if kind in found]
                times = {n: [x[kind].get(n) for x in each] for n in (*peers, "tables")}
                times = {n: [x for x in t if x] for n, t in times.items()}
                times = {n: statistics.median(t) if t else None for n, t in times.items()}
                ratios = [_range(_ratios(each, kind, name)) for name in peers]
                rows.append([
                    r["case"], f"{r['edges']:,}", *(_ms(times[n]) for n in peers),
                    f"**{_ms(times['tables'])}**", f"**{ratios[0]}**", *ratios[1:],
                    _range(_ratios(each, f"{kind}, busy", peers[0])),
                ])  # fmt: skip
            lines += table(head, rows)
    return lines


def call_table(runs: list[list[dict]]) -> list[str]:
    """Return the table of the call with autograd beside `energy_and_forces`."""
    rows = []
    for r in (r for r in runs[0] if "call" in r):
        each = [_of(run, r["network"], r["case"])["call"] for run in runs]
        fast, call = (statistics.median(x[n] for x in each) for n in ("energy_and_forces", "call"))
        rows.append([r["case"], _ms(fast), _ms(call), f"{call / fast:.2f}"])
    head = ["SchNet, ours", "`energy_and_forces`", "call and `torch.autograd.grad`", "ratio"]
    return table(head, rows)


def page(numbers: dict) -> str:
    """Return the page peers.md, of whatever was measured."""
    runs = numbers["runs"]
    lines = ["# SchNet and PaiNN on splines, beside their peers", "", *speed_tables(runs)]
    lines += [
        f"Times are medians of {len(runs)} separate runs, in each of which the engines take turns;",
        "ratios are those of a run, the smallest first and the largest in brackets. The last",
        "column is the ratio to the first peer while another process keeps one core busy. float32;",
        "SchNet has the same weights everywhere. Samples × atoms, or atoms in bulk; features,",
        "blocks, Gaussians and cutoff are in `engines.py`. The time for energies and forces",
        "includes the search for the graph, except SchNetPack's, to which it is given, and which",
        "takes part in the first run only; training steps are given it, and ours put their batch",
        "together besides. A dash: torch cannot compile it, or it was not measured.",
        "",
        *call_table(runs),
    ]
    for part in (_sizes, _steps, _multiply_adds, _accuracy):
        if part.__name__[1:] in numbers:
            lines += part(numbers)
    lines += [numbers["machine"], "`python -m benchmarks.peers` makes this page."]
    return "\n".join(lines) + "\n"


def _sizes(numbers: dict) -> list[str]:
    rows = []
    for name, results in numbers["sizes"].items():
        for r in results:
            per_atom = f"{1e6 * r['seconds'] / r['atoms']:.2f} µs"
            title = {"tables": "SchNet, ours", "PaiNN": "PaiNN, ours"}.get(name, name)
            rows.append([title, f"{r['atoms']:,}", f"{r['seconds']:.4g} s", per_atom,
                         f"{r['extra_mb']:,.0f} MB"])  # fmt: skip
    head = ["", "atoms in bulk", "energies and forces", "per atom", "extra memory"]
    return ["![time and memory against the number of atoms](peers.svg)", "", *table(head, rows),
            "Each size in a process of its own. Extra memory: how far energies and forces raise",
            "the peak of the process above what it holds before; SchNetPack's with what it loads",
            "at its first call, without the search for the graph.", ""]  # fmt: skip


def _steps(numbers: dict) -> list[str]:
    steps = numbers["steps"]
    names = list(next(iter(steps.values())))
    rows = [[case, *(f"{speeds[name]:,.1f}" for name in names)] for case, speeds in steps.items()]
    return [*table(["steps a second", *names], rows),
            "Atoms move 0.004 × a normal deviate a step; a list that ends 0.3 beyond the cutoff",
            "is built anew when an atom has moved by half of that.", ""]  # fmt: skip


def _multiply_adds(numbers: dict) -> list[str]:
    rows, runs, peak = [], numbers["runs"], numbers["multiply_adds"]
    for r in (r for r in runs[0] if r["network"] == "SchNet"):
        times = [_of(run, "SchNet", r["case"])["inference"]["tables"] for run in runs]
        rate = r["multiply_adds"] / statistics.median(times)
        count = f"{_short(r['multiply_adds'] / 1e6)} million"
        rows.append([r["case"], count, f"{rate / 1e9:.3g} billion", f"{100 * rate / peak:.0f} %"])
    return [*table(["SchNet, ours", "multiply-adds", "a second", "of the machine's"], rows),
            f"The machine's: {peak / 1e9:.3g} billion a second, in a product of two",
            "matrices of 2048 rows and columns.", ""]  # fmt: skip


def _accuracy(numbers: dict) -> list[str]:
    accuracy = numbers["accuracy"]
    rows = [[name, *(f"{error:.1e}" for error in errors.values())]
            for name, errors in accuracy["forces"].items()]  # fmt: skip
    head = ["largest force error / RMS", "plain, float32", "splines, float32", "splines, float64"]
    lines = table(head, rows)
    rows = [[name, f"{d['mev_per_atom_ps']:+.4f} ± {d['error']:.4f}", f"{d['wobble_mev']:.2f}"]
            for name, d in accuracy["drift"].items()]  # fmt: skip
    head = ["ethanol, 10 ps, 0.5 fs", "drift, meV per atom and ps", "wobble, meV"]
    return lines + table(head, rows)


def draw(sizes: dict[str, list[dict]], path: Path) -> None:
    """Draw time and memory against the number of atoms."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name, results in sizes.items():
        (marker, color, label), atoms = STYLE[name], [r["atoms"] for r in results]
        per_atom = [1e6 * r["seconds"] / r["atoms"] for r in results]
        left.loglog(atoms, per_atom, marker, color=color, label=label)
        right.loglog(atoms, [r["extra_mb"] for r in results], marker, color=color)
    left.set(xlabel="atoms in bulk", ylabel="time per atom (µs)", title="energies and forces")
    right.set(xlabel="atoms in bulk", ylabel="extra memory (MB)", title="peak of the process")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
