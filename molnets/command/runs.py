"""Folders of runs: what an earlier training has left there."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

CHECKPOINTS = ("last.pt", "best.pt")
RESULTS = (*CHECKPOINTS, "history.csv", "metrics.json", "energy_parity.svg", "force_parity.svg",
           "learning_curve.svg")  # fmt: skip


def folders_of(out: Path, seed: int, seeds: int) -> list[Path]:
    """Return a folder for each run: one in another for those of a committee."""
    return [out] if seeds == 1 else [out / f"seed-{seed + n}" for n in range(seeds)]


def expect_folders(folders: list[Path], options: Namespace) -> list[Path]:
    """Expect folders without a run, unless the options say what to do with it.

    Args:
        folders: of the runs to come.
        options: the command's.

    Returns:
        Folders with earlier results, which are to be cleared; none where runs go on.

    Raises:
        FileExistsError: for a run that would be written over, or one that is none of those that
            are to go on: a committee in the folder of a single run, or the other way round.
        FileNotFoundError: if nothing is there that could go on.
    """
    places = [options.out, *sorted(options.out.glob("seed-*"))]
    runs = [x for x in places if any((x / name).exists() for name in CHECKPOINTS)]
    if runs and not (options.resume or options.overwrite):
        expected = "a new folder, --resume to go on or --overwrite to begin anew"
        raise FileExistsError(f"out: expected {expected}, got {runs[0]}, which holds a run")
    others = [x for x in runs if x not in folders]
    if others and options.resume:
        expected = f"runs in {', '.join(map(str, folders))} alone to go on with"
        raise FileExistsError(f"out: expected {expected}, got one in {others[0]}")
    if options.resume and not any((folder / "last.pt").exists() for folder in folders):
        got = f"{options.out}, where no last.pt is"
        raise FileNotFoundError(f"out: expected the folder of a run to go on with, got {got}")
    return [] if options.resume else [x for x in places if any((x / n).exists() for n in RESULTS)]


def clear(earlier: Iterable[Path], next_one: Path) -> None:
    """Remove what earlier runs have left, and their folders where nothing else is in them.

    Args:
        earlier: folders with results.
        next_one: the folder of the next run, which stays.
    """
    for folder in earlier:
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        if folder != next_one and not any(folder.iterdir()):
            folder.rmdir()
