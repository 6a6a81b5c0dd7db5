"""What several test files share: the two searches of the graph, and float64 as the default."""

from __future__ import annotations

import pytest
import torch

import schnet_helpers

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(params=["torch_cluster", "torch"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once with torch_cluster's k-d tree, once with the comparison of all pairs."""
    if request.param == "torch":
        monkeypatch.setattr(schnet_helpers, "radius_graph", None)
    elif schnet_helpers.radius_graph is None:
        pytest.skip("torch_cluster cannot be imported here")
    return request.param


@pytest.fixture
def float64():
    """Make float64 the default dtype of one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
