"""What `benchmarks.minutes` measured, as a page; `minutes_figure` draws it.

Rows:   {"case", "minutes" or 0 for kernels, "seed", "frames", "force_mae", "energy_mae", …}, in eV
        and Å; "data", where it is not ethanol. "machines" lists those that ran them, the first
        first. Those of `others.json`, 28.5 minutes, are told by
        `earlier`.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from benchmarks.minutes_data import SOURCES
from benchmarks.minutes_text import (
    AHEAD,
    COMMANDS,
    CURVES,
    GIVEN_UP,
    INTRO,
    MACHINES,
    NO_SEEDS,
    NOTES,
    PUBLISHED,
    SILICON,
)
from benchmarks.peers_page import table
from molnets.checks import expect

ALL_FRAMES = SOURCES["ethanol"].frames
KEY = ("data", "case", "minutes", "seed", "frames")
Row = dict[str, Any]


class Case(NamedTuple):
    """What is trained: its label, whose it is, the network's name, the engine, and its line."""

    label: str
    kind: str  # "ours", "theirs" or "kernel"
    network: str
    engine: str = ""
    style: tuple[str, str] = ("o-", "#000000")


CASES = {
    "painn": Case("PaiNN, tables †", "ours", "painn", "spline", ("d-", "#cc79a7")),
    "schnet": Case("SchNet, tables †", "ours", "schnet", "spline", ("s-", "#0072b2")),
    "painn-plain": Case("PaiNN, plain †", "ours", "painn", "plain", ("d:", "#cc79a7")),
    "schnet-plain": Case("SchNet, plain †", "ours", "schnet", "plain", ("s:", "#0072b2")),
    "egnn": Case("EGNN †", "ours", "egnn", "plain", ("v:", "#56b4e9")),
    "dimenet": Case("DimeNet++ †", "ours", "dimenet", "plain", ("^:", "#777777")),
    "tensornet-tables": Case(
        "TensorNet, tables †", "ours", "tensornet", "spline", ("o-", "#d55e00")
    ),
    "tensornet": Case("TensorNet (torchmd-net)", "theirs", "tensornet", "", ("o--", "#d55e00")),
    "nequip": Case("NequIP", "theirs", "nequip", "", ("P--", "#009e73")),
    "mace": Case("MACE", "theirs", "mace", "", ("X--", "#e69f00")),
    "mace-small": Case("MACE, invariant", "theirs", "mace-small", "", ("x--", "#e69f00")),
    "schnetpack-painn": Case(
        "PaiNN (SchNetPack)", "theirs", "schnetpack-painn", "", ("d--", "#882255")
    ),
    "sgdml": Case("sGDML", "kernel", "sgdml", "", ("*-.", "#000000")),
    "fchl19": Case("FCHL19", "kernel", "fchl19", "", ("h-.", "#a0522d")),
}
DATA_OF_CASES = {  # beside those of ethanol alone
    case: ("ethanol", "silicon") for case, what in CASES.items() if what.kind != "kernel"
}
SIZES = {1: "1 ethanol, ms", 64: "64, ms"}
SIZES_OF_SILICON = {64: "64 atoms, ms", 512: "512, ms"}
EARLIER = {  # which of ours `others.json` trained: with settings from before the recipes
    "schnet": "schnet", "painn": "painn-plain", "egnn": "egnn", "dimenet": "dimenet",
    "tensornet": "tensornet", "nequip": "nequip", "mace": "mace",
}  # fmt: skip


def data_name(row: Row) -> str:
    """Return the data that a row is of: ethanol where it does not say."""
    return row.get("data", "ethanol")


def training_of(row: Row) -> tuple:
    """Return what a training is known by."""
    return tuple({"data": data_name(row), **row}[name] for name in KEY)


def by_machine(numbers: Row) -> dict[str, list[Row]]:
    """Return the rows of each machine, in the order in which the machines came."""
    rows, machines = numbers["rows"], numbers["machines"]
    unknown = {row["machine"] for row in rows} - {*machines}
    expect(not unknown, "rows", f"those of {machines}", sorted(unknown))
    found = {name: [x for x in rows if x["machine"] == name] for name in machines}
    return {name: own for name, own in found.items() if own}


