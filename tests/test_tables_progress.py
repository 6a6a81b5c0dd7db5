"""A bar counts the loops that are compiled, and none that come from the cache."""

from __future__ import annotations

import numba
import pytest

from molnets.tables import progress  # which registers it


class Bar:
    """What `tqdm` would be asked for."""

    def __init__(self, **options: object) -> None:
        self.options, self.count, self.closed = options, 0, False
        shown.append(self)

    def update(self) -> None:
        assert not self.closed
        self.count += 1

    def close(self) -> None:
        self.closed = True


shown: list[Bar] = []


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """Let the listener that the engine has registered make recording bars."""
    shown.clear()
    monkeypatch.setattr(progress, "tqdm", Bar)


def test_one_bar_counts_a_loop_and_those_that_it_calls():
    @numba.njit
    def inner(x):
        return x + 1

    @numba.njit
    def outer(x):
        return inner(x) * 2

    assert outer(3) == 8
    assert [(bar.count, bar.closed) for bar in shown] == [(2, True)]
    assert shown[0].options["disable"] is None  # nothing in files and notebooks
    assert shown[0].options["delay"] == progress.PATIENCE
    outer(4)  # nothing is compiled
    assert len(shown) == 1
    outer(3.5)
    assert len(shown) == 2 and shown[1].closed


def test_a_loop_that_does_not_compile_closes_the_bar():
    @numba.njit
    def broken(x):
        return x + "text"

    with pytest.raises(numba.TypingError):
        broken(1)
    assert [bar.closed for bar in shown] == [True]
