"""Energies and forces that do not belong together are seen, or that it cannot be told is said."""

from __future__ import annotations

import math

import pytest
import torch
from frames import DATA, arrays, dataset, npz, of_sizes

from fake_data import fake_trajectory
from molnets.dynamics import lennard_jones
from molnets.training import Dataset, check_units, joined, load
from molnets.training import consistency as consistency_module
from molnets.training.consistency import consistency

NEEDS = {"ethanol": "rmd17_ethanol.npz", "silicon": "mlearn_Si.npz", "mixed": "mlearn_Si.npz"}
FACTORS = {  # what energies, forces and positions are multiplied by; the slope that follows
    "flipped": ((1.0, -1.0, 1.0), -1.0),
    "energies in kcal/mol": ((23.06, 1.0, 1.0), 23.06),
    "forces in kcal/mol": ((1.0, 23.06, 1.0), 1 / 23.06),
    "energies in Hartree": ((1 / 27.21, 1.0, 1.0), 1 / 27.21),
    "forces in Hartree/Å": ((1.0, 1 / 27.21, 1.0), 27.21),
    "Hartree, Hartree/Bohr, Å": ((1 / 27.21, 0.529 / 27.21, 1.0), 1 / 0.529),
    "positions in Bohr": ((1.0, 1.0, 1 / 0.529), 0.529),
}


def cluster(num_frames: int = 200) -> Dataset:
    positions = fake_trajectory(num_frames).positions.double()
    energies, forces = lennard_jones()(positions)
    z = torch.tensor([1, 6, 1, 6, 1, 6, 1]).repeat(num_frames)
    return Dataset(z, positions.view(-1, 3), energies, forces.view(-1, 3),
                   torch.full((num_frames,), 7))  # fmt: skip


def silicon(mixed: bool) -> Dataset:
    """Return periodic silicon; or with it ethanol in half of the frames: three elements more."""
    data = load(DATA / NEEDS["silicon"])
    if not mixed:
        return data
    other = load(DATA / NEEDS["ethanol"]).subset(torch.arange(100))
    other.split = data.split = None
    return joined([data, other])


def data_of(name: str, num: int | None = None) -> Dataset:
    needed = DATA / NEEDS.get(name, "")
    if name in NEEDS and not needed.exists():
        pytest.skip(f"no {needed}")
    data = {"cluster": cluster, "ethanol": lambda: load(DATA / NEEDS["ethanol"]),
            "silicon": lambda: silicon(False), "mixed": lambda: silicon(True)}[name]()  # fmt: skip
    return data if num is None else data.subset(torch.arange(num))


def changed(data: Dataset, factors: tuple[float, float, float]) -> Dataset:
    energy, force, length = factors
    data.energies, data.forces, data.pos = (
        data.energies * energy,
        data.forces * force,
        data.pos * length,
    )
    data.cells = None if data.cells is None else data.cells * length
    return data


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("silicon", "mixed")]


@pytest.mark.parametrize("name", ["cluster", "ethanol", *LONG])
def test_sound_data_pass(name):
    found = check_units(data_of(name))
    assert found.factor == 1 and found.correlation > 0.9 and found.advantage > 1.5
    assert str(found).startswith("energies change as forces say (correlation ")


@pytest.mark.parametrize("name", ["cluster", "ethanol", *LONG])
@pytest.mark.parametrize("fault", FACTORS)
def test_every_factor_is_caught_in_every_kind_of_data(name, fault, monkeypatch):
    factors, slope = FACTORS[fault]
    data = changed(data_of(name), factors)
    told = consistency(data)
    found = told.factor
    if math.isnan(found) and name == "mixed":  # not of all; one of the compositions tells
        with pytest.raises(ValueError, match=r"got in the \d+ frames of \w+ energies change"):
            check_units(data)
        return
    monkeypatch.setattr(consistency_module, "consistency", lambda _: told)  # it takes its time
    with pytest.raises(ValueError, match="energies, forces: expected forces that are"):
        check_units(data)
    near = 0.5 < slope < 2  # else the slope itself, up to 2.5 times too steep
    assert found == pytest.approx(slope, rel=0.02) if near else 0.7 < found / slope < 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name, num",
    [("ethanol", 50), pytest.param("silicon", 40, marks=pytest.mark.slow), ("cluster", 30)],
)
def test_few_frames_are_judged_rightly_or_not_at_all(name, num, seed):
    data = data_of(name)
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:num]
    found = consistency(data.subset(some))
    assert math.isnan(found.factor) or found.factor == 1
    flipped = consistency(changed(data.subset(some), (1.0, -1.0, 1.0)))
    assert math.isnan(flipped.factor) or flipped.factor < 0
    bohr = consistency(changed(data.subset(some), (1.0, 0.529, 1.0)))
    assert math.isnan(bohr.factor) or bohr.factor > 1.8


