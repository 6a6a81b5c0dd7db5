"""Do energies and forces belong together? Small networks are fitted to find out, in seconds.

First to forces alone: with F = −∂E/∂r it then knows energies too, up to a constant for each
composition and cell, and the slope of the data's energies by its own is about 1; −1 where a sign is
flipped, 23 where energies are in kcal/mol and forces in eV/Å. What a small network does not learn
makes that slope too steep, by up to 2: too much to see positions in Bohr, 1.89 or 0.53.

So in the second place it is fitted to forces and to energies divided by 1, 1.89 and 0.53. Only one
of these is the work of the forces: with the right one both are fitted better. Which, is said by
frames that were not fitted: what is left of energies and of forces, √ of the product, times how far
the factor is from the slope.

On few frames one such fit errs: of 36 with 20 sound frames of ethanol, six found a fault, with 30
frames one. So a fault is believed if three networks find it, each with frames of its own to fit and
to judge by; of the 24 sets of frames, that was none.

Energies that vary most decide. So where there are several compositions, those with most frames are
judged on their own, too: one file of several may be wrong.

Axes:   T frames, N atoms of all frames, P weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from torch import Tensor, nn

from molnets.checks import expect
from molnets.networks.schnet import Sizes
from molnets.potential import Potential
from molnets.tables import Frames, SplineForces, SplineSteps, tables_apply
from molnets.training.data import Dataset
from molnets.training.engines import laid_out, on_one_thread
from molnets.training.errors import evaluate

MOST_ROWS, LEAST_FRAMES = 12_000, 12
MOST_STEPS, LEAST_STEPS = 1000, 150  # of a fit
MOST_EDGES, MOST_PASSES = 8e6, 100  # that it visits; over its frames
BATCH, LR, WIDTH, REACH = 5, 5e-3, 32, 2.3  # reach: the cutoff, in distances of nearest neighbours
ROUGH = 4.0  # a slope further from 1 is another unit, whatever the network has not learned
LEAST_CORRELATION, CLEARLY = 0.6, 1.3
NUM_WITNESSES, ALIKE = 3, 2.5  # networks that must find a fault; and how far apart slopes may be
LEAST_PART, MOST_PARTS = 30, 4  # frames of a composition that is judged alone; how many of those
NEAR = (1.89, 0.529)  # positions in Bohr; the forces' unit of length, or that of the positions
KNOWN = {  # the slope, and what it would stand for
    23.06: "energies in kcal/mol and forces in eV", 27.21: "energies in eV and forces in Hartree",
    96.49: "energies in kJ/mol and forces in eV", 4.184: "energies in kJ/mol, forces in kcal/mol",
    1.89: "forces per Bohr and positions in Å",
}  # fmt: skip


class Consistency(NamedTuple):
    """What energies are, in units of what forces say, and how surely."""

    factor: float  # 1 for sound data; NaN if it cannot be told
    correlation: float  # of energies and those of a fit to forces
    advantage: float  # how much better this factor fits than the next one
    told: int = 0  # compositions of which it can be told on their own
    compositions: int = 1  # that there are

    def __str__(self) -> str:
        """Say it in one line."""
        if math.isnan(self.factor):
            told = "whether energies and forces belong together cannot be told from these frames"
            return f"{told}{self._parts()}"
        how = f"{self.factor:.3g} times as much " if self.factor != 1 else ""
        sure = f", fits {self.advantage:.1f} times as well as other factors"
        sure = "" if math.isinf(self.advantage) else sure
        said = f"energies change {how}as forces say (correlation {self.correlation:.2f}{sure})"
        return f"{said}{self._parts()}"

    def _parts(self) -> str:
        """Say of how many compositions it can be told, if there are several."""
        if self.compositions == 1:
            return ""
        return f"; on their own, it can be told of {self.told} of {self.compositions} compositions"


UNTOLD = Consistency(math.nan, 0.0, 0.0)


def consistency(data: Dataset, seed: int = 0) -> Consistency:
    """Return how energies go with forces; see the module's text."""
    found = _once(data, seed)
    for other in range(seed + 1, seed + NUM_WITNESSES):
        if math.isnan(found.factor) or found.factor == 1:
            return found
        again = _once(data, other).factor
        alike = again == found.factor or (again not in (1, *NEAR) and found.factor not in NEAR)
        if not (alike and 1 / ALIKE < again / found.factor < ALIKE):
            return UNTOLD._replace(correlation=found.correlation)
    return found


