"""Every check lets good input pass as it is, and names the argument, the expected, what came."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import schnet_helpers
from molnets import checks
from molnets.checks import (
    FLATTEST,
    as_array,
    as_cells,
    as_pbc,
    expect,
    expect_cells,
    expect_like,
    expect_masses,
    expect_not_negative,
    expect_positions,
    expect_positive,
    expect_replicas,
    expect_size,
    expect_tensor,
)

POS = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
EYE = torch.eye(3).unsqueeze(0)
ALL = torch.ones(1, 3, dtype=torch.bool)
BATCH = torch.tensor([0, 0])
META = torch.zeros(2, 3, device="meta")


def test_every_check_is_named_and_those_of_tensors_are_the_helpers_own():
    assert sorted(checks.__all__) == checks.__all__
    for name in checks.__all__:
        assert callable(getattr(checks, name))
    for name in ("expect", "expect_like", "expect_positions", "expect_positive", "expect_size",
                 "expect_tensor", "sample_sizes", "spread_atomic_numbers"):  # fmt: skip
        assert getattr(checks, name) is getattr(schnet_helpers, name)


def test_what_is_expected_passes():
    expect(True, "name", "anything", "this")
    expect(torch.tensor(True), "name", "anything", "this")
    expect_not_negative("skin", 0)
    expect_not_negative("skin", np.float32(1.5))
    expect_positive("cutoff", np.float64(1e-3))
    expect_size("n", np.int64(3))
    expect_tensor("x", POS)
    expect_positions(POS, BATCH)
    expect_like(torch.zeros(1), BATCH, POS)
    expect_masses(torch.tensor([1.0, 2.0]), 2)
    expect_replicas(torch.zeros(1, 1, 3))
    expect_cells(EYE, ALL, POS)
    expect_cells(EYE.clone().requires_grad_(), ALL, POS)
    expect_cells(0 * EYE, ~ALL, POS)
    expect_cells(torch.diag(torch.tensor([1.0, 0.0, 2 * FLATTEST]))[None],
                 torch.tensor([[True, False, True]]), POS)  # fmt: skip
    expect_cells(torch.diag(torch.tensor([1.0, 1.0, -1.0]))[None], ALL, POS)  # left-handed


WRONG = [
    (lambda: expect(False, "n", "1", 2), ValueError, "n: expected 1, got 2"),
    (lambda: expect(torch.tensor(False), "n", "1", 2, TypeError), TypeError, "n: expected 1, got"),
    (lambda: expect_not_negative("skin", -1e-9), ValueError, "skin: expected a finite number, not"),
    (lambda: expect_not_negative("skin", math.nan), ValueError, "skin: .* got nan"),
    (lambda: expect_not_negative("skin", math.inf), ValueError, "skin: .* got inf"),
    (lambda: expect_not_negative("skin", "1"), ValueError, "skin: .* got 1"),
    (lambda: expect_not_negative("skin", None), ValueError, "skin: .* got None"),
    (lambda: expect_masses(torch.ones(3), 2), ValueError, r"masses: expected shape \(2,\), got \("),
    (lambda: expect_masses(torch.tensor([1.0, 0.0]), 2), ValueError, "masses: expected positive"),
    (lambda: expect_masses(torch.tensor([1.0, math.nan]), 2), ValueError, "masses: expected posit"),
    (lambda: expect_masses(torch.tensor([1.0, math.inf]), 2), ValueError, r"masses: .*finite mass"),
    (lambda: expect_replicas(torch.zeros(2, 3)), ValueError, "positions: expected a floating"),
    (lambda: expect_replicas(torch.zeros(2, 3, 2)), ValueError, r"positions: .*got .*\(2, 3, 2\)"),
    (lambda: expect_replicas(torch.zeros(0, 3, 3)), ValueError, r"positions: .*got .*\(0, 3, 3\)"),
    (lambda: expect_replicas(torch.zeros(1, 1, 3).long()), ValueError, "positions: .*torch.int64"),
    (lambda: expect_cells(EYE * math.nan, ~ALL, POS), ValueError, "cells: expected finite numbers"),
    (
        lambda: expect_cells(EYE.double(), ALL, POS),
        TypeError,
        "cells: expected dtype torch.float32 as pos, got torch.float64",
    ),
    (lambda: expect_cells(0 * EYE, ALL, POS), ValueError, "cells: expected independent vectors"),
    (
        lambda: expect_cells(torch.diag(torch.tensor([1.0, 1.0, FLATTEST / 2]))[None], ALL, POS),
        ValueError,
        "cells: expected independent vectors in periodic directions, got .* for sample 0",
    ),
    (
        lambda: expect_cells(torch.cat([EYE, EYE, 0 * EYE]), ALL.expand(3, 3), POS),
        ValueError,
        "cells: expected independent vectors in periodic directions, got .* for sample 2",
    ),
    (
        lambda: expect_cells(
            torch.tensor([[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]),
            torch.tensor([[True, True, False]]),
            POS,
        ),
        ValueError,
        r"cells: expected independent vectors .*, got \[\[1.0, 0.0, 0.0\], \[2.0, 0.0, 0.0\]\] for",
    ),
    (lambda: as_cells([[1.0]], 2), TypeError, "cells: expected a tensor, got <class 'list'>"),
    (
        lambda: as_cells(torch.ones(2, 3, 3), 3),
        ValueError,
        r"cells: expected shape \(3, 3\) or \(3, 3, 3\), got \(2, 3, 3\)",
    ),
    (lambda: as_pbc(1, 2), TypeError, "pbc: expected dtype torch.bool, got torch.int64"),
    (lambda: as_pbc([1.0, 0.0, 0.0], 2), TypeError, "pbc: expected dtype torch.bool, got torch.f"),
    (
        lambda: as_pbc([True, False], 2),
        ValueError,
        r"pbc: expected shape \(\), \(3,\) or \(2, 3\), got \(2,\)",
    ),
    (lambda: as_pbc(torch.ones(1, 3).bool(), 2), ValueError, r"pbc: .* got \(1, 3\)"),
    (lambda: as_array("x", []), ValueError, r"x: expected at least one number, got shape \(0,\)"),
    (lambda: as_array("x", [1.0, math.nan]), ValueError, "x: expected finite numbers, got NaN or"),
    (lambda: as_array("x", torch.tensor(math.inf)), ValueError, "x: expected finite numbers"),
    (lambda: expect_positions(META, BATCH), ValueError, "batch: expected device meta as pos, got"),
    (
        lambda: expect_like(torch.zeros(1), META, POS),
        ValueError,
        "z: expected device cpu as the model, got meta",
    ),
    (
        lambda: expect_like(torch.zeros(1), BATCH, POS.double()),
        TypeError,
        "pos: expected dtype torch.float32 as the model, got torch.float64",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_what_is_not_expected_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_cells_on_another_device_are_an_error():
    pos = torch.zeros(2, 3, device="meta")
    with pytest.raises(ValueError, match="cells: expected device meta as pos, got cpu"):
        expect_cells(EYE, ALL, pos)


def test_one_cell_is_that_of_every_replica():
    cells = torch.rand(2, 3, 3)
    assert torch.equal(as_cells(cells, 2), cells)
    assert torch.equal(as_cells(cells[1], 2), cells[[1, 1]])
    assert torch.equal(as_cells(cells[0], 3), cells[[0, 0, 0]])


@pytest.mark.parametrize(
    "given, expected",
    [
        (True, [[True] * 3] * 3),
        (False, [[False] * 3] * 3),
        ((True, False, True), [[True, False, True]] * 3),
        (np.array([True, False, True]), [[True, False, True]] * 3),
        (torch.eye(3).bool(), [[True, False, False], [False, True, False], [False, False, True]]),
    ],
)
def test_periodicity_of_every_sample(given, expected):
    pbc = as_pbc(given, 3)
    assert pbc.dtype == torch.bool
    assert pbc.tolist() == expected


def test_arrays_of_all_kinds():
    for values in ([1, 2], (1.0, 2.0), np.array([1, 2], dtype=np.float32), torch.tensor([1, 2]),
                   torch.tensor([1.0, 2.0], requires_grad=True)):  # fmt: skip
        array = as_array("x", values)
        assert array.dtype == np.float64
        assert array.tolist() == [1.0, 2.0]
    assert as_array("x", 3).shape == ()
