"""The training loop: what it learns, repeats, keeps and refuses; small, on a CPU, in seconds."""

from __future__ import annotations

import csv
import dataclasses
import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from frames import SIZES, dataset, of_sizes, trainer_for

from molnets import checkpoint
from molnets.training import (
    Dataset,
    Settings,
    Trainer,
    evaluate,
    factors_of,
    loss_of,
    standardized,
)


@pytest.fixture
def data() -> Dataset:
    return dataset()


# What it learns


@pytest.mark.parametrize("rho_energy, rho_forces", [(1.0, 0.0), (0.0, 1.0), (0.01, 1.0)])
def test_training_lowers_the_loss(data, tmp_path, rho_energy, rho_forces):
    trainer = trainer_for(
        data, tmp_path, epochs=40, batch_size=4, lr=5e-3, ema_decay=0.9,
        rho_energy=rho_energy, rho_forces=rho_forces,
    )  # fmt: skip
    trainer.run(progress=False)
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.3 * losses[0]
    assert trainer.history[-1]["epoch"] == 40
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == losses
    assert [row["epoch"] for row in trainer.history] == list(range(1, 41))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 41))


def test_standardization_starts_near_the_data(data):
    torch.manual_seed(0)
    model = standardized(SIZES, data, torch.arange(16))
    assert float(model.scale) == pytest.approx(float(data.forces[: 16 * 7].square().mean().sqrt()))
    errors, *_ = evaluate(model, data, torch.arange(16))
    assert errors.energy_mae < 20  # the offset of −100 is taken care of


def test_standardization_knows_the_training_frames_alone(data):
    frames = torch.tensor([1, 5, 6])
    expected = standardized(SIZES, data, frames)
    others = torch.tensor([frame for frame in range(24) if frame not in frames])
    data.energies[others] += 1000
    data.forces[data.atoms_of(others)] *= 10
    again = standardized(SIZES, data, frames)
    assert again.scale == expected.scale
    assert torch.equal(again.element_energies, expected.element_energies)


def test_scale_of_forces_that_are_all_zero_is_1(data):
    data.forces = torch.zeros_like(data.forces)
    assert standardized(SIZES, data, torch.arange(16)).scale == 1


