"""Files that are there whole, or as they were before."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = re.compile(r"\.molnets-([0-9]{1,9})-.+")  # written by a process of that number


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside `path`, and then rename it.

    Raises:
        OSError: if it cannot be written, on a full disk, say; what was there is as before.
    """
    unfinished = path.with_name(f".molnets-{os.getpid()}-{path.name}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
        raise OSError(f"{path} cannot be written, what was there is kept: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder that no other process of this machine writes to in this way.

    Raises:
        FileExistsError: if there is one, which runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f".{os.getpid()}-runs"
    own.touch()
    try:
        for path in folder.glob(".*-runs"):
            pid = path.name[1:].partition("-")[0]
            if path != own and pid.isdigit() and _runs(int(pid)):
                got = f"{folder}, which process {pid} writes to"
                raise FileExistsError(f"out: expected a folder of its own, got {got}")
        yield
    finally:
        own.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that are no more have left unfinished in a folder."""
    for path in folder.iterdir():
        name = UNFINISHED.fullmatch(path.name)
        if name and path.is_file() and not _runs(int(name[1])):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":  # there it would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write values as JSON, whole or not at all."""
    text = json.dumps(values, indent=2) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text))


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows of the same names as CSV, whole or not at all."""

    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)
