"""What the page of `benchmarks.minutes` says besides its numbers."""

from __future__ import annotations

from benchmarks.peers_page import table

INTRO = [
    "Revised MD17's ethanol: 970 training frames, 30 others that choose weights or a kernel's",
    "width, 1000 test frames that neither saw; the same for all networks, the first of them for",
    "kernels of fewer frames. Minutes are those of the processor, of one core, validation",
    "included and the test not. The learning rates end with each budget, so every point is a",
    "training of its own. Bars and brackets span the least and the largest of several seeds,",
    "which decide weights and order; else it is one seed.",
    "",
    "The others' recipes foresee hours on a GPU: this page says what minutes of one core make of",
    "them, not how accurate they can be. The 500 steps of warm-up of torchmd-net's TensorNet are",
    "near half of its three minutes.",
    "",
    "† Of this project; on tables means that filters are read from splines, in C++; plain is",
    "torch. SchNet, PaiNN and TensorNet have the recipe `molecule` of `molnets train`",
    "([`recipes.md`](recipes.md)). \\* and open marks: trained earlier for",
    "[`others.md`](others.md), by the clock and not by the processor's time, with settings from",
    "before the recipes; PaiNN's was compiled by torch. TensorNet's rows of 10 and 28.5 minutes,",
    "SchNet's first of 10, and seed 0 at 3 minutes were trained when weights a hair better than",
    "their average on those 30 frames were still kept in its place; their errors are those of the",
    "average at the end.",
]
MACHINES = [
    "Other work ran on both. Networks on the engine of this project did about as many epochs with",
    "‡ as without; two of those in torch a fifth and a third fewer: ten minutes of theirs with ‡",
    "may be seven or eight of the first machine. Where two lie closer than that, their order is",
    "open.",
    "",
]
NOTES = [
    "Times are of energies and forces in float32, one thread: ours and the kernels' (float64) of",
    "the processor, medians; \\* those of `others.md`, by the clock. The search for the graph is",
    "part of them. The number of a kernel's coefficients is 27 a training frame for sGDML, 28 for",
    "FCHL19, and its time grows with them: the times in its table are of that many frames.",
]
_PUBLISHED = [
    ("SchNet (NeurIPS 2017, MD17)", "3.5 / 16.9"), ("PaiNN (ICML 2021, MD17)", "2.8 / 9.7"),
    ("DimeNet (ICLR 2020, MD17)", "2.8 / 10.0"), ("FCHL19", "0.9 / 6.2"),
    ("NequIP", "0.4 / 2.8"), ("Allegro", "0.4 / 2.1"), ("MACE", "0.4 / 2.1"),
    ("TensorNet", "0.5 / 3.5"),
]  # fmt: skip
CURVES = [
    "As many frames as said, those that choose the weights among them: a tenth, at most 30. The",
    "seed decides which, too. The budget is the same for all numbers of frames.",
    "",
]
AHEAD = [
    "Force MAE in meV/Å, the mean where there are several seeds; a kernel's is the best that was",
    "trained within the time, with however many frames:",
    "",
]
PUBLISHED = [
    "SchNet's of an earlier time, two minutes by the clock each, three seeds, 50 to 1000 frames:",
    "`trainings.json`, shown in `schnet_md.ipynb`.",
    "",
    "Published, for 1000 training frames of ethanol and trainings without such a limit of time:",
    "",
    *table(["", "energy, meV / forces, meV/Å"], [list(row) for row in _PUBLISHED]),
    "Not read again for this page. FCHL19, NequIP, Allegro and MACE as the paper on MACE lists",
    "them for the revised MD17 (arXiv:2206.07697), TensorNet as its own does (2306.06482). SchNet,",
    "PaiNN and DimeNet of their own papers (arXiv:1706.08566, 0.08 kcal/mol and 0.39 kcal/mol/Å;",
    "2102.03150, 0.064 and 0.224; 2003.03123, 0.064 and 0.230), for the older MD17, whose labels",
    "hold more noise: no measure for differences of a tenth. The paper on MACE has these networks",
    "with 50 frames, too: NequIP 8.7 meV and 40.2 meV/Å, MACE 6.7 and 32.6. For 100 to 500 frames",
    "of this file none was found.",
]
NO_SEEDS = [
    "- cells with a dash, and learning curves of 100 and 500 frames;",
    "- three seeds of everything: where no range is given, it is one seed.",
]
GIVEN_UP = [
    "sGDML with 970 frames was begun and given up: its exact solver asks for 15.3 GB, on a machine",
    "of 24 GB that others used.",
]
SILICON = [
    "## Silicon", "",
    "The mlearn data set's silicon (Zuo et al., J. Phys. Chem. A 124, 731, 2020): bulk, strained,",
    "with vacancies and surfaces, 12 to 96 atoms a frame, all periodic. 200 training frames, 14",
    "others of the file's 214 that choose weights, and its 25 test frames. Energies are those of",
    "an atom: an error is divided by its frame's number of atoms first. SchNet, PaiNN and",
    "TensorNet have the recipe `bulk` of `molnets train`; EGNN's and DimeNet++'s settings were not",
    "searched. Every network, ours and theirs, sees 2 frames a step, and its edges are found once;",
    "the others' recipes, which are else those for ethanol, say 5 to 10 frames, which would be ten",
    "steps of MACE in three minutes. Energies of theirs are scaled by their spread for an atom.",
    "",
    "Networks on tables have learned in three minutes what 200 frames say: after ten or more they",
    "are no better, their errors in training fall alone, and the weights that are kept are of an",
    "early epoch ([`recipes.md`](recipes.md)). The others still gain, and after 28.5 minutes",
    "invariant MACE and torchmd-net's TensorNet are about level: who leads hangs on the measure.",
    "MACE's second stage gives up forces for energies. Its rows of 28.5 minutes are of that stage;",
    "those of 3 and 10 were measured when weights of before were kept if their forces were better,",
    "so that their energies are worse than MACE's can be, and their forces a little better (kept",
    "in that way, the 28.5 minutes of invariant MACE gave 64.1 meV/Å and 48.9 meV for each atom).",
    "",
    "Elsewhere, on the same 214 and 25 frames, mean absolute errors of the test: PyXtal_FF's best",
    "network of descriptors (`so3-NN`) 3.95 meV an atom and 82.6 meV/Å after 4000 epochs, which",
    "took 1.4 hours of processors (MaterSim/PyXtal_FF, `examples/UCSD-Si-214-25/README.md`).", "",
]  # fmt: skip
COMMANDS = [
    "## Commands", "", "```",
    "python3 -m venv .venv/kernels && .venv/kernels/bin/pip install -r benchmarks/kernels.txt",
    "OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --minutes 3 --seed 1 --runs runs",
    "OMP_NUM_THREADS=1 python -m benchmarks.minutes train mace --minutes 3 --runs runs",
    "OMP_NUM_THREADS=1 python -m benchmarks.minutes train fchl19 --frames 430 --runs runs",
    "OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --data silicon --runs runs",
    "OMP_NUM_THREADS=1 python -m benchmarks.minutes speed painn --runs runs",
    "python -m benchmarks.minutes page", "```", "",
    "The other environments are made as `others.md` says, SchNetPack's as the head of `minutes.py`",
    "does. `OPENBLAS_NUM_THREADS=1` keeps the kernels on one core.",
]  # fmt: skip