def _once(data: Dataset, seed: int) -> Consistency:
    """Return what one network finds, with frames that the seed chooses."""
    known = _usable(data)
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    rows = (3 * data.n_atoms[known]).cumsum(0)
    known = known[: max(LEAST_FRAMES, int((rows <= MOST_ROWS).sum()))]
    if len(known) < LEAST_FRAMES or not tables_apply(torch.device("cpu"), torch.float32):
        return UNTOLD
    some = data.subset(known)
    if not (some.forces.any() and some.energies.std() > 0):
        return UNTOLD
    with torch.random.fork_rng(devices=[]):
        return _judged(_Fits(some, seed))


def compositions(data: Dataset) -> list[tuple[str, Tensor]]:
    """Return the formula and the frames of each composition, the one with most frames first.

    Frames that say nothing of energies and forces are left out.
    """
    frames: dict[str, list[int]] = {}
    atoms = data.z.split(data.n_atoms.tolist())
    for frame in _usable(data).tolist():
        symbols = [chemical_symbols[z] for z in atoms[frame].tolist()]
        frames.setdefault(Formula.from_list(symbols).format("hill"), []).append(frame)
    found = [(formula, torch.tensor(own)) for formula, own in frames.items()]
    return sorted(found, key=lambda part: -len(part[1]))


def _usable(data: Dataset) -> Tensor:
    """Return the frames with energies and forces between atoms that count."""
    known = data.labels[:, :2].all(dim=1) & ~data.alone & (data.n_atoms > 1)
    return (known & (data.weights > 0)).nonzero().flatten()


def _judged(fits: _Fits) -> Consistency:
    found = fits.fitted(None)
    slope, r = found.slope, found.correlation
    if not abs(r) >= LEAST_CORRELATION:
        return UNTOLD._replace(correlation=r)
    if not 1 / ROUGH < slope < ROUGH:
        return Consistency(slope, r, math.inf)
    costs = {factor: fits.fitted(factor).rest * max(slope / factor, factor / slope)
             for factor in (1.0, *NEAR)}  # fmt: skip
    best, second = sorted(costs, key=costs.__getitem__)[:2]
    advantage = costs[second] / costs[best]
    if not advantage >= CLEARLY:
        return UNTOLD._replace(correlation=r)
    return Consistency(best, r, advantage)


class _Fit(NamedTuple):
    """On frames that were not fitted: energies by those of the fit, and what it leaves of both."""

    slope: float
    correlation: float
    rest: float  # of the squares of energies and of forces, √ of their product