def once(numbers: Row) -> Row:
    """Return the numbers with a row for each training: of the first machine that ran it.

    What comes of other machines than the first says so: "elsewhere".
    """
    found: dict[tuple, Row] = {}
    machines = by_machine(numbers)
    for place, rows in enumerate(machines.values()):
        for row in rows:
            found.setdefault(training_of(row), row | {"elsewhere": place > 0})
    first = next(iter(machines), "")
    speeds = {key: {case: ms | {"elsewhere": ms.get("machine", first) != first}
                    for case, ms in numbers[key].items()}
              for key in ("speed", "speed_silicon") if key in numbers}  # fmt: skip
    return numbers | {"rows": list(found.values())} | speeds


def rows_of(numbers: Row, earlier: Row) -> list[Row]:
    """Return the rows of all frames, those of `others.json` among them, and all of kernels."""
    rows = [row for row in numbers["rows"] if data_name(row) == "ethanol"
            and (row["frames"] == ALL_FRAMES or not row["minutes"])]  # fmt: skip
    for name, case in EARLIER.items():
        row = earlier["networks"].get(name)
        here = any(r["case"] == case and r["minutes"] == earlier["minutes"] for r in rows)
        if row and "force_mae" in row and not here:
            rows.append({**row, "case": case, "minutes": earlier["minutes"], "seed": 0,
                         "frames": ALL_FRAMES, "earlier": bool(row.get("ours"))})  # fmt: skip
    return rows


def minutes_of(row: Row) -> float:
    """Return the minutes of the processor that a training took."""
    return row["minutes"] or row["processor_seconds"] / 60


def mean(rows: list[Row], name: str) -> float:
    """Return the mean of an error over seeds, in meV or meV/Å."""
    return 1000 * statistics.mean(row[name] for row in rows)


def said(rows: list[Row], name: str) -> str:
    """Return an error over seeds: its mean, and the least and largest where there are several."""
    if not rows:
        return "–"
    text, mark = f"{mean(rows, name):.2f}", " *" if rows[0].get("earlier") else ""
    mark += " ‡" if any(row.get("elsewhere") for row in rows) else ""
    if len(rows) > 1:
        low, high = (1000 * pick(row[name] for row in rows) for pick in (min, max))
        text += f" ({low:.2f} to {high:.2f}; {len(rows)} seeds)"
    return text + mark


def budgets_of(rows: list[Row]) -> list[float]:
    """Return the budgets of the networks in minutes, the least first."""
    return sorted({row["minutes"] for row in rows if row["minutes"]})


def error_table(rows: list[Row], name: str, unit: str) -> list[str]:
    """Return the table of an error: a line each network, a column each budget."""
    budgets = budgets_of(rows)
    lines = []
    for case, what in CASES.items():
        own = [row for row in rows if row["case"] == case and row["minutes"]]
        if own:
            cells = [said([r for r in own if r["minutes"] == x], name) for x in budgets]
            lines.append([what.label, *cells])
    return table([unit, *(f"{x:g} min" for x in budgets)], lines)


