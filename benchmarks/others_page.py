"""What `benchmarks.others` measured, as a page."""

from __future__ import annotations

from typing import Any

from benchmarks.peers_page import table

LABELS = {
    "schnet": "SchNet †", "egnn": "EGNN †", "painn": "PaiNN †", "tensornet-tables": "TensorNet †",
    "dimenet": "DimeNet++ †", "mace": "MACE", "nequip": "NequIP", "tensornet": "TensorNet",
    "et": "ET", "visnet": "ViSNet",
}  # fmt: skip
# network: model; loss, weights of energy : forces; optimizer; source; what is not as there
RECIPES = {
    "mace": (
        "128x0e + 128x1o, 2 layers, l ≤ 3, correlation 3, r_c 5 Å",
        "1 : 100, in the last fifth 1000 : 100; energies per atom; eV",
        "Adam (amsgrad, decay 5e-7), 0.01; EMA 0.99; norm ≤ 10",
        "README of mace-torch 0.3.16, the rest by its command's defaults",
        "float32, which the README names as the faster choice; `E0s=\"average\"`",
    ),
    "nequip": (
        "32 features, l ≤ 1, 4 layers, both parities, ZBL, r_c 5 Å",
        "1 : 1; energies per atom; eV",
        "Adam, 0.01; EMA 0.999",
        "`configs/tutorial.yaml` of mir-group/nequip, commit 01f5ac1",
        "not compiled: that line of it is meant for GPUs",
    ),
    "tensornet": (
        "128 channels, 2 layers, O(3), r_c 4.5 Å",
        "0.5 · 0.01 : 0.5; kcal/mol",
        "AdamW, 0.001, 500 steps of warm-up; norm ≤ 40",
        "`examples/TensorNet-rMD17.yaml` of torchmd/torchmd-net, commit 09cec64",
        "`static_shapes` off: it pads lists for CUDA graphs",
    ),
    "et": (
        "128 channels, 8 heads, 6 layers, r_c 5 Å",
        "0.2 · 0.05 : 0.8; kcal/mol",
        "AdamW, 0.001, 1000 steps of warm-up",
        "`examples/ET-MD17.yaml` of torchmd/torchmd-net, commit 080cf22",
        "`vector_cutoff` is off by default, and the file does not name it",
    ),
    "visnet": (
        "PyG's defaults: 128 channels, 8 heads, 6 layers, lmax 1, r_c 5 Å",
        "0.05 · 0.05 : 0.95; kcal/mol",
        "AdamW, 0.0002, 1000 steps of warm-up",
        "`examples/ViSNet-rMD17.yml` of microsoft/AI2BMD, commit 497efaa",
        "that file's network is larger: 256 channels, 9 layers, lmax 2; PyG's search for the graph"
        " is replaced",
    ),
}  # fmt: skip
HEAD = ("", "parameters", "epochs", "force MAE, meV/Å", "energy MAE, meV", "1 ethanol, ms",
        "64 ethanols, ms", "rotation: energies", "forces", "jump at the cutoff, meV")  # fmt: skip


def _ms(row: dict[str, Any], count: int) -> str:
    if f"ms_{count}" not in row:
        return "–"
    value = _short(row[f"ms_{count}"])
    low, high = row.get(f"range_{count}", (0, 0))
    return f"{value} ({_short(low)} to {_short(high)})" if high else value