def test_a_fault_is_believed_if_three_networks_find_it(monkeypatch):
    """Far slopes need not be the same; a near factor must be. What is sound is found once."""
    data, UNTOLD = dataset(), consistency_module.UNTOLD

    def found(*factors: float) -> tuple[float, int]:
        asked = iter(factors)
        monkeypatch.setattr(consistency_module, "_once", lambda *_: UNTOLD._replace(
            factor=next(asked), correlation=0.9))  # fmt: skip
        return consistency(data).factor, len([*asked])

    assert found(-1.0, -1.7, -0.6, 5.0) == (-1.0, 1)
    assert found(1.89, 1.89, 1.89, 5.0) == (1.89, 1)
    assert found(1.0, 5.0) == (1.0, 1)
    for factors in ((1.89, 1.0), (0.529, 0.529, 1.0), (1.89, 4.5), (-1.0, 1.0), (23.0, math.nan),
                    (-1.0, -1.0, -3.0), (4.5, 1.89)):  # fmt: skip
        factor, left = found(*factors)
        assert math.isnan(factor) and left == 0


@pytest.mark.parametrize("seed", range(6))
def test_twenty_sound_frames_are_not_refused(seed):
    """The first fit errs on the fourth and the fifth."""
    data = data_of("ethanol")
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(2000 + seed))[:20]
    check_units(data.subset(some))


def test_a_fault_of_one_composition_is_found():
    """Those that vary more would hide it: they make up most of the energies."""
    sound, other = cluster(60), cluster(60)
    other.z = other.z.roll(1)  # carbon 4, hydrogen 3 becomes the other way round
    other.z[other.z == 1], other.z[other.z == 6] = 9, 8
    sound.energies, sound.forces = 30 * sound.energies, 30 * sound.forces
    both = joined([sound, changed(other, (1.0, -1.0, 1.0))])
    assert consistency(both).factor == 1
    with pytest.raises(ValueError, match=r"in the 60 frames of F4O3 energies change -.*other sign"):
        check_units(both)
    found = check_units(joined([sound, changed(other, (1.0, -1.0, 1.0))]))
    assert (found.told, found.compositions) == (2, 2)
    assert str(found).endswith("; on their own, it can be told of 2 of 2 compositions")


def test_frames_of_weight_zero_are_not_judged():
    data = cluster(60)
    data.forces[: 30 * 7] *= -1
    data.weights[:30] = 0.0
    ((formula, frames),) = consistency_module.compositions(data)
    assert formula == "C3H4" and torch.equal(frames, torch.arange(30, 60))
    assert consistency(data) == consistency(cluster(60).subset(torch.arange(30, 60)))


def test_what_cannot_be_told_is_said():
    data = dataset()
    data.energies = torch.full_like(data.energies, -3.0)  # forces are all that such a file has
    alone = dataset()
    alone.labels = torch.tensor([False, True, False]).repeat(24, 1)
    still = dataset()
    still.forces = torch.zeros_like(still.forces)
    noise = dataset()
    noise.energies = torch.randn(24, generator=torch.Generator().manual_seed(0)).double()
    for source in (data, alone, still, noise, of_sizes()):
        found = check_units(source)
        assert math.isnan(found.factor)
        expected = "whether energies and forces belong together cannot be told from these frames"
        assert str(found).split(";")[0] == expected


def test_the_message_names_the_likely_units(tmp_path):
    source = arrays(60)
    source["E"] = 23.06 * source["E"]
    with pytest.raises(
        ValueError, match=r"times as much as forces say .*in kcal/mol and forces in eV"
    ):
        check_units(load(npz(tmp_path / "a.npz", **source)))
    source["E"] = source["E"] / 23.06**2
    with pytest.raises(ValueError, match="kcal/mol and forces in eV, the other way round"):
        check_units(load(npz(tmp_path / "b.npz", **source)))
    source["E"] = -23.06 * source["E"]
    with pytest.raises(ValueError, match="forces of the other sign"):
        check_units(load(npz(tmp_path / "c.npz", **source)))
