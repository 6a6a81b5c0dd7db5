"""SchNet's building blocks: graph, embedding, radial expansion, model and drawing.

Axes:   N atoms in the batch, B samples, E directed edges j -> i, F features, K Gaussians.
Units:  the caller's length unit; gamma is 1 / length**2; the energy unit is the training data's.
Edges:  edge_index[0] = j sends, edge_index[1] = i receives (PyG's convention).

[1] Schütt et al., NeurIPS 2017, arXiv:1706.08566.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import InteractionBlock, ShiftedSoftplus

try:
    from torch_cluster import radius_graph
except (ImportError, OSError):  # OSError: a wheel that was built for another torch
    radius_graph = None

MAX_PAIRS = 4_000_000  # candidate pairs held in memory at once by the search without torch_cluster
SEARCH_MARGIN = 1e-4  # the k-d tree searches this much further, so its rounding decides nothing
FIGURE_STYLE = {
    **{"font.family": "STIXGeneral", "mathtext.fontset": "stix"},  # a serif, as the PDF's text
    **{"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 9},
    **{"figure.constrained_layout.use": True, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False},
    "svg.hashsalt": "schnet",  # equal figures are equal bytes
}


def expect(
    ok: bool | Tensor, name: str, expected: str, got: object, error: type[Exception] = ValueError
) -> None:
    """Raise an error that names the argument, what was expected and what came, unless all is ok."""
    if not ok:
        raise error(f"{name}: expected {expected}, got {got}")


def expect_tensor(name: str, value: Tensor) -> None:
    """Expect a tensor."""
    expect(isinstance(value, Tensor), name, "a tensor", type(value), TypeError)


def expect_size(name: str, value: int) -> None:
    """Expect a positive integer."""
    expect(isinstance(value, numbers.Integral) and value > 0, name, "a positive integer", value)


def expect_sizes(**sizes: int) -> None:
    """Expect positive integers."""
    for name, value in sizes.items():
        expect_size(name, value)


def expect_positive(name: str, value: float) -> None:
    """Expect a positive number, neither tiny nor huge."""
    ok = isinstance(value, numbers.Real) and 1e-15 < value < 1e15  # its square fits into float32
    expect(ok, name, "a positive finite number", value)


def sample_sizes(batch: Tensor) -> Tensor:
    """Return the number of atoms of each sample, (B,).

    Args:
        batch: the sample that each atom belongs to, (N,), int64, ascending from 0 without gaps.

    Raises:
        TypeError, ValueError: for another dtype or rank, an empty, unsorted or gappy batch.
    """
    expect_tensor("batch", batch)
    expect(batch.dtype == torch.int64, "batch", "dtype torch.int64", batch.dtype, TypeError)
    expect(batch.ndim == 1, "batch", "shape (N,)", tuple(batch.shape))
    expect(len(batch) > 0, "batch", "at least one atom", "an empty batch")
    steps = batch.diff()
    expect((steps >= 0).all(), "batch", "sample numbers in ascending order", batch)
    gapless = batch[0] == 0 and (steps <= 1).all()
    expect(gapless, "batch", "the samples 0, 1, 2, ... without gaps", batch)
    return batch.bincount()


def spread_atomic_numbers(z: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Return one atomic number per atom, (N, 1), from one per sample, (B, 1), or per atom, (N, 1).

    Raises:
        TypeError, ValueError: for numbers that are not real and finite, or of another shape.
    """
    expect_tensor("z", z)
    numeric = not (z.is_complex() or z.dtype == torch.bool)
    expect(numeric, "z", "floating-point or integer numbers", z.dtype, TypeError)
    per_sample, per_atom = (batch_size, 1), (len(batch), 1)
    shape = (len(z), 1) if z.ndim == 1 else tuple(z.shape)
    expected = f"shape {per_sample}, one per sample, or {per_atom}, one per atom"
    expect(shape in (per_sample, per_atom), "z", expected, tuple(z.shape))
    expect(z.isfinite().all(), "z", "finite atomic numbers", "NaN or infinity")
    whole = (z >= 0) & (z == z.round())
    expect(whole.all(), "z", "whole numbers, 0 or more", z[~whole].tolist())
    return z.reshape(-1, 1) if shape == per_atom else z.reshape(-1, 1)[batch]


