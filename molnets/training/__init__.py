"""Training on energies and forces.

data.py      frames, their edges, and how they are split
duplicates.py  frames that are there twice
signatures.py  by what frames are known again
reading.py   frames from files
atoms.py     the same from files that ASE reads
labels.py    energies, forces and virials in their units, and notes on them
source.py    how files are to be read: keys and units
consistency.py  whether energies and forces belong together
doubtful.py  frames whose labels no network fits
errors.py    the loss, and errors over all and by element
engines.py   what computes the loss of a step and its gradient
trainer.py   the loop, its settings, and its checkpoints
recipes.py   settings and sizes that a search has found, by the kind of data
"""

from molnets.training import recipes
from molnets.training.consistency import check_units
from molnets.training.data import Batch, Dataset, joined, split
from molnets.training.engines import ENGINES, PlainForces, PlainSteps, make_steps
from molnets.training.errors import (
    Errors,
    Evaluation,
    evaluate,
    factors_of,
    force_errors_by_element,
    loss_of,
)
from molnets.training.reading import load
from molnets.training.source import Source
from molnets.training.trainer import Settings, Trainer, standardized

__all__ = [
    "ENGINES",
    "Batch",
    "Dataset",
    "Errors",
    "Evaluation",
    "PlainForces",
    "PlainSteps",
    "Settings",
    "Source",
    "Trainer",
    "check_units",
    "evaluate",
    "factors_of",
    "force_errors_by_element",
    "joined",
    "load",
    "loss_of",
    "make_steps",
    "recipes",
    "split",
    "standardized",
]