def test_one_step_equals_adamw_by_hand(data, tmp_path):
    """One step of the plain engine, its average, and the loss in the history."""
    settings = {"epochs": 1, "batch_size": 16, "lr": 0.01, "weight_decay": 0.1, "clip_norm": 0.5,
                "ema_decay": 0.7, "rho_energy": 0.2, "engine": "plain"}  # fmt: skip
    trainer, reference = (trainer_for(data, tmp_path, **settings) for _ in range(2))
    trainer.run(progress=False)
    potential = reference.potential
    start = [weight.detach().clone() for weight in potential.parameters()]
    target = data.take(torch.arange(16))
    results = potential.energy_and_forces(*target[:3], create_graph=True)
    loss = loss_of(results, target, factors_of(data, 0.2, 1.0, 0.0)[:16])
    gradients = torch.autograd.grad(loss, list(potential.parameters()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0.5  # control: it is clipped
    assert trainer.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for weight, average, w, g in zip(
        trainer.weights, trainer.averages, start, gradients, strict=True
    ):
        g = 0.5 / norm * g
        moved = w * (1 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-8)  # the first step of Adam
        sure = g.abs() > 1e-5  # the sign of a gradient near zero is not
        torch.testing.assert_close(weight.detach()[sure], moved[sure], rtol=1e-3, atol=1e-6)
        expected = 0.1 * w + 0.9 * weight.detach()  # the average warms up: it starts at 1 / 10
        torch.testing.assert_close(average.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ema_decay", [0.999, 0.2, 0.0])
def test_average_warms_up_to_its_decay(data, tmp_path, ema_decay):
    trainer = trainer_for(data, tmp_path, epochs=3, batch_size=8, ema_decay=ema_decay)
    expected = [weight.detach().clone() for weight in trainer.weights]
    inner, t = trainer.update, 0

    def step(*arguments):  # average by hand what every step leaves
        nonlocal t
        inner(*arguments)
        decay = min(ema_decay, (1 + t) / (10 + t))
        for average, weight in zip(expected, trainer.weights, strict=True):
            average.mul_(decay).add_(weight.detach(), alpha=1 - decay)
        t += 1

    trainer.update = step
    trainer.run(progress=False)
    assert t == 6
    for average, hand in zip(trainer.averages, expected, strict=True):
        torch.testing.assert_close(average.detach(), hand, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip_norm", [0.5, 0.0])
def test_gradients_are_clipped_where_they_are_to_be(data, tmp_path, clip_norm):
    trainer = trainer_for(data, tmp_path, epochs=1, batch_size=4, clip_norm=clip_norm,
                          engine="plain")  # fmt: skip
    norms, step = [], trainer.optimizer.step

    def spy() -> None:
        (whole,) = trainer.optimizer.param_groups[0]["params"]
        norms.append(float(whole.grad.norm()))
        step()

    trainer.optimizer.step = spy
    trainer.run(progress=False)
    if clip_norm:
        assert norms == pytest.approx([clip_norm] * 4, rel=1e-4)
    else:
        assert min(norms) > 0.5


def test_learning_rate_falls_along_a_cosine(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=3, batch_size=4, lr=0.01)
    rates, update = [], trainer.update

    def spy(*arguments) -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        update(*arguments)

    trainer.update = spy
    trainer.run(progress=False)
    expected = [0.005 * (1 + math.cos(math.pi * k / 12)) for k in range(12)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("engine", ["spline", "plain"])
def test_every_epoch_visits_the_frames_once_in_another_order(data, tmp_path, engine):
    trainer = trainer_for(data, tmp_path, epochs=2, batch_size=5, engine=engine)
    taken, steps = [], trainer.steps

    def spy(frames, *others):
        taken.append(frames.tolist())
        return steps(frames, *others)

    trainer.steps = spy
    trainer.run(progress=False)
    assert [len(frames) for frames in taken] == [5] * 6  # 16 frames: one is left out
    first, second = ([*chain(*taken[3 * epoch :][:3])] for epoch in range(2))
    assert len(set(first)) == len(set(second)) == 15
    assert set(first) | set(second) <= set(range(16))
    assert first != second


def judged(trainer: Trainer) -> dict[str, float]:
    """Return the loss of the weights and of their average on the validation frames, by loops."""
    losses = {}
    for name, model in (("average", trainer.ema), ("last", trainer.potential)):
        _, energies, forces, _ = evaluate(model, trainer.data, trainer.validation)
        target = trainer.data.take(trainer.validation, torch.float64)
        n, rho = 7, (trainer.settings.rho_energy, trainer.settings.rho_forces)
        of_energy = (energies - target.energies).square().mean()
        of_forces = (forces - target.forces).square().sum() / n / len(trainer.validation)
        losses[name] = float(rho[0] * of_energy + rho[1] * of_forces)
    return losses


@pytest.mark.parametrize(
    "settings, better",
    [
        ({"lr": 0.01, "epochs": 400}, "last"),  # on the way: the average lags behind
        ({"lr": 0.03, "epochs": 3}, "average"),  # a noisy path
    ],
)
@pytest.mark.parametrize("engine", ["spline", "plain"])
def test_the_better_of_weights_and_average_is_kept(data, tmp_path, settings, better, engine):
    trainer = trainer_for(data, tmp_path, batch_size=2, engine=engine, **settings)
    for _ in range(3):
        trainer.run_epoch()
    row, losses = trainer.history[-1], judged(trainer)
    assert better == ("last" if losses["last"] < 0.9 * losses["average"] else "average")
    assert row["averaged"] == (better == "average")
    assert row["validation"] == pytest.approx(losses[better], rel=1e-3)
    model = trainer.ema if better == "average" else trainer.potential
    other = trainer.potential if better == "average" else trainer.ema
    expected = evaluate(model, data, trainer.validation).errors
    assert (row["energy_mae"], row["force_mae"]) == pytest.approx(
        (expected.energy_mae, expected.force_mae), rel=1e-3
    )
    assert evaluate(other, data, trainer.validation).errors != expected
    kept = evaluate(checkpoint.load(tmp_path / "best.pt"), data, trainer.validation)
    best = min(trainer.history, key=lambda row: row["validation"])
    assert trainer.best == best["validation"]
    assert kept.errors.force_mae == pytest.approx(best["force_mae"], rel=1e-3)


@pytest.mark.parametrize(("loss", "averaged"), [(0.95, 1), (0.85, 0), (1.5, 1), (math.nan, 1)])
def test_weights_that_are_better_by_luck_are_not_kept(data, tmp_path, monkeypatch, loss, averaged):
    """Of the average's loss, 1: only weights that are clearly below it take its place."""
    losses = iter([torch.tensor(1.0), torch.tensor(loss)])  # of the average, of the weights
    monkeypatch.setattr("molnets.training.trainer.loss_of", lambda *_: next(losses))
    trainer = trainer_for(data, tmp_path, epochs=1)
    trainer.run_epoch()
    row, right = trainer.history[-1], (trainer.weights, trainer.averages)[averaged]
    assert row["averaged"] == averaged
    assert row["validation"] == pytest.approx(1.0 if averaged else loss)
    kept = list(trainer.kept.parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept, right, strict=True))


def test_weights_are_better_in_several_epochs_before_they_are_kept(data, tmp_path, monkeypatch):
    """By half, and in six epochs of ten, is still luck; a seventh time it is not."""
    losses: list[float] = []
    monkeypatch.setattr("molnets.training.trainer.loss_of", lambda *_: torch.tensor(losses.pop(0)))
    trainer = trainer_for(data, tmp_path, epochs=30)
    for weights, averaged in [*[(1.0, 1)] * 9, *[(0.5, 1)] * 6, (0.5, 0), (0.95, 1), (0.5, 0)]:
        losses += [1.0, weights]  # of the average, of the weights
        trainer.run_epoch()
        assert trainer.history[-1]["averaged"] == averaged
    again = trainer_for(data, tmp_path, epochs=30)
    again.resume(tmp_path / "last.pt")
    assert again.ahead == trainer.ahead > 0.5


def test_best_weights_are_those_of_the_best_epoch(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4, lr=5e-3, ema_decay=0.9)
    trainer.run_epoch()
    first = trainer.best
    trainer.run_epoch()
    best = min(judged(trainer).values())
    assert trainer.best == pytest.approx(best, rel=1e-3) and trainer.best < first
    kept = [weight.clone() for weight in trainer.kept.parameters()]
    with torch.no_grad():
        for weight in (*trainer.weights, *trainer.averages):
            weight += 0.5 * torch.randn_like(weight)  # a step in the wrong direction
    trainer.run_epoch()
    best, last = (checkpoint.load(tmp_path / name).parameters() for name in ("best.pt", "last.pt"))
    assert all(torch.equal(a, b) for a, b in zip(kept, best, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trainer.averages, last, strict=True))
    assert trainer.since_best == 1 and trainer.best < trainer.history[-1]["validation"]


# What it repeats


def test_resume_is_bit_identical(data, tmp_path):
    settings = {"epochs": 6, "batch_size": 4, "seed": 3}
    whole = trainer_for(data, tmp_path / "whole", **settings)
    whole.run(progress=False)
    broken = trainer_for(data, tmp_path / "broken", **settings)
    for _ in range(3):
        broken.run_epoch()
    resumed = trainer_for(data, tmp_path / "broken", **settings)
    resumed.resume(tmp_path / "broken" / "last.pt")
    assert resumed.epoch == 3
    resumed.run(progress=False)
    for name, tensor in whole.potential.state_dict().items():
        assert torch.equal(tensor, resumed.potential.state_dict()[name]), name
    for name, tensor in whole.ema.state_dict().items():
        assert torch.equal(tensor, resumed.ema.state_dict()[name]), name
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.history]
    assert [row["epoch"] for row in strip] == [1, 2, 3, 4, 5, 6]
    assert (resumed.best, resumed.since_best) == (whole.best, whole.since_best)
    seconds = [row["seconds"] for row in resumed.history]
    assert seconds == sorted(seconds)
    one, two = (checkpoint.load(tmp_path / name / "best.pt") for name in ("whole", "broken"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    other = trainer_for(data, tmp_path / "other", **(settings | {"seed": 4}))
    other.run(progress=False)
    assert any((a != b).any() for a, b in zip(whole.weights, other.weights, strict=True))


def test_resume_of_a_finished_run_changes_nothing(data, tmp_path):
    settings = {"epochs": 2, "batch_size": 4}
    done = trainer_for(data, tmp_path, **settings)
    done.run(progress=False)
    again = trainer_for(data, tmp_path, **settings)
    again.resume(tmp_path / "last.pt")
    again.run(progress=False)
    assert again.history == done.history and again.epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(done.weights, again.weights, strict=True))


@pytest.mark.parametrize("more", [{"epochs": 7}, {"minutes": 0.02}])
def test_resume_for_longer(data, tmp_path, more):
    """The rate then falls along the longer cosine."""
    settings = {"epochs": 3, "batch_size": 4, "minutes": 0.01 if "minutes" in more else 0.0}
    first = trainer_for(data, tmp_path, **settings)
    first.run(progress=False)
    assert first.optimizer.param_groups[0]["lr"] < 1e-4 or "epochs" in more
    again = trainer_for(data, tmp_path, **(settings | more))
    again.resume(tmp_path / "last.pt")
    assert (again.epoch, again.best) == (first.epoch, first.best)
    again.run(progress=False)
    assert again.epoch == 7 if "epochs" in more else again.epoch > first.epoch
    assert again.history[: first.epoch] == first.history
    assert again.best <= first.best
    assert len((tmp_path / "history.csv").read_text().splitlines()) == again.epoch + 1


def test_one_file_is_the_truth(data, tmp_path):
    """A kill between two files, or a lost best.pt: the best weights are in last.pt."""
    settings = {"epochs": 6, "batch_size": 4}
    trainer = trainer_for(data, tmp_path, **settings)
    trainer.run_epoch()
    trainer.run_epoch()
    expected = checkpoint.read(tmp_path / "best.pt")["model"]
    (tmp_path / "history.csv").unlink()
    for content in (None, b"half a fi"):
        (tmp_path / "best.pt").unlink()
        if content:
            (tmp_path / "best.pt").write_bytes(content)
        again = trainer_for(data, tmp_path, **settings)
        again.resume(tmp_path / "last.pt")
        found = checkpoint.read(tmp_path / "best.pt")["model"]
        assert all(torch.equal(found[name], x) for name, x in expected.items())
        assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_short_epochs_write_their_files_now_and_then(data, tmp_path, monkeypatch):
    trainer, saved = trainer_for(data, tmp_path, epochs=5, batch_size=4), []
    save = trainer.save

    def spy(state, path):
        saved.append((state.get("epoch"), path.name))
        save(state, path)

    monkeypatch.setattr(trainer, "save", spy)
    trainer.run(progress=False)
    assert saved == [(1, "last.pt"), (None, "best.pt"), (5, "last.pt"), (None, "best.pt")]
    assert checkpoint.read(tmp_path / "last.pt")["epoch"] == 5


def test_resume_with_other_settings_is_refused(data, tmp_path):
    trainer_for(data, tmp_path, epochs=2, batch_size=4).run_epoch()
    with pytest.raises(ValueError, match=r"^lr: expected that of .*last\.pt, 0\.001, got 1\.0"):
        trainer_for(data, tmp_path, epochs=2, batch_size=4, lr=1.0).resume(tmp_path / "last.pt")
    changes = {"epochs": 1, "seed": 1, "rho_forces": 0.5, "engine": "plain", "minutes": 1.0}
    for name, value in changes.items():
        other = trainer_for(data, tmp_path, **({"epochs": 2, "batch_size": 4} | {name: value}))
        with pytest.raises(ValueError, match=f"^{name}: expected that of .*, got {value}"):
            other.resume(tmp_path / "last.pt")


def other_data(data: Dataset) -> Dataset:
    data.forces[3, 1] += 1e-9
    return data


def without_an_element(data: Dataset) -> Dataset:
    data.z[:] = 6
    return data


@pytest.mark.parametrize(
    "change, sizes, message",
    [
        (other_data, SIZES, "fingerprint: expected that of .*last.pt, [0-9a-f]{16}, got"),
        (without_an_element, SIZES, r"elements: expected that of .*last.pt, \[1, 6\], got \[6\]"),
        (None, dataclasses.replace(SIZES, num_gaussians=9), "sizes: .*'num_gaussians': 9"),
        (None, dataclasses.replace(SIZES, cutoff=1.9), "sizes: expected .*'cutoff': 2.0.* 1.9"),
    ],
)
def test_resume_with_other_data_or_sizes_is_refused(data, tmp_path, change, sizes, message):
    trainer_for(data, tmp_path, epochs=2, batch_size=4).run_epoch()
    data = dataset() if change is None else change(dataset())
    other = trainer_for(data, tmp_path, sizes, epochs=2, batch_size=4)
    before = [weight.detach().clone() for weight in other.weights]
    with pytest.raises(ValueError, match=message):
        other.resume(tmp_path / "last.pt")
    assert other.epoch == 0
    assert all(torch.equal(a, b) for a, b in zip(before, other.weights, strict=True))


@pytest.mark.parametrize(
    "train, validation, message",
    [
        (range(1, 17), range(17, 21), "train: expected the frames of .*last.pt, 16, got others"),
        (range(16), range(18, 22), "validation: expected the frames of .*, 4, got others"),
        (range(16), range(16, 21), "validation: expected the frames of .*, 4, got others"),
        (range(12), range(16, 20), "num_frames: expected that of .*, 16, got 12"),
    ],
)
def test_resume_with_another_split_is_refused(data, tmp_path, train, validation, message):
    """Else frames that were trained on would choose the best weights, or test them."""
    trainer_for(data, tmp_path, epochs=2, batch_size=4).run_epoch()
    train, validation = torch.tensor(list(train)), torch.tensor(list(validation))
    potential = standardized(SIZES, data, train)
    settings = Settings(epochs=2, batch_size=4)
    other = Trainer(potential, data, train, validation, settings, tmp_path)
    with pytest.raises(ValueError, match=message):
        other.resume(tmp_path / "last.pt")


def test_resume_in_another_precision_is_refused(data, tmp_path):
    settings, frames = Settings(epochs=2, batch_size=4), torch.arange(20).split(16)
    trainer_for(data, tmp_path, epochs=2, batch_size=4).run_epoch()
    potential = standardized(SIZES, data, frames[0]).double()
    other = Trainer(potential, data, *frames, settings, tmp_path)
    with pytest.raises(ValueError, match=r"dtype: expected that of .*, float32, got float64"):
        other.resume(tmp_path / "last.pt")


def test_resume_needs_the_state_of_a_training(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=2, batch_size=4)
    trainer.run_epoch()
    checkpoint.save(checkpoint.load(tmp_path / "last.pt"), tmp_path / "slim.pt")
    for name in ("best.pt", "slim.pt"):
        with pytest.raises(
            ValueError, match=rf"path: expected .* training, last\.pt, got .*{name}"
        ):
            trainer.resume(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"path: expected a checkpoint, got .*nothing\.pt"):
        trainer.resume(tmp_path / "nothing.pt")


# What it keeps


def test_checkpoint_gives_the_energies_of_the_data(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=3, batch_size=4)
    trainer.run(progress=False)
    model = checkpoint.load(tmp_path / "last.pt")
    _, energy, forces, _ = evaluate(trainer.ema, data, torch.arange(4))
    assert torch.equal(evaluate(model, data, torch.arange(4)).energies, energy)
    assert torch.equal(evaluate(model, data, torch.arange(4)).forces, forces)
    assert (energy + 100).abs().max() < 20
    raw = evaluate(trainer.potential, data, torch.arange(4)).energies
    assert not torch.equal(raw, energy)  # control: it is the average that is kept


def interrupt_after(trainer: Trainer, num_steps: int, monkeypatch) -> None:
    step, calls = trainer._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > num_steps:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "_step", interrupted)


def test_interrupted_run_leaves_a_checkpoint(data, tmp_path, monkeypatch, capfd):
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4)
    interrupt_after(trainer, 9, monkeypatch)  # in the third epoch
    trainer.run(progress=False)
    assert checkpoint.read(tmp_path / "last.pt")["epoch"] == 2
    assert (
        f"interrupted in epoch 2: the epochs before it are in {tmp_path}" in capfd.readouterr().out
    )


def test_interrupted_run_goes_on_as_if_there_had_been_no_break(data, tmp_path, monkeypatch):
    settings = {"epochs": 4, "batch_size": 4}
    whole = trainer_for(data, tmp_path / "whole", **settings)
    whole.run(progress=False)
    broken = trainer_for(data, tmp_path / "broken", **settings)
    interrupt_after(broken, 10, monkeypatch)  # steps of the third epoch are lost
    broken.run(progress=False)
    resumed = trainer_for(data, tmp_path / "broken", **settings)
    resumed.resume(tmp_path / "broken" / "last.pt")
    resumed.run(progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.averages, resumed.averages, strict=True))


def leaves_of(value: object, way: str = "") -> dict[str, object]:
    """Return what a state holds by the way to it, without times."""
    items = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(items, dict):
        return {} if way.endswith("seconds") else {way: value}
    found = [leaves_of(x, f"{way} {name}") for name, x in items.items()]
    return {name: x for leaves in found for name, x in leaves.items()}


def assert_same_end(one: Path, two: Path) -> None:
    """Assert that two trainings have left the same states, bit by bit, but for times."""
    for name in ("last.pt", "best.pt"):
        a, b = (leaves_of(checkpoint.read(out / name)) for out in (one, two))
        assert a.keys() == b.keys()
        assert not [way for way in a if not torch.as_tensor(a[way] == b[way]).all()]


@pytest.mark.parametrize("engine", ["spline", "plain"])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_an_interrupted_first_epoch_begins_again(data, tmp_path, monkeypatch, num_steps, engine):
    """Its weights so far are `best.pt`; no row of the history, and no candidate once it is over."""
    settings = {"epochs": 2, "batch_size": 4, "engine": engine}
    trainer_for(data, tmp_path / "whole", **settings).run(progress=False)
    broken = trainer_for(data, tmp_path / "broken", **settings)
    interrupt_after(broken, num_steps, monkeypatch)
    broken.run(progress=False)
    assert broken.interrupted and broken.history == []
    assert not (tmp_path / "broken" / "history.csv").exists()
    so_far = [*checkpoint.load(tmp_path / "broken" / "best.pt").parameters()]
    assert all(torch.equal(a, b) for a, b in zip(so_far, broken.kept.parameters(), strict=True))
    resumed = trainer_for(data, tmp_path / "broken", **settings)
    moved = [not torch.equal(a, b) for a, b in zip(so_far, resumed.weights, strict=True)]
    assert any(moved) == (num_steps > 0)
    resumed.resume(tmp_path / "broken" / "last.pt")
    again = checkpoint.load(tmp_path / "broken" / "best.pt").parameters()
    assert all(torch.equal(a, b) for a, b in zip(so_far, again, strict=True))
    resumed.run(progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


def test_a_first_epoch_that_is_interrupted_while_it_is_judged_begins_again(
    data, tmp_path, monkeypatch
):
    settings = {"epochs": 2, "batch_size": 4}
    trainer_for(data, tmp_path / "whole", **settings).run(progress=False)
    broken = trainer_for(data, tmp_path / "broken", **settings)
    judged, calls = broken._judged, []

    def interrupted():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return judged()

    monkeypatch.setattr(broken, "_judged", interrupted)
    broken.run(progress=False)
    assert len(calls) == 2 and broken.epoch == 0
    resumed = trainer_for(data, tmp_path / "broken", **settings)
    resumed.resume(tmp_path / "broken" / "last.pt")
    resumed.run(progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("save_every", [-1.0, 5.0])
@pytest.mark.parametrize("n", range(1, 7))
def test_files_that_an_interrupt_finds_half_written_are_written_whole(
    data, tmp_path, monkeypatch, n, save_every
):
    """Of three epochs, last.pt and best.pt each, or of the first and the last one alone."""
    monkeypatch.setattr("molnets.training.trainer.SAVE_EVERY", save_every)
    trainer = trainer_for(data, tmp_path, epochs=3, batch_size=4)
    save, names = trainer.save, []

    def interrupted(state: dict, path: Path) -> None:
        names.append(path.name)
        if len(names) == n:
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(trainer, "save", interrupted)
    trainer.run(progress=False)
    num_saves = 6 if save_every < 0 else 4
    assert trainer.interrupted == (n <= num_saves)
    last, best = (checkpoint.read(tmp_path / name) for name in ("last.pt", "best.pt"))
    assert trainer.epoch == ((n + 1) // 2 if n < 3 or save_every < 0 else 3)
    assert last["epoch"] == trainer.epoch and last["history"] == trainer.history
    assert all(torch.equal(best["model"][name], x) for name, x in last["kept"].items())
    with (tmp_path / "history.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [*range(1, trainer.epoch + 1)]


def test_nan_stops_with_the_batch_named(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4)
    with torch.no_grad():
        trainer.weights[0][:] = torch.nan
    message = r"the loss is nan in epoch 0, step 0, frames \[.*\]; no weights are kept"
    with pytest.raises(FloatingPointError, match=message):
        trainer.run(progress=False)
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4)
    trainer.run_epoch()
    with torch.no_grad():
        trainer.weights[0][:] = torch.nan
    message = rf"in epoch 1, step 0, .*the weights of the epoch before are in {tmp_path}"
    with pytest.raises(FloatingPointError, match=message):
        trainer.run_epoch()
    assert (
        evaluate(checkpoint.load(tmp_path / "last.pt"), data, torch.arange(4))[1].isfinite().all()
    )


def test_early_stopping(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=50, batch_size=4, patience=2)
    trainer.best = 0.0  # nothing can be better
    trainer.run(progress=False)
    assert trainer.epoch == 2


def test_minutes_are_a_budget_that_also_pays_for_saving(data, tmp_path, monkeypatch):
    now = [0.0]

    def read_the_clock() -> float:
        now[0] += 0.01  # every look at the clock takes ten milliseconds
        return now[0]

    monkeypatch.setattr("molnets.training.trainer.time.perf_counter", read_the_clock)
    trainer = trainer_for(data, tmp_path, epochs=100_000, minutes=2 / 60, batch_size=4)
    save = trainer.save

    def slow_save(state: dict, path: Path) -> None:
        save(state, path)
        now[0] += 0.03

    monkeypatch.setattr(trainer, "save", slow_save)
    trainer.run(progress=False)
    assert 2 <= trainer.seconds <= now[0] < 2.4
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-4  # the schedule ends with the budget


# What it refuses


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 17}, "batch_size: expected 1 to 16, the number of training frames, got 17"),
        ({"batch_size": 0}, "batch_size: .* got 0"),
        ({"epochs": 0}, "epochs: expected a positive integer, got 0"),
        ({"epochs": -1}, "epochs: expected a positive integer, got -1"),
        ({"minutes": -1.0}, "minutes: expected .*not negative, got -1"),
        ({"minutes": math.nan}, "minutes: expected .*not negative, got nan"),
        ({"lr": 0.0}, "lr: expected a positive finite number, got 0"),
        ({"weight_decay": -0.1}, "weight_decay: expected .*not negative, got -0.1"),
        ({"clip_norm": -1.0}, "clip_norm: expected .*not negative, got -1"),
        ({"patience": -1}, "patience: expected .*not negative, got -1"),
        ({"rho_energy": -0.1}, "rho_energy: expected .*not negative, got -0.1"),
        ({"rho_forces": -0.1}, "rho_forces: expected .*not negative, got -0.1"),
        ({"rho_energy": 0.0, "rho_forces": 0.0}, "rho_energy, rho_forces: expected one .*above 0"),
        ({"ema_decay": 1.0}, "ema_decay: expected 0 or more, below 1, got 1.0"),
        ({"engine": "fast"}, "engine: expected one of .*got 'fast'"),
    ],
)
def test_bad_settings_are_named(data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(data, tmp_path, **settings)


def test_splits_and_folders_that_do_not_do(data, tmp_path):
    potential, none = standardized(SIZES, data, torch.arange(16)), torch.arange(0)
    with pytest.raises(ValueError, match="validation: expected at least one frame, got an empty"):
        Trainer(potential, data, torch.arange(16), none, Settings(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out: expected a folder, got .*file, which is a file"):
        trainer_for(data, tmp_path / "file")
    with pytest.raises(ValueError, match=r"out: expected a folder, got .*run; .*file is a file"):
        trainer_for(data, tmp_path / "file" / "run")


def test_averages_have_no_history(data, tmp_path):
    """A history of theirs would grow with every step, and with it the time of a validation."""
    trainer = trainer_for(data, tmp_path)
    trainer.run_epoch()
    assert all(x.grad_fn is None and not x.requires_grad for x in trainer.ema.parameters())
    assert any((a != w).any() for a, w in zip(trainer.averages, trainer.weights, strict=True))


def test_frames_of_weight_zero_decide_nothing(data):
    """Neither the scale nor the energies of elements, nor which elements are known."""
    frames = torch.arange(16)
    expected = standardized(SIZES, data.subset(frames[3:]), torch.arange(13))
    data.weights[:3], data.energies[:3], data.forces[:21] = 0.0, 1e3, 1e6
    data.z[:7] = 2
    found = standardized(SIZES, data, frames)
    assert torch.equal(found.element_energies, expected.element_energies)
    assert float(found.scale) == float(expected.scale)
    assert found.card.elements == [1, 6] and found.card.num_frames == 16
    data.weights[:16] = 0.0
    with pytest.raises(ValueError, match="frames: expected some of a weight above 0"):
        standardized(SIZES, data, frames)


def test_test_frames_do_not_change_the_loss_of_training(tmp_path):
    """Energies count by atom of the mean size in training: of 3 and 1 atoms, not of 5 and 4."""
    data = of_sizes()
    data.alone[:] = False
    settings = Settings(batch_size=1, rho_energy=0.5)
    train = torch.tensor([0, 1])
    potential = standardized(SIZES, data, train)
    trainer = Trainer(potential, data, train, torch.tensor([2]), settings, tmp_path)
    expected = 0.5 * (2.0 / torch.tensor([3.0, 1, 5, 2, 4]).double()) ** 2
    assert torch.allclose(trainer.factors[:, 0], expected, rtol=1e-12)
    data.weights[1] = 0.0  # the mean size is 3 now
    expected = 0.5 * data.weights * (3.0 / torch.tensor([3.0, 1, 5, 2, 4]).double()) ** 2
    assert torch.allclose(settings.factors(data, train)[:, 0], expected, rtol=1e-12)