def expect_positions(pos: Tensor, batch: Tensor) -> None:
    """Expect finite positions, (N, 3), one for each atom of the batch and on its device."""
    expect_tensor("pos", pos)
    expect(pos.is_floating_point(), "pos", "a floating-point dtype", pos.dtype, TypeError)
    expect(pos.shape == (len(batch), 3), "pos", f"shape ({len(batch)}, 3)", tuple(pos.shape))
    expect(batch.device == pos.device, "batch", f"device {pos.device} as pos", batch.device)
    if not pos.isfinite().all():
        atom = int((~pos.isfinite()).any(dim=1).nonzero()[0])
        expect(False, "pos", "finite numbers", f"{pos[atom].tolist()} for atom {atom}")


def expect_features(x: Tensor, shape: tuple[int, int]) -> None:
    """Expect as many rows and features of an embedding as there are atoms and inputs to come."""
    expect(x.shape == shape, "embedding", f"a module that returns {shape}", tuple(x.shape))


def expect_like(weight: Tensor, z: Tensor, pos: Tensor) -> None:
    """Expect atomic numbers and positions on the device of a weight, positions of its dtype."""
    dtype, device = weight.dtype, weight.device
    for name, tensor in (("z", z), ("pos", pos)):
        expect_tensor(name, tensor)
        expect(tensor.device == device, name, f"device {device} as the model", tensor.device)
    expect(pos.dtype == dtype, "pos", f"dtype {dtype} as the model", pos.dtype, TypeError)


