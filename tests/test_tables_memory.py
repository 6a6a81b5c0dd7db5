"""Room that is kept between calls, and weights that are compared bit by bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from networks import cluster, schnet

from molnets.potential import energy_and_forces
from molnets.tables import SplineSchNet, memory


def test_every_bit_of_the_weights_is_compared():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 9, n, dtype=np.int32) for n in (7, 1, 20_000, 16_384, 3)]
    begins = np.append(0, np.cumsum([len(x) for x in arrays]))
    addresses, seen = np.array([x.ctypes.data for x in arrays]), np.concatenate(arrays)
    assert memory.same_bits(addresses, begins, seen)
    for at in (*begins[:-1], *(begins[1:] - 1), 16_383, 16_384, 32_768):
        for bit in (0, 31):
            other = seen.copy()
            other[at] ^= np.int32(-(2**31) if bit else 1)
            assert not memory.same_bits(addresses, begins, other)


def test_room_is_kept_between_calls_of_any_size_and_not_shared_by_threads(monkeypatch):
    monkeypatch.setattr(memory, "ENOUGH_ROOM", 0)
    model = SplineSchNet(schnet())
    given = [cluster(n=n) for n in (7, 3, 12, 30)]
    expected = [energy_and_forces(SplineSchNet(schnet()), *call) for call in given]
    for call, (energy, forces) in zip(given * 2, expected * 2, strict=True):
        e, f = energy_and_forces(model, *call)
        assert torch.equal(e, energy) and torch.equal(f, forces)
    assert len(model._room[0]) > 0
    room = model._room[0].ctypes.data
    energy_and_forces(model, *given[0])
    assert model._room[0].ctypes.data == room
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda call: energy_and_forces(model, *call), given * 50))
    for (e, f), (energy, forces) in zip(results, expected * 50, strict=True):
        assert torch.equal(e, energy) and torch.equal(f, forces)
