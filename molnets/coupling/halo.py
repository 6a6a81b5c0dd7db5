"""Atoms of other processes: who has them, and the exchange of what they hold.

Axes:   N own atoms, U atoms of other processes that are asked for, P processes.
Rows:   matrices of N + U rows: own atoms first, then those of others, sorted by process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from molnets.checks import expect

if TYPE_CHECKING:
    from mpi4py.MPI import Comm


class Halo:
    """Which rows this process sends to which other one, and which it receives.

    Nobody has a list of all atoms. Process tag mod P is told who has the atom with this tag, and is
    asked by those who need it. All processes make one together.

    Args:
        comm: the communicator.
        tags: of own atoms, (N,).
        rows: the row of each of them, (N,).
        wanted: tags of others' atoms, each once, (U,).

    Attributes:
        place: the row, from 0, of what is received for each atom that is wanted, (U,).
        sent: bytes sent so far.

    Raises:
        ValueError: if nobody has an atom that is wanted.
    """

    def __init__(self, comm: Comm, tags: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> None:
        self.comm, self.num_own, self.sent = comm, len(tags), 0
        owner, row = self._ask(tags, rows, wanted)
        order = np.argsort(owner, kind="stable")
        self.place = np.empty(len(wanted), dtype=np.int64)
        self.place[order] = np.arange(len(wanted))
        counts = np.bincount(owner, minlength=comm.size)
        ends = counts.cumsum()
        asked = comm.alltoall(np.split(row[order], ends[:-1]))
        self._gives = [(p, rows) for p, rows in enumerate(asked) if len(rows)]
        self._takes = [
            (p, slice(int(ends[p] - counts[p]), int(ends[p]))) for p in counts.nonzero()[0]
        ]

    def _ask(
        self, tags: np.ndarray, rows: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the process and the row of each atom that is wanted."""
        told = _to_each(self.comm, tags, np.stack([tags, rows], axis=1))
        known = np.concatenate(told)
        owner = np.repeat(np.arange(self.comm.size), [len(part) for part in told])
        order = np.argsort(known[:, 0], kind="stable")
        known, owner = known[order], owner[order]
        answers = []
        for question in _to_each(self.comm, wanted, wanted):
            at = np.searchsorted(known[:, 0], question)
            found = (at < len(known)) & (known[np.minimum(at, len(known) - 1), 0] == question)
            expect(found.all(), "wanted", "atoms that a process has", question[~found].tolist())
            answers.append(np.stack([owner[at], known[at, 1]], axis=1))
        answers = np.concatenate(self.comm.alltoall(answers))
        back = np.empty_like(answers)
        back[np.argsort(wanted % self.comm.size, kind="stable")] = answers
        return back[:, 0], back[:, 1]

    @property
    def is_empty(self) -> bool:
        """Whether this process neither sends nor receives."""
        return not self._gives and not self._takes

    def fetch(self, rows: np.ndarray) -> None:
        """Fill rows N to N + U with what the others have."""
        target = rows[self.num_own :]
        direct = target.flags.c_contiguous
        received = target if direct else np.empty(target.shape, dtype=rows.dtype)
        pending = [self.comm.Irecv(received[at], p) for p, at in self._takes]
        buffers = [(p, rows[own]) for p, own in self._gives]
        pending += [self._send(buffer, p) for p, buffer in buffers]
        for request in pending:
            request.Wait()
        if not direct:
            target[:] = received

    def give_back(self, rows: np.ndarray) -> None:
        """Add rows N to N + U to those of the processes whose atoms they belong to."""
        buffers = [np.empty((len(own), rows.shape[1]), dtype=rows.dtype) for _, own in self._gives]
        pending = [self.comm.Irecv(buffer, p)
                   for (p, _), buffer in zip(self._gives, buffers, strict=True)]  # fmt: skip
        others = np.ascontiguousarray(rows[self.num_own :])
        pending += [self._send(others[at], p) for p, at in self._takes]
        for request in pending:
            request.Wait()
        for (_, own), buffer in zip(self._gives, buffers, strict=True):
            rows[own] += buffer  # a process asks for an atom once

    def _send(self, buffer: np.ndarray, process: int) -> object:
        self.sent += buffer.nbytes
        return self.comm.Isend(buffer, process)


def _to_each(comm: Comm, tags: np.ndarray, what: np.ndarray) -> list[np.ndarray]:
    """Send what belongs to each tag to process tag mod P; return what comes from each."""
    home = tags % comm.size
    order = np.argsort(home, kind="stable")
    ends = np.bincount(home, minlength=comm.size).cumsum()[:-1]
    return comm.alltoall(np.split(what[order], ends))
