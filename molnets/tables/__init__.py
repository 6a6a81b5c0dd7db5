"""The engine: networks whose filters depend on distance alone, read from tables, compiled.

model.py      SchNet on tables: energies, forces, virial
energy.py     its energy as torch sees it
training.py   a training step on tables
filters.py    tables made of the weights
weights.py    the weights as the loops take them
lists.py      edges as the loops take them, and the search for them
passes.py     the passes forward and back
gradients.py  from a loss to the weights
kernels.py    one convolution, differentiable any number of times
memory.py     where numbers lie, and whether they are the same
progress.py   a bar while loops are compiled

What is named here is all that other rooms use.
"""

from molnets.tables.model import SplineSchNet, tables_apply, tabulated
from molnets.tables.training import SplineForces

__all__ = ["SplineForces", "SplineSchNet", "tables_apply", "tabulated"]