def checked_atoms(z: Tensor, pos: Tensor, batch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return an atomic number per atom, (N, 1), and the size of each sample, (B,), if all fits."""
    n_atoms = sample_sizes(batch)
    expect_like(weight, z, pos)
    batch_is_odd = len(batch) != pos.numel() // 3 == z.numel()  # of three lengths
    expected = f"shape {tuple(pos.shape[:1])} as z and pos"
    expect(not batch_is_odd, "batch", expected, tuple(batch.shape))
    return spread_atomic_numbers(z, batch, len(n_atoms)), n_atoms


class RadiusInteractionGraph(nn.Module):
    """Connect all atoms of a sample that are closer than the cutoff, in both directions.

    N(i) = {j ≠ i : ‖r_j − r_i‖ < r_c, batch_j = batch_i}

    No neighbour is ever dropped. On a CPU torch_cluster's k-d tree finds the pairs; without it, and
    on a GPU, torch compares all pairs, in pieces of bounded memory. Both find the same edges.

    Args:
        cutoff: r_c.
        max_num_neighbors: a promise, not a filter: an atom with more neighbours is an error.
    """

    def __init__(self, cutoff: float, max_num_neighbors: int | None = None) -> None:
        super().__init__()
        expect_positive("cutoff", cutoff)
        if max_num_neighbors is not None:
            expect_size("max_num_neighbors", max_num_neighbors)
        self.cutoff = float(cutoff)
        self.max_num_neighbors = max_num_neighbors

    @torch.compiler.disable  # the k-d tree and the checks look at values
    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges, (2, E), and their lengths d_ij, (E,), differentiable in `pos`.

        Args:
            pos: positions, (N, 3), floating point.
            batch: the sample that each atom belongs to, (N,), int64, ascending.

        Raises:
            TypeError, ValueError: for bad input, two atoms in one place, more neighbours than said.
        """
        n_atoms = sample_sizes(batch)
        expect_positions(pos, batch)
        edge_index = edges_within(self.cutoff, pos.detach(), batch, n_atoms)  # (2, E)
        d_ij = distances(pos, edge_index)  # (E,)
        expect_edges(edge_index, d_ij, self.max_num_neighbors)
        return edge_index, d_ij


def expect_edges(edge_index: Tensor, d_ij: Tensor, limit: int | None) -> None:
    """Expect no two atoms in one place, and no atom with more neighbours than a limit."""
    if (d_ij == 0).any():
        pair = edge_index[:, d_ij == 0][:, 0].tolist()
        raise ValueError(f"pos: expected distinct positions, got atoms {pair} in one place")
    if limit is not None:
        most = int(edge_index[1].bincount(minlength=1).max())
        expect(most <= limit, "max_num_neighbors", f"{most} or more for this graph", limit)


def edges_within(cutoff: float, pos: Tensor, batch: Tensor, n_atoms: Tensor) -> Tensor:
    """Return the directed edges, (2, E), shorter than the cutoff, within samples, none dropped."""
    pos = pos.to(torch.promote_types(pos.dtype, torch.float32))
    if radius_graph is None or not pos.is_cpu:
        return _search_all_pairs(pos, n_atoms, cutoff)
    most = int(n_atoms.max())  # no atom has more neighbours than its sample has atoms
    edge_index = radius_graph(pos, cutoff * (1 + SEARCH_MARGIN), batch, max_num_neighbors=most)
    return edge_index[:, distances(pos, edge_index) < cutoff]


def distances(pos: Tensor, edge_index: Tensor) -> Tensor:
    """Return the lengths of the edges, ‖r_j − r_i‖, (E,)."""
    j, i = edge_index
    return torch.linalg.vector_norm(pos[j] - pos[i], dim=-1)


def _search_all_pairs(pos: Tensor, n_atoms: Tensor, cutoff: float) -> Tensor:
    size = n_atoms.repeat_interleave(n_atoms)  # (N,): how many atoms the sample of i has
    first = (n_atoms.cumsum(0) - n_atoms).repeat_interleave(n_atoms)  # (N,): the first one of them
    rows = max(1, MAX_PAIRS // int(n_atoms.max()))
    edges = []
    for receivers in torch.arange(len(pos), device=pos.device).split(rows):
        counts = size[receivers]
        starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        i = receivers.repeat_interleave(counts)
        j = first[i] + torch.arange(len(i), device=pos.device) - starts
        pairs = torch.stack([j, i])
        edges.append(pairs[:, (distances(pos, pairs) < cutoff) & (i != j)])
    return torch.cat(edges, dim=1)


class ElementEmbedding(nn.Embedding):
    """Look a trainable vector up for each element, as [1] does: x_i^0 = a_{Z_i}.

    Pass it to `SchNet` in place of the sheet's linear layer when there are several elements.
    `dim_embedding` is the number of features F, `max_z` the largest atomic number with a vector.
    """

    def __init__(self, dim_embedding: int, max_z: int = 100) -> None:
        super().__init__(max_z + 1, dim_embedding)

    def forward(self, z: Tensor) -> Tensor:
        """Return the vectors of the atomic numbers `z`: (N, 1) -> (N, F).

        Raises:
            ValueError: if a number is not whole, negative, or larger than `max_z`.
        """
        index = z.squeeze(-1).long()
        ok = (index == z.squeeze(-1)) & (index >= 0) & (index < self.num_embeddings)
        if not torch.compiler.is_compiling():
            expect(ok.all(), "z", f"whole numbers from 0 to {self.num_embeddings - 1}", z)
        return super().forward(index)


class RadialExpansion(nn.Module):
    """Expand distances in Gaussians, section 4.1 of [1].

    e_k(d) = exp(−γ (d − μ_k)²)

    Args:
        gamma: γ, 1 / length².
        mu: the centres μ_k, (K,), a tensor, array or list; like γ a buffer, which `.double()`,
            `.to(device)` and `load_state_dict` reach.
    """

    def __init__(self, gamma: float, mu: Tensor | Sequence[float]) -> None:
        super().__init__()
        expect_positive("gamma", gamma)
        mu = as_centers(mu)  # (K,)
        self.register_buffer("gamma", torch.tensor(float(gamma), dtype=mu.dtype))
        self.register_buffer("mu", mu)

    def expand(self, d: Tensor) -> Tensor:
        """Return the K Gaussians of each distance: (...,) -> (..., K).

        Raises:
            TypeError: if `d` has another dtype than `mu`.
        """
        expect(d.dtype == self.mu.dtype, "d", f"dtype {self.mu.dtype} as mu", d.dtype, TypeError)
        return torch.exp(-self.gamma * (d.unsqueeze(-1) - self.mu) ** 2)

    forward = expand


def as_centers(mu: Tensor | Sequence[float]) -> Tensor:
    """Return centres as a tensor of their own, (K,); integers become floating-point numbers."""
    if not (isinstance(mu, Tensor) and mu.is_floating_point()):
        mu = torch.as_tensor(mu, dtype=torch.get_default_dtype())
    expect(mu.ndim == 1 and len(mu) > 0, "mu", "shape (K,), K > 0", tuple(mu.shape))
    expect(mu.isfinite().all(), "mu", "finite centres", mu.tolist())
    return mu.detach().clone()


class SchNet(nn.Module):
    """Predict the energy of each sample with continuous-filter convolutions [1].

    x_i^0 = a(Z_i);  x_i^{l+1} = x_i^l + v^l(Σ_{j∈N(i)} (A^l x_j^l) ∘ W^l(d_ij));  E = Σ_i E(x_i^L)

    v^l is dense - shifted softplus - dense. The interaction blocks are PyG's and differ from [1] in
    three points: the filter network W^l has a shifted softplus after its first layer only, not also
    after its second; it is multiplied by ½ (cos(π d / r_c) + 1), so a neighbour fades out as it
    leaves; A^l has no bias. The sheet's embedding is affine in Z; [1] has `ElementEmbedding`.

    Args:
        dim_embedding: number of features F.
        num_filters: width of the filters W^l.
        num_interactions: number of interaction blocks L.
        num_gaussians: number of Gaussians K, their centres spread evenly over [0, r_c].
        cutoff: r_c, in the unit of the positions.
        gamma: γ of the Gaussians, 1 / length².
        embedding: a module that takes the place of `Linear(1, F)`; it gets the atomic numbers of
            all atoms, (N, 1), in the dtype of the positions, and returns (N, F).

    Raises:
        ValueError: if a size is not a positive integer, or `cutoff` or `gamma` not positive.
    """

    def __init__(
        self, dim_embedding: int = 32, num_filters: int = 32, num_interactions: int = 2,
        num_gaussians: int = 10, cutoff: float = 5.0, gamma: float = 4.0,
        embedding: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_sizes(dim_embedding=dim_embedding, num_filters=num_filters,
                     num_interactions=num_interactions, num_gaussians=num_gaussians)  # fmt: skip
        self.interaction_graph = RadiusInteractionGraph(cutoff)
        self.cutoff = float(cutoff)
        self.embedding = nn.Linear(1, dim_embedding) if embedding is None else embedding
        self.radial_expansion = RadialExpansion(gamma, torch.linspace(0, cutoff, num_gaussians))
        self.interactions = nn.ModuleList(
            InteractionBlock(dim_embedding, num_gaussians, num_filters, self.cutoff)
            for _ in range(num_interactions)
        )
        hidden = max(1, dim_embedding // 2)
        self.readout = nn.Sequential(
            nn.Linear(dim_embedding, hidden), ShiftedSoftplus(), nn.Linear(hidden, 1)
        )
        self.register_load_state_dict_post_hook(_expect_same_cutoff)

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Return the energy of each sample, (B, 1).

        Args:
            z: atomic numbers, float or integer, one per sample, (B, 1), or per atom, (N, 1).
            pos: positions, (N, 3), with the dtype and on the device of the parameters.
            batch: the sample that each atom belongs to, (N,), int64, ascending.

        Raises:
            TypeError, ValueError: for bad input, or two atoms in one place.
        """
        z, n_atoms = checked_atoms(z, pos, batch, self.readout[0].weight)  # (N, 1), (B,)
        edge_index, d_ij = self.interaction_graph(pos, batch)  # step 2: (2, E), (E,)
        energy_i = self.energy_per_atom(z, edge_index, d_ij)  # steps 1, 3, 4, 5: (N, 1)
        return energy_i.new_zeros(len(n_atoms), 1).index_add(0, batch, energy_i)  # -> (B, 1)

    def energy_per_atom(self, z: Tensor, edge_index: Tensor, d_ij: Tensor) -> Tensor:
        """Return the energy of each atom, (N, 1), from z (N, 1), edges (2, E), lengths (E,)."""
        d_ij = d_ij.clamp(max=self.cutoff)  # C(r_c) = 0, but PyG's cosine rises again beyond
        x = self.embedding(z.to(d_ij.dtype))  # step 1: (N, 1) -> (N, F)
        expect_features(x, (len(z), self.readout[0].in_features))
        e_ij = self.radial_expansion.expand(d_ij)  # step 3: (E,) -> (E, K)
        for interaction in self.interactions:
            x = x + interaction(x, edge_index, d_ij, e_ij)  # step 4: (N, F)
        return self.readout(x)  # step 5: (N, F) -> (N, 1)

    def atomic_energies(self, z: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
        """Return the same from edges: their index, (2, E), and vectors r_j − r_i, (E, 3)."""
        edge_index, r_ij = edges
        return self.energy_per_atom(z, edge_index, torch.linalg.vector_norm(r_ij, dim=1))


def _expect_same_cutoff(model: SchNet, _: object) -> None:
    last = float(model.radial_expansion.mu[-1])
    ok = len(model.radial_expansion.mu) == 1 or math.isclose(last, model.cutoff, rel_tol=1e-3)
    expect(ok, "state_dict", f"weights for cutoff {model.cutoff}", f"weights for {last}")


def use_figure_style() -> None:
    """Set matplotlib to the style of all figures, and notebooks to show them as vector graphics."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.rcParams.update(FIGURE_STYLE)
    set_matplotlib_formats("svg", metadata={"Date": None})  # no time stamp: equal bytes


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> object:
    """Return a table that a notebook and its PDF show; give numbers as strings, formatted."""
    from IPython.display import Markdown

    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def save_figure(fig: Figure, name: str) -> Path:
    """Write `figures/<name>`, an SVG, below the working directory, whole or not at all."""
    path = Path("figures", name)
    expect(path.suffix == ".svg", "name", "a file name that ends in .svg", name)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    fig.savefig(unfinished, metadata={"Date": None})
    os.replace(unfinished, path)
    return path


def visualize_graph(
    positions: Tensor, edge_index: Tensor, dim_1: int, dim_2: int, ax: Axes | None = None
) -> Axes:
    """Draw the projection of a graph on two coordinate axes, its edges shaded by length.

    Args:
        positions: positions of one sample, (n, 3).
        edge_index: its edges, (2, E).
        dim_1: the coordinate drawn to the right: 0, 1 or 2.
        dim_2: the coordinate drawn upwards.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: for other shapes, edges to atoms that do not exist, or axes that do not.
    """
    n = len(positions)
    expect(positions.shape == (n, 3), "positions", "shape (n, 3)", tuple(positions.shape))
    shape = tuple(edge_index.shape)
    expect(len(shape) == 2 == shape[0], "edge_index", "shape (2, E)", shape)
    known = (edge_index >= 0) & (edge_index < n)
    expect(known.all(), "edge_index", f"atoms 0 to {n - 1}", edge_index)
    ok = dim_1 != dim_2 and {dim_1, dim_2} <= {0, 1, 2}
    expect(ok, "dim_1, dim_2", "two of the axes 0, 1, 2", (dim_1, dim_2))
    ax = plt.subplots()[1] if ax is None else ax
    positions, edge_index = positions.detach().cpu(), edge_index.cpu()
    points = positions[:, [dim_1, dim_2]].numpy()
    lines = LineCollection(points[edge_index.T.numpy()], cmap="viridis", zorder=1)
    lines.set_array(distances(positions, edge_index).numpy())
    ax.add_collection(lines)
    ax.scatter(*points.T, s=25, color="black", zorder=2)
    ax.set(xlabel=f"${'xyz'[dim_1]}$ (length unit)", ylabel=f"${'xyz'[dim_2]}$ (length unit)")
    ax.set_aspect("equal")
    return ax