def kernel_table(rows: list[Row]) -> list[str]:
    """Return the table of the kernel models, a line each number of frames."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["case"], row["num_train"])):
        lines.append([
            CASES[row["case"]].label, str(row["num_train"]), f"{minutes_of(row):.2f}",
            f"{row['choosing_seconds'] / 60:.2f}", f"{row['width']:g}",
            *(f"{1000 * row[name]:.2f}" for name in ("force_mae", "energy_mae")),
            *(short(row[f"ms_{count}"]) for count in (1, 64)),
        ])  # fmt: skip
    head = ["", "training frames", "processor, min", "to choose the width", "width",
            "force MAE, meV/Å", "energy MAE, meV", "1 ethanol, ms", "64, ms"]  # fmt: skip
    return table(head, lines) if lines else []


def best_within(
    rows: list[Row], minutes: float, name: str = "force_mae"
) -> list[tuple[float, str]]:
    """Return errors and labels of what a budget buys, the best first.

    A network counts with its training of just this budget, a kernel with its best that took no
    longer.
    """
    found = []
    for case, what in CASES.items():
        own = [row for row in rows if row["case"] == case]
        if what.kind == "kernel":
            done = [row[name] for row in own if minutes_of(row) <= minutes]
            found += [(1000 * min(done), what.label)] if done else []
        else:
            own = [row for row in own if row["minutes"] == minutes]
            found += [(mean(own, name), what.label)] if own else []
    return sorted(found)


def who_leads(rows: list[Row], name: str = "force_mae") -> list[str]:
    """Return the lines that say who is ahead at each budget, by an error."""
    lines = []
    for minutes in budgets_of(rows):
        order = [f"{label} {error:.1f}" for error, label in best_within(rows, minutes, name)]
        if len(order) > 1:
            time = f"{minutes:g} minute" + "s" * (minutes != 1)
            lines.append(f"- {time}: **{order[0]}**, then {', '.join(order[1:])}.")
    return [*lines, ""]


def short(x: float) -> str:
    """Return three digits of a number."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def size_table(
    rows: list[Row], speed: Row, earlier: Row, sizes: dict[int, str] = SIZES
) -> list[str]:
    """Return the table of sizes, times and epochs of the networks."""
    lines = []
    for case, what in CASES.items():
        own = [row for row in rows if row["case"] == case and row["minutes"]]
        if not own:
            continue
        known = [row for row in own if not row.get("earlier")] or own
        mark, ms = " *", earlier["networks"].get(what.network, {}) if what.kind == "theirs" else {}
        if case in speed:
            mark, ms = " ‡" if speed[case].get("elsewhere") else "", speed[case]
        epochs = {row["minutes"]: row["epochs"] for row in own if row["seed"] == 0}
        lines.append([
            what.label, f"{known[0]['parameters']:,}", f"{known[0]['cutoff']:g}",
            ", ".join(f"{short(n)} in {x:g} min" for x, n in sorted(epochs.items())),
            *(f"{short(ms[f'ms_{n}'])}{mark}" if f"ms_{n}" in ms else "–" for n in sizes),
        ])  # fmt: skip
    return table(["", "parameters", "cutoff, Å", "epochs, seed 0", *sizes.values()], lines)


def settings_lines(rows: list[Row]) -> list[str]:
    """Return what each network was given, and with which versions."""
    lines = []
    for case, what in CASES.items():
        own = [row for row in rows if row["case"] == case and "versions" in row]
        if not own:
            continue
        changed = own[0].get("changed", {})
        given = [f"{name} {x}" for name, x in changed.items() if name != "seed"]
        versions = ", ".join(f"{name} {x}" for name, x in own[0]["versions"].items())
        text = "; ".join([*given, own[0].get("source", ""), versions]).replace("; ;", ";")
        lines.append(f"- {what.label}: {text}")
    return [line.replace("; ; ", "; ") for line in lines] + [""]


def curve_rows(numbers: Row) -> dict[tuple[str, float], dict[int, list[Row]]]:
    """Return the rows of learning curves: by network and budget, then by frames."""
    curves: dict[tuple[str, float], dict[int, list[Row]]] = {}
    rows = [row for row in numbers["rows"] if data_name(row) == "ethanol"]
    short_of = {(r["case"], r["minutes"]) for r in rows
                if r["frames"] < ALL_FRAMES and r["minutes"]}  # fmt: skip
    for row in rows:
        if (row["case"], row["minutes"]) in short_of:
            curve = curves.setdefault((row["case"], row["minutes"]), {})
            curve.setdefault(row["frames"], []).append(row)
    return curves


def curve_table(numbers: Row) -> list[str]:
    """Return the table of learning curves: force errors, a column each number of frames."""
    curves = curve_rows(numbers)
    if not curves:
        return ["Of networks none was measured; the kernels' table above holds theirs.", ""]
    frames = sorted({n for curve in curves.values() for n in curve})
    lines = []
    for (case, minutes), curve in curves.items():
        for name, unit in (("force_mae", "forces, meV/Å"), ("energy_mae", "energies, meV")):
            cells = [said(curve.get(n, []), name) for n in frames]
            lines.append([f"{CASES[case].label} {minutes:g} min: {unit}", *cells])
    return table(["", *(f"{n} frames" for n in frames)], lines) + CURVES


def silicon_rows(numbers: Row) -> list[Row]:
    """Return the rows of all frames of silicon."""
    return [row for row in numbers["rows"] if data_name(row) == "silicon"
            and row["frames"] == SOURCES["silicon"].frames]  # fmt: skip