def _short(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _small(value: float, floor: float) -> str:
    if value < floor:
        return f"< {floor:.0e}"
    return f"{value:.0e}" if value < 0.01 else f"{value:.3g}"


def _epochs(epochs: float) -> str:
    return f"{epochs:.0f}" if epochs >= 100 else f"{epochs:.1f}".removesuffix(".0")


def result(name: str, row: dict[str, Any]) -> list[str]:
    """Return a network's line of the table of results."""
    errors = [f"{1000 * row[key]:.2f}" for key in ("force_mae", "energy_mae")]
    turned = [_small(row["rotation_energy"], 5e-12), _small(row["rotation_forces"], 0.0)]
    size = [f"{row['parameters']:,}", _epochs(row["epochs"])]
    jump = _small(1000 * row["jump"], 1e-8)
    return [LABELS[name], *size, *errors, _ms(row, 1), _ms(row, 64), *turned, jump]


def page(numbers: dict[str, Any]) -> str:
    """Return the page others.md."""
    networks = {name: row for name, row in numbers["networks"].items() if "force_mae" in row}
    order = [name for name in LABELS if name in networks]
    lines = ["# Heavier networks on the same ethanol", "",
             f"{numbers['date']}, {numbers['machine']}, one thread, torch {numbers['torch']}.",
             f"Each was trained for {numbers['minutes']} minutes of one core, seed 0, on the same",
             "970 frames; 30 others chose among its weights, 1000 others test it.", ""]  # fmt: skip
    lines += table(list(HEAD), [result(name, networks[name]) for name in order])
    lines += [CONDITIONS, "", "## What each was given", ""]
    head = ["", "network", "loss, energy : forces", "optimizer, peak rate", "from", "not as there"]
    lines += table(head, [[LABELS[name], *RECIPES[name]] for name in order if name in RECIPES])
    lines += [GIVEN, "", "## Versions", "", *versions(networks), "", "```", COMMANDS, "```", ""]
    late = [f"- {LABELS[name]}: {LATE[name]}" for name in RECIPES if name not in order]
    return "\n".join([*lines, "## Not run", "", *late, NOT_RUN]) + "\n"


def versions(networks: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that name what each network ran with."""
    lines = []
    for name, row in networks.items():
        if "versions" in row:
            parts = ", ".join(
                f"{package} {version}" for package, version in row["versions"].items()
            )
            steps = f"{row['steps']:,} steps of {row['batch_size']} frames"
            lines.append(f"- {LABELS[name]}: Python {row['python']}, {parts}; {steps}")
    return lines


CONDITIONS = """\
† Of this project. Their errors, times and epochs are those of [`networks.json`](networks.json),
measured by `python -m benchmarks.networks`: 28.5 minutes by the clock, on one thread; times are
those of tables for SchNet, PaiNN and TensorNet, of which PaiNN was trained without them. The
minutes of our TensorNet and of the others are of the processor (`time.process_time`), since other
work ran on the machine, and nothing was tuned for them. Their recipes foresee 1000 to 10,000
epochs: the table says what half an hour of one core makes of them, not how accurate these networks
can be. One seed each.

- Times: energies and forces of 1 and of 64 ethanols, float32, one thread: the median of seven
  rounds, and their range; the search for the graph is part of it. TensorNet and ET search it
  themselves; MACE, NequIP and ViSNet are given the pairs within the cutoff among all pairs of a
  molecule. None is compiled, and no ASE calculator stands between. The machine was not idle: its
  second core was partly in use.
- Rotation: trained weights, float64, 10 test frames, 30 random orthogonal matrices, 15 of either
  determinant: the largest deviation of an energy, divided by the standard deviation of the test
  energies, and of a force's component, divided by the root mean square of the test forces.
- Jump: trained weights, float64: one ethanol leaves another along x, and wherever a pair of atoms
  crosses the network's cutoff, what the forces do not explain of the energy's change over 2e-6 Å;
  the largest. No training frame holds such a pair: ethanol's longest distance is 4.41 Å.
- In float64 the learned weights are those of float32, and constants, such as Clebsch-Gordan
  coefficients, are computed anew; MACE with constants of float32 errs by 4e-8 under rotations.
- Energies carry their offset of −4,209 eV, in float64: of rotations nothing below 5e-12 can be
  seen, of jumps nothing below 1e-8 meV."""

GIVEN = """\
The rates are the peaks: after the warm-up each falls as a cosine that ends with the budget, where
the recipes wait for plateaus of the validation error. MACE's is at 0.001, the rate of
its second stage, when that stage begins. torchmd-net and ViSNet smooth the energy's loss by a
factor that multiplies its gradient; it is the second factor of their first weight. The training
energies' mean is taken off in float64 before anything is float32. Weights are float32 in training;
those that are kept are the best of 20 validations, by the force error, and of MACE's second stage
by its loss, as its command does; the validations count as training time. A first call, before the
clock starts, compiles Warp's kernels. glibc is asked to keep freed memory, as our trainer asks.

ViSNet's jump has one cause: in PyG's `ViS_MP.message` a layer with a bias, `s_proj`, follows the
cutoff, so that what goes into a neighbour's vectors does not fade. With these biases set to zero,
in the trained network, the jump is 3e-12 meV. ET's is known to its authors: without
`vector_cutoff`, off by default, what its messages send between vectors does not fade at the cutoff
(torchmd-net's issue 254, and pull request 260, which added the option).

PyG's `Distance` makes float32 lengths whatever the dtype; what replaces it keeps the dtype, and
needs neither pyg-lib nor torch_cluster."""

COMMANDS = """\
python3 -m venv .venv/mace && .venv/mace/bin/pip install -r benchmarks/mace.txt
python3 -m venv .venv/nequip && .venv/nequip/bin/pip install -r benchmarks/nequip.txt
python3 -m venv .venv/torchmd && .venv/torchmd/bin/pip install -r benchmarks/torchmd.txt
python3 -m venv .venv/visnet && .venv/visnet/bin/pip install -r benchmarks/visnet.txt
OMP_NUM_THREADS=1 python -m benchmarks.others train --runs runs
OMP_NUM_THREADS=1 python -m benchmarks.others measure --runs runs
OMP_NUM_THREADS=1 python -m benchmarks.others speed --runs runs"""

LATE = dict.fromkeys(RECIPES, "its training had not ended by this date.")
NOT_RUN = """\
- SphereNet: its code is part of DIG (divelab/DIG, `dig/threedgraph/method/spherenet`), not of PyG,
  and imports torch_scatter and torch_sparse, which are compiled against one version of torch. It
  was not installed.
- Tensor field networks: the authors' repository (tensorfieldnetworks/tensorfieldnetworks) holds
  layers and examples of shapes, gravity, moments of inertia and missing points, none that learns
  energies and forces, and refers to e3nn for more. NequIP above is built of such layers."""
