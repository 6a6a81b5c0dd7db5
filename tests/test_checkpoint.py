"""Checkpoints: what they hold, what they say of themselves, and which files are refused."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frames import DATA, ROOT, SIZES, dataset, npz, trainer_for

import molnets
from molnets import checkpoint
from molnets.checkpoint import Card
from molnets.training import evaluate, load, standardized

CARD = Card("schnet", asdict(SIZES), "kcal/mol", "Å", [1, 6, 8], 16, "0123456789abcdef",
            {"python": "3.x"}, {"energy_mae": 0.25, "force_rmse": 1.5})  # fmt: skip


def trained(dtype: torch.dtype = torch.float32):
    """Return a potential with units and shaken weights, as after a training."""
    torch.manual_seed(0)
    potential = standardized(SIZES, dataset(), torch.arange(16)).to(dtype)
    with torch.no_grad():
        for weight in potential.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return potential


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(x) for key, x in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return type(value) in (str, int, float, torch.Tensor)


# Whole and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, dtype):
    potential, data, frames = trained(dtype), dataset(), torch.arange(24)
    potential.card = replace(CARD, elements=[1, 6])
    checkpoint.save(potential, tmp_path / "a.pt")
    torch.manual_seed(1)  # the weights come from the file alone
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert loaded.card == potential.card
    assert next(loaded.parameters()).dtype == dtype and not loaded.training
    assert loaded.scale.dtype == loaded.element_energies.dtype == torch.float64
    for name, tensor in potential.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    (_, energy, forces, _), ours = (evaluate(model, data, frames) for model in (loaded, potential))
    assert torch.equal(energy, ours.energies) and torch.equal(forces, ours.forces)
    z, pos, batch, *_ = data.take(frames, dtype)
    assert torch.equal(loaded(z, pos, batch), potential(z, pos, batch))
    assert forces.abs().max() > 0.1 and (energy + 100).abs().max() < 100
    new = evaluate(checkpoint.build(potential.card).to(dtype), data, frames)
    assert (new.forces - forces).abs().max() > 0.1  # control: new weights are others


def test_tabulated_potential_is_saved_as_what_it_was_made_of(tmp_path):
    potential = trained()
    checkpoint.save(molnets.tabulated(potential), tmp_path / "a.pt")
    loaded = checkpoint.load(tmp_path / "a.pt")
    for name, tensor in potential.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_files_hold_plain_values_only(tmp_path, name):
    trainer_for(dataset(), tmp_path, epochs=2, batch_size=4).run(progress=False)
    checkpoint.with_errors(tmp_path / name, {"energy_mae": 1.0})
    state = torch.load(tmp_path / name, weights_only=True)
    expected = {"format", "card", "dtype", "model", "settings", "seen"}
    if name == "last.pt":
        expected |= {"raw", "optimizer", "history", "epoch", "seconds", "best", "since_best",
                     "ahead", "train", "validation", "kept"}  # fmt: skip
    assert set(state) == expected
    state.pop("optimizer", None)  # torch's own
    assert plain(state)
    assert set(state["card"]) == {item.name for item in fields(Card)}


# The card


def test_card_after_a_training(tmp_path):
    data = dataset()
    data.energy_unit, data.length_unit = "eV", "Å"
    data.z[16 * 7 :] = 8  # in validation and test frames only
    trainer = trainer_for(data, tmp_path, epochs=2, batch_size=4)
    trainer.run(progress=False)
    card = checkpoint.load(tmp_path / "best.pt").card
    assert card.network == "schnet"
    assert card.sizes == {"dim_embedding": 8, "num_filters": 8, "num_interactions": 2,
                          "num_gaussians": 10, "cutoff": 2.0, "gamma": 0.0}  # fmt: skip
    assert (card.energy_unit, card.length_unit) == ("eV", "Å")
    assert card.elements == [1, 6]
    assert card.num_frames == 16
    assert card.fingerprint == data.fingerprint()
    assert card.versions == {
        "molnets": molnets.__version__, "torch": torch.__version__,
        "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip
    assert card.errors == {}
    assert card == checkpoint.load(tmp_path / "last.pt").card


def test_errors_are_written_into_the_card_and_nothing_else(tmp_path):
    trainer_for(dataset(), tmp_path, epochs=2, batch_size=4).run(progress=False)
    before = checkpoint.read(tmp_path / "last.pt")
    checkpoint.with_errors(tmp_path / "last.pt", {"force_mae": 0.125})
    after = checkpoint.read(tmp_path / "last.pt")
    assert after["card"].pop("errors") == {"force_mae": 0.125}
    assert before["card"].pop("errors") == {}
    assert after["card"] == before["card"] and after["history"] == before["history"]
    for kind in ("model", "raw"):
        for name, tensor in before[kind].items():
            assert torch.equal(after[kind][name], tensor)
    again = trainer_for(dataset(), tmp_path, epochs=2, batch_size=4)
    again.resume(tmp_path / "last.pt")  # still


@pytest.mark.parametrize(
    "energy, length, expected",
    [
        ("eV", "Å", ("eV", "eV/Å")),
        ("eV", "unknown", ("eV", "")),
        ("unknown", "Å", ("", "")),
        ("unknown", "unknown", ("", "")),
    ],
)
def test_units_of_a_card(energy, length, expected):
    assert Card("schnet", {}, energy, length).units() == expected


def test_describe(tmp_path):
    potential = trained(torch.float64)
    potential.card = CARD
    checkpoint.save(potential, tmp_path / "a.pt")
    rows = dict(checkpoint.describe(tmp_path / "a.pt"))
    weights = sum(weight.numel() for weight in potential.parameters())
    assert rows == {
        "network": "schnet", "  dim_embedding": "8", "  num_filters": "8",
        "  num_interactions": "2", "  num_gaussians": "10", "  cutoff": "2", "  gamma": "0",
        "numbers in the weights": f"{weights:,}", "dtype": "float64",
        "energy unit": "kcal/mol", "length unit": "Å", "elements": "H C O",
        "frames trained on": "16", "fingerprint of the data": "0123456789abcdef",
        "test energy mae": "0.25 kcal/mol", "test force rmse": "1.5 kcal/mol/Å",
        "made with": "python 3.x",
    }  # fmt: skip


def test_describe_says_what_is_not_known(tmp_path):
    potential = trained()
    potential.card = Card("schnet", asdict(SIZES), errors={"force_mae": 2.0, "per_atom_mae": 1e-5})
    checkpoint.save(potential, tmp_path / "a.pt")
    rows = dict(checkpoint.describe(tmp_path / "a.pt"))
    for name in ("energy unit", "length unit", "elements", "frames trained on", "made with",
                 "fingerprint of the data"):  # fmt: skip
        assert rows[name] == "unknown"
    assert (rows["test force mae"], rows["test per atom mae"]) == ("2", "1e-05")


# What is refused


def change(path: Path, **changes: object) -> Path:
    """Write a checkpoint with some entries changed, or left out where they are None."""
    checkpoint.save(trained(), path)
    state = torch.load(path, weights_only=True) | changes
    torch.save({name: x for name, x in state.items() if x is not None}, path)
    return path


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    torch.save({"model": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="path: expected a checkpoint of plain tensors"):
        checkpoint.load(tmp_path / "code.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="path: expected a checkpoint with card, model and dtype"):
        checkpoint.load(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="path: expected a checkpoint"):
        checkpoint.load(tmp_path / "nothing.pt")


@pytest.mark.parametrize("read", [checkpoint.read, checkpoint.load, checkpoint.describe])
@pytest.mark.parametrize("kind", ["text", "empty", "half", "frames", "list"])
def test_foreign_files_are_refused_in_one_line(tmp_path, read, kind):
    path = tmp_path / "a.pt"
    if kind == "frames":
        npz(tmp_path / "a.npz").rename(path)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    else:
        whole = change(path).read_bytes()
        path.write_bytes({"text": b"no checkpoint", "empty": b"", "half": whole[:5000]}[kind])
    with pytest.raises(ValueError, match=r"^path: expected a checkpoint [^\n]*a\.pt[^\n]*$"):
        read(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 1}, r"path: expected a checkpoint of format 2, got 1 in .*a\.pt"),
        ({"format": 3}, r"path: expected a checkpoint of format 2, got 3 in .*a\.pt"),
        ({"format": None}, r"path: expected a checkpoint of format 2, got None in .*a\.pt"),
        ({"card": None}, r"path: expected a checkpoint with card, model and dtype, got .*a\.pt"),
        ({"model": None}, r"path: expected a checkpoint with card, model and dtype, got .*a\.pt"),
        ({"dtype": None}, r"path: expected a checkpoint with card, model and dtype, got .*a\.pt"),
        ({"dtype": "float33"}, r"path: expected a dtype of torch in .*a\.pt, got float33"),
        ({"card": {"network": "schnet"}}, r"path: expected a card with .*got \['network'\]"),
        ({"card": asdict(CARD) | {"mood": 1}}, r"path: expected a card with .*'mood'"),
        ({"card": "schnet"}, r"path: expected a card with .*got schnet"),
        ({"card": asdict(CARD) | {"network": "toy"}}, r"network: expected one of .*got 'toy'"),
        ({"card": asdict(CARD) | {"sizes": {"depth": 1}}}, r"sizes: expected some of .*'depth'"),
    ],
)
def test_files_with_other_entries_are_refused(tmp_path, changes, message):
    path = change(tmp_path / "a.pt", **changes)
    for read in (checkpoint.load, checkpoint.describe):
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize("name, value", [("dim_embedding", 9), ("num_interactions", 3)])
def test_weights_of_other_sizes_are_refused(tmp_path, name, value):
    card = asdict(CARD) | {"sizes": asdict(SIZES) | {name: value}}
    path = change(tmp_path / "a.pt", card=card)
    with pytest.raises(ValueError, match=r"path: expected weights that fit the card in .*a\.pt, "):
        checkpoint.load(path)


def test_weights_of_another_cutoff_are_refused(tmp_path):
    """The shapes are equal, the energies would not be."""
    card = asdict(CARD) | {"sizes": asdict(SIZES) | {"cutoff": 1.9}}
    with pytest.raises(ValueError, match="cutoff"):
        checkpoint.load(change(tmp_path / "a.pt", card=card))


@pytest.mark.parametrize("model", [{}, {"scale": torch.ones(())}, [1.0]])
def test_weights_that_are_missing_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match="path: expected weights that fit the card"):
        checkpoint.load(change(tmp_path / "a.pt", model=model))


def test_potential_without_a_card_is_not_saved(tmp_path):
    potential = trained()
    potential.card = None
    with pytest.raises(ValueError, match="potential: expected one with a card"):
        checkpoint.save(potential, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_save_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    path, save = tmp_path / "a.pt", torch.save
    checkpoint.save(trained(), path)
    before = path.read_bytes()

    def half(state: dict, file: Path) -> None:
        save(state, file)
        file.write_bytes(file.read_bytes()[:5000])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    for write in (
        lambda: checkpoint.save(checkpoint.build(CARD), path),
        lambda: checkpoint.with_errors(path, {"energy_mae": 1.0}),
    ):
        with pytest.raises(OSError, match="no space left on device"):
            write()
        assert path.read_bytes() == before
    assert checkpoint.load(path).card.num_frames == 16


# The networks that come with the code


@pytest.mark.parametrize(
    "name, elements, units",
    [("ethanol", "H C O", ("eV", "Å")), ("cluster", "H", ("ε", "σ"))],
)
def test_committed_networks(name, elements, units):
    path = ROOT / "benchmarks" / f"{name}.pt"
    rows = dict(checkpoint.describe(path))
    assert rows["elements"] == elements
    assert (rows["energy unit"], rows["length unit"]) == units
    metrics = json.loads(path.with_suffix(".json").read_text())
    for kind, unit in (("energy", units[0]), ("force", "/".join(units))):
        for error in ("mae", "rmse"):
            expected = f"{metrics[f'test_{kind}_{error}']:.4g} {unit}"
            assert rows[f"test {kind} {error}"] == expected
    potential = checkpoint.load(path)
    assert potential.card.sizes == metrics["sizes"]
    assert potential.card.num_frames == metrics["num_train"]
    weights = sum(weight.numel() for weight in potential.parameters())
    assert weights == metrics["num_parameters"]
    assert rows["numbers in the weights"] == f"{weights:,}"


@pytest.mark.skipif(
    not (DATA / "rmd17_ethanol.npz").exists(), reason=f"no rmd17_ethanol.npz in {DATA}"
)
def test_ethanol_s_errors_come_out_again():
    potential = checkpoint.load(ROOT / "benchmarks" / "ethanol.pt")
    data, card = load(DATA / "rmd17_ethanol.npz"), potential.card
    assert data.fingerprint() == card.fingerprint
    test = (data.split == 1).nonzero().flatten()
    errors = asdict(evaluate(potential, data, test, batch_size=250).errors)
    assert {name: errors[name] for name in card.errors} == pytest.approx(card.errors, rel=1e-3)
    assert card.errors["force_mae"] > 0
    others = asdict(evaluate(potential, data, test[:100]).errors)
    assert others["force_mae"] != pytest.approx(errors["force_mae"], rel=1e-3)  # control