def silicon_section(numbers: Row) -> list[str]:
    """Return the page's section on silicon; nothing where nothing was measured."""
    rows = silicon_rows(numbers)
    if not rows:
        return []
    tables = {"force_mae": "force MAE, meV/Å", "force_rmse": "force RMSE, meV/Å",
              "energy_per_atom_mae": "energy MAE, meV for each atom",
              "energy_per_atom_rmse": "energy RMSE, meV for each atom"}  # fmt: skip
    return [
        *SILICON,
        *(line for name, unit in tables.items() for line in error_table(rows, name, unit)),
        *(line for name, unit in tables.items() if name != "energy_per_atom_rmse"
          for line in (f"By the {unit}:", "", *who_leads(rows, name))),
        *size_table(rows, numbers.get("speed_silicon", {}), {"networks": {}}, SIZES_OF_SILICON),
        *settings_lines(rows),
    ]  # fmt: skip


def machines_section(numbers: Row) -> list[str]:
    """Return which machines ran the trainings, and what those say that several of them ran."""
    lines = []
    for place, (name, own) in enumerate(by_machine(numbers).items()):
        dates = ", ".join(sorted({row["date"] for row in own}))
        lines.append(f"{'‡ ' if place else ''}{name}, {dates}.")
    shown, pairs = {training_of(row): row for row in once(numbers)["rows"]}, []
    for other in numbers["rows"]:
        one = shown[training_of(other)]
        if one["minutes"] and one["machine"] != other["machine"]:
            pairs.append([
                f"{CASES[one['case']].label}, {data_name(one)}, {one['minutes']:g} min",
                short(one["epochs"]), short(other["epochs"]),
                f"{other['epochs'] / one['epochs']:.2f}",
                *(f"{1000 * row['force_mae']:.2f}" for row in (one, other)),
            ])  # fmt: skip
    head = ["the same training on both", "epochs", "‡", "ratio", "force MAE, meV/Å", "‡"]
    return [*lines, "", *([*table(head, pairs), *MACHINES] if pairs else [])]


def not_measured(numbers: Row, earlier: Row) -> list[str]:
    """Return the lines that say what there was no time for."""
    rows, lines = rows_of(numbers, earlier), []
    if not silicon_rows(numbers):
        lines.append("- bulk silicon;")
    if not curve_rows(numbers):
        lines.append("- learning curves of networks; those of the kernels stand in their table;")
    networks = {case: what.label for case, what in CASES.items() if what.kind != "kernel"}
    known = {row["case"] for row in rows}
    short = {row["case"] for row in rows if row["minutes"] < earlier["minutes"]}
    never = [label for case, label in networks.items() if case not in known]
    long_only = [label for case, label in networks.items() if case in known - short]
    if never:
        lines.append(f"- {', '.join(never)};")
    if long_only:
        lines.append(f"- with less than {earlier['minutes']:g} minutes: {', '.join(long_only)};")
    silicon = silicon_rows(numbers)
    if silicon and all(row["minutes"] < earlier["minutes"] for row in silicon):
        lines.append(f"- silicon with {earlier['minutes']:g} minutes;")
    on_silicon = {row["case"] for row in silicon}
    missing = [label for case, label in networks.items() if case not in on_silicon]
    if silicon and missing:
        lines.append(f"- on silicon: {', '.join(missing)};")
    return ["There was no time left for:", "", *lines, *NO_SEEDS, "", *GIVEN_UP]


def page(numbers: Row, earlier: Row) -> str:
    """Return the page minutes.md, of whatever was measured."""
    every, numbers = numbers, once(numbers)
    rows = rows_of(numbers, earlier)
    kernels = [row for row in rows if CASES[row["case"]].kind == "kernel"]
    lines = [
        "# Error against minutes of one core", "", *machines_section(every), *INTRO, "",
        "![Force errors against minutes](minutes.svg)", "",
        *error_table(rows, "force_mae", "force MAE, meV/Å"),
        *error_table(rows, "energy_mae", "energy MAE, meV"), *kernel_table(kernels),
        "## Who is ahead", "", *AHEAD,
        *who_leads(rows), "## Size and speed", "",
        *size_table(rows, numbers["speed"], earlier), *NOTES, "", "## Learning curves", "",
        *curve_table(numbers), *PUBLISHED, "", "## What each was given", "",
        *settings_lines(rows), *silicon_section(numbers),
        "## Not measured", "", *not_measured(numbers, earlier), "", *COMMANDS,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
