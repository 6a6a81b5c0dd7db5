"""Files that are there whole, or as they were before."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

LOCK = ".molnets-lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of some file systems in a network
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


def make_folder(path: Path) -> list[Path]:
    """Make a folder, and those that it is in; return the new ones, inmost first.

    Raises:
        ValueError: if a file, or a link to nothing, is where there should be a folder.
        OSError: if the system refuses, of the same kind.
    """
    there = next(x for x in (path, *path.absolute().parents) if os.path.lexists(x))
    if not there.is_dir():
        kind = "a file" if there.exists() else f"a link to {os.readlink(there)}, where nothing is"
        got = f"{path}, which is {kind}" if there == path else f"{path}; {there} is {kind}"
        raise ValueError(f"out: expected a folder, got {got}")
    try:
        new = [x for x in (path, *path.parents) if not x.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        expected = "a folder that is there or can be made"
        raise type(error)(f"out: expected {expected}, got {path}: {error.strerror}") from error
    return new


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder that no other process writes to in this way; leave none that is new and empty.

    A locked file stands for this: the lock ends with its process, however that ends.

    Raises:
        FileExistsError: if another process writes there; the message names the file.
        ValueError, OSError: as `make_folder`, or where no file can be made.
    """
    new, lock = make_folder(folder), FileLock(folder / LOCK)
    try:
        _acquire(lock, folder)
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # on Windows, which removes no file that is open
                (folder / LOCK).unlink()
            lock.release()
        with suppress(OSError):  # of one that is not empty
            for place in new:
                place.rmdir()


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        got = f"{folder}, which another process writes to; if none runs, remove {lock.lock_file}"
        raise FileExistsError(f"out: expected a folder of its own, got {got}") from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            Path(lock.lock_file).unlink(missing_ok=True)
            warnings.warn(f"{folder}: no files can be locked here; let no other training write to "
                          "it", stacklevel=4)  # fmt: skip
            return
        got = f"{folder}: {error.strerror}"
        raise type(error)(f"out: expected a folder that one can write to, got {got}") from error


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
