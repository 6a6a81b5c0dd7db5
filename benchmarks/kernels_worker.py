"""The kernel models' side of `benchmarks.minutes`: runs in an environment of its own, on files.

    python kernels_worker.py NAME RUN       RUN/frames.npz -> RUN/answers.npz, RUN/trained.json

It imports nothing of this project. Training is the choice of the kernel's width on some of the
training frames, judged by the frames that validate, and the solution with all of them; its time is
that of the processor, of this process and of those that it starts.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Callable[[Array], tuple[Array, Array]]  # R (T, n, 3) -> E (T,), F (T, n, 3)
Fit = Callable[[Array, Array, Array, Array, float], Model]  # z, R, E, F, width
WIDTHS = {"sgdml": range(10, 100, 10), "fchl19": (2.0, 5.0, 10.0, 20.0, 40.0)}
CHOSEN_ON = 200  # training frames at most, on which the width is chosen
PACKAGES = {"sgdml": "sgdml", "fchl19": "kernelforge"}
SOURCES = {
    "sgdml": "widths of the command `sgdml all`, its λ of 1e-10, symmetries found by itself",
    "fchl19": "`LocalKRRModel` with its representation's defaults; λ 1e-8 of its example for"
    " ethanol, energies and forces",
}


def seconds() -> float:
    """Return the processor's time of this process and of those that it started."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def of_sgdml() -> Fit:
    """Return what fits sGDML to frames: its trainer may be made only once."""
    from sgdml.predict import GDMLPredict
    from sgdml.train import GDMLTrain

    trainer = GDMLTrain(max_processes=1, use_torch=False)

    def fit(z: Array, R: Array, E: Array, F: Array, width: float) -> Model:
        given = {"type": "d", "name": np.array("frames"), "theory": np.array("DFT"),
                 "z": z.astype(np.uint8), "R": R, "E": E, "F": F}  # fmt: skip
        none = given | {"R": R[:1] + 1e-9, "E": E[:1], "F": F[:1]}  # it asks for other frames
        task = trainer.create_task(given, len(R), none, 1, int(width))
        predictor = GDMLPredict(trainer.train(task), max_processes=1, use_torch=False)

        def model(R: Array) -> tuple[Array, Array]:
            energies, forces = predictor.predict(R.reshape(len(R), -1))
            return energies, forces.reshape(R.shape)

        return model

    return fit


def of_fchl19() -> Fit:
    """Return what fits kernel ridge regression with FCHL19 to energies and forces of frames."""
    from kernelforge.models import LocalKRRModel

    def fit(z: Array, R: Array, E: Array, F: Array, width: float) -> Model:
        elements = sorted({int(x) for x in z})
        potential = LocalKRRModel(sigma=width, l2=1e-8, elements=elements)
        z = z.astype(np.int32)
        potential.fit([*R], [z] * len(R), energies=E, forces=F.reshape(len(F), -1))

        def model(R: Array) -> tuple[Array, Array]:
            energies, forces = potential.predict([*R], [z] * len(R))
            return np.asarray(energies), np.asarray(forces).reshape(R.shape)

        return model

    return fit


FITS = {"sgdml": of_sgdml, "fchl19": of_fchl19}


def train(name: str, given: dict[str, Array]) -> tuple[Model, dict[str, Any]]:
    """Return a model of the training frames, and how it was made."""
    fit, begun = FITS[name](), seconds()
    frames = [given[f"train_{x}"] for x in "REF"]
    tried = {}
    for width in WIDTHS[name]:
        model = fit(given["z"], *(x[:CHOSEN_ON] for x in frames), width)
        tried[width] = float(np.abs(model(given["valid_R"])[1] - given["valid_F"]).mean())
        print(width, tried[width], flush=True)
    width = min(tried, key=lambda width: tried[width])
    chosen = seconds() - begun
    model = fit(given["z"], *frames, width)
    record = {"processor_seconds": seconds() - begun, "choosing_seconds": chosen, "width": width,
              "tried": {str(key): error for key, error in tried.items()},
              "parameters": 3 * frames[0].shape[1] * len(frames[0])}  # fmt: skip
    if name == "fchl19":  # a coefficient for each energy, too
        record["parameters"] += len(frames[0])
    return model, record


def ms(model: Model, R: Array, rounds: int = 7) -> float:
    """Return the median time of energies and forces in ms of the processor."""
    lasted = []
    for _ in range(rounds):
        calls, begun = 0, seconds()
        while seconds() - begun < 0.3:  # the clock ticks every 10 ms
            model(R)
            calls += 1
        lasted.append((seconds() - begun) / calls)
    return 1000 * float(np.median(lasted))


def main() -> None:
    """Train, answer for the test frames, and write how it went."""
    name, run = sys.argv[1], Path(sys.argv[2])
    with np.load(run / "frames.npz", allow_pickle=False) as arrays:
        given = {key: arrays[key].astype(float) for key in arrays.files}
    model, record = train(name, given)
    E, F = model(given["test_R"])
    np.savez(run / "answers.npz", E=E, F=F)
    record |= {f"ms_{count}": ms(model, given["test_R"][:count]) for count in (1, 64)}
    record |= {"versions": {PACKAGES[name]: metadata.version(PACKAGES[name])},
               "source": SOURCES[name], "python": platform.python_version()}  # fmt: skip
    (run / "trained.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
