"""The weights of a SchNet, as the compiled passes take them, and whether they have changed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from molnets.tables.memory import same_bits
from molnets.tables.passes import Filters, Weights
from schnet_helpers import SchNet


class WeightReader:
    """The weights of a SchNet, copied to where the compiled passes take them from.

    Args:
        model: the network.
    """

    def __init__(self, model: SchNet) -> None:
        self.model = model
        self._seen, self._begins = torch.empty(0), np.empty(0, np.int64)
        self.tensors: list[Tensor] = []  # as they were read: the layers', the embedding's, buffers
        self.shapes: list[object] = []

    def layers(self) -> list[tuple[Tensor, ...]]:
        """Return the weights by kind, those of all blocks together; `parameters()` is slow."""
        model, layers = self.model, []
        for block in model.interactions._modules.values():
            parts = block._modules
            mlp, conv = parts["mlp"]._modules, parts["conv"]._modules
            dense = conv["lin1"], conv["lin2"], parts["lin"], mlp["0"], mlp["2"]
            layers.append([w for layer in dense for w in layer._parameters.values()])
        kinds = [kind for kind in zip(*layers, strict=True) if kind[0] is not None]
        first, _, second = model.readout._modules.values()
        ends = (*first._parameters.values(), *second._parameters.values())
        return kinds + [(w,) for w in ends]

    @torch.no_grad()
    def read(self) -> bool:
        """Copy the weights if they are others than the last time, bit by bit; return whether."""
        tensors = [w for kind in self.layers() for w in kind]
        tensors += self.model.embedding._parameters.values()
        tensors += self.model.radial_expansion._buffers.values()
        self.tensors = tensors = [x for x in tensors if x is not None]
        tensors = [x.contiguous() for x in tensors]
        shapes = [(x.shape, x.dtype) for x in tensors]
        if shapes == self.shapes:
            addresses = np.array([x.data_ptr() for x in tensors])
            if same_bits(addresses, self._begins, self._seen.view(torch.int32).numpy()):
                return False
        elif len({dtype for _, dtype in shapes}) > 1:
            raise TypeError(f"model: expected weights of one dtype, got {shapes}")
        self._seen, self.shapes = torch.cat([x.flatten() for x in tensors]), shapes
        words = [x.numel() * x.element_size() // 4 for x in tensors]  # of 32 bits
        self._begins = np.append(0, np.cumsum(words))
        return True

    def stacked(self) -> list[np.ndarray]:
        """Return what was read the last time, by kind: (L, ...) of the blocks, then the readout."""
        arrays, at, flat = [], 0, self._seen.numpy()
        for number, kind in enumerate(self.layers()):
            shape = kind[0].shape if number >= 9 else (len(kind), *kind[0].shape)
            arrays.append(flat[at : at + math.prod(shape)].reshape(shape))
            at += arrays[-1].size
        return arrays

    def weights(self) -> Weights:
        """Return the weights of the blocks and of the readout as they were read."""
        A, U1, b1, U2, b2, _, _, _, _, R1, c1, R2, c2 = self.stacked()
        transposed = (np.ascontiguousarray(x.swapaxes(-1, -2)) for x in (A, U1, U2, R1))
        At, U1t, U2t, R1t = transposed
        return Weights(A, At, U1, U1t, b1, U2, U2t, b2, R1, R1t, c1, R2, c2)

    def filters(self, e: np.ndarray, C: np.ndarray) -> Filters:
        """Return the weights of the filter networks, for `passes.tabulate`."""
        W1, b1, W2, b2 = self.stacked()[5:9]
        W1t, W2t = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (W1, W2))
        return Filters(W1, W1t, b1, W2, W2t, b2, e, C)