class _Fits:
    """Frames, those to fit and those to judge by, and what the constants of energies belong to."""

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed, T = data, seed, len(data)
        self.fit, self.judge = torch.arange(2 * T // 3), torch.arange(2 * T // 3, T)
        self.cutoff = REACH * _nearest_distance(data)
        self.rms = float(data.forces.square().mean().sqrt())
        counts = torch.zeros(T, int(data.z.max()) + 1).double()
        frame = torch.arange(T).repeat_interleave(data.n_atoms)
        counts.index_put_((frame, data.z), torch.ones(len(data.z)).double(), accumulate=True)
        cells = torch.zeros(T, 9).double() if data.cells is None else data.cells.view(T, 9)
        keys = torch.cat([counts, (500 * cells / self.cutoff).round()], dim=1)
        self.group = keys.unique(dim=0, return_inverse=True)[1]

    def within(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return x less its mean over each group's own frames, (T,), and whether there are two."""
        none, group = torch.zeros(len(x), dtype=torch.float64), self.group[frames]
        num = none.index_add(0, group, torch.ones(len(frames)).double())
        sums = none.index_add(0, group, x[frames])
        return x - (sums / num.clamp(min=1))[self.group], num[self.group] > 1

    def fitted(self, factor: float | None) -> _Fit:
        """Return what comes of a fit to forces, and to energies / factor unless it is None."""
        data, factors = self.data, torch.zeros(len(self.data), 3).double()
        factors[:, 1] = 1 / (3 * data.n_atoms * self.rms**2)
        torch.manual_seed(self.seed)
        sizes = Sizes(WIDTH, WIDTH, 2, 20, self.cutoff, (10 / self.cutoff) ** 2)
        potential = Potential(sizes.build(), self.rms * self.cutoff / 3)
        frames = data.frames(self.cutoff, factors)
        frames = frames._replace(energies=torch.zeros_like(frames.energies))
        steps = SplineSteps(potential, frames)
        visited = float(data.edges(self.cutoff).counts[self.fit].double().mean()) * BATCH
        most = min(MOST_STEPS, MOST_EDGES / max(1.0, visited), MOST_PASSES * len(self.fit) / BATCH)
        num_steps = int(max(LEAST_STEPS, most))
        judge, energies = SplineForces(potential), data.energies / (factor or 1.0)

        def before(step: int) -> None:
            late = step - num_steps // 4
            if factor is not None and late >= 0 and late % max(1, num_steps // 20) == 0:
                self._set_energies(potential, judge, steps.frames, energies)

        _descend(potential, steps, self.fit, num_steps, before)
        return self._compared(potential, judge, energies)

    def _set_energies(
        self, potential: Potential, judge: nn.Module, frames: Frames, energies: Tensor
    ) -> None:
        """Let energies be fitted, with the constants that the network has for them now."""
        own = evaluate(potential, self.data, torch.arange(len(self.data)), forces_of=judge).energies
        (u, known), (e, _) = (self.within(x, self.fit) for x in (own.flatten(), energies))
        chosen = self.fit[known[self.fit]]
        frames.energies[chosen] = (own.flatten() - u + e)[chosen]
        frames.factors[chosen, 0] = 1 / float(e[chosen].square().mean().clamp(min=1e-300))

    def _compared(self, potential: Potential, judge: nn.Module, energies: Tensor) -> _Fit:
        data = self.data
        found = evaluate(potential, data, torch.arange(len(data)), forces_of=judge)
        both = found.energies.flatten(), energies
        (u, known), (e, _) = (self.within(x, self.judge) for x in both)
        chosen = self.judge[known[self.judge]]
        atoms = data.atoms_of(self.judge)
        u, e = u[chosen], e[chosen]
        uu, ee, ue = float(u @ u), float(e @ e), float(u @ e)
        if len(chosen) < 3 or min(uu, ee) <= 0:
            return _Fit(math.nan, math.nan, math.nan)
        left = float((found.forces - data.forces)[atoms].square().sum())
        rest = float((u - e).square().sum()) / ee * left / float(data.forces[atoms].square().sum())
        return _Fit(ue / uu, ue / math.sqrt(uu * ee), math.sqrt(rest))


def _nearest_distance(data: Dataset) -> float:
    """Return the median distance of an atom to the next, in some frames."""
    nearest = []
    for frame in range(min(20, len(data))):
        pos = data.pos[data.atoms_of(torch.tensor([frame]))]
        apart = torch.cdist(pos, pos).fill_diagonal_(torch.inf)
        nearest.append(apart.min(dim=1).values)
    return float(torch.cat(nearest).median())


def _descend(
    potential: Potential,
    steps: SplineSteps,
    frames: Tensor,
    num_steps: int,
    before: Callable[[int], None],
) -> None:
    """Fit the weights to some frames, along a cosine."""
    weights, generator = [*potential.parameters()], torch.Generator().manual_seed(0)
    flat = laid_out(weights)
    whole = nn.Parameter(flat)
    whole.grad = torch.zeros_like(flat)
    optimizer = torch.optim.AdamW([whole], lr=LR, weight_decay=0.0, fused=True)
    for step in range(num_steps):
        before(step)
        optimizer.param_groups[0]["lr"] = 0.5 * LR * (1 + math.cos(math.pi * step / num_steps))
        chosen = frames[torch.randint(len(frames), (BATCH,), generator=generator)]
        steps(chosen, weights, whole.grad)
        with on_one_thread():
            nn.utils.clip_grad_norm_([whole], 10.0)
            optimizer.step()


def check_units(data: Dataset) -> Consistency:
    """Check that forces are −∂E/∂r in the energy unit per length unit, where that can be told.

    Raises:
        ValueError: if they are not, in all frames or in those of a composition; the message says
            which, and what the factor could stand for.
    """
    found, told = consistency(data), 0
    _expect_sound(found, "")
    parts = compositions(data)
    if len(parts) < 2:
        return found
    for formula, frames in parts[:MOST_PARTS]:
        if len(frames) >= LEAST_PART:
            own = consistency(data.subset(frames))
            _expect_sound(own, f"in the {len(frames)} frames of {formula} ")
            told += own.factor == 1
    return found._replace(told=told, compositions=len(parts))


def _expect_sound(found: Consistency, where: str) -> None:
    ok = math.isnan(found.factor) or found.factor == 1
    why = "" if ok else ": forces of the other sign" if found.factor < 0 else _likely(found.factor)
    expected = "forces that are −∂E/∂r in the energy unit per length unit"
    expect(ok, "energies, forces", expected, f"{where}{found}{why}")


def _likely(factor: float) -> str:
    size = abs(math.log(factor))
    nearest = min(KNOWN, key=lambda known: abs(math.log(known) - size))
    if abs(math.log(nearest) - size) > math.log(2.5):
        return ": in units that are not each other's"
    return f": perhaps {KNOWN[nearest]}" + ("" if factor > 1 else ", the other way round")
