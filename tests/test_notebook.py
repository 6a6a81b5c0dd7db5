"""The committed notebook is executed, and a fresh run on a clean kernel says the same."""

from __future__ import annotations

import math
import os
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "schnet_assignment.ipynb"
RTOL, ATOL = 0.02, 1e-5  # printed numbers are rounded, and rounding errors differ between machines
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")
VOLATILE = "nbval-ignore-output"  # the tag of cells that print versions


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: NotebookNode) -> str:
    """Return all text that a cell shows, without figures."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return "".join(texts)


def differences(old: str, new: str) -> list[str]:
    """Say where two texts differ in a word, or in a number beyond the tolerance."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return [f"{old!r} became {new!r}"]
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return [
        f"{a} became {b}"
        for a, b in pairs
        if not math.isclose(float(a), float(b), rel_tol=RTOL, abs_tol=ATOL)
    ]


@pytest.fixture(scope="module")
def committed() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module", params=["torch_cluster", "torch"])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Run a copy in an empty folder; once as it is, once where torch_cluster cannot be imported."""
    folder = tmp_path_factory.mktemp(request.param)
    paths = [str(ROOT)]
    if request.param == "torch":
        (folder / "torch_cluster.py").write_text("raise ImportError('hidden by the test')\n")
        paths.insert(0, str(folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    return notebook, folder


def test_committed_notebook_is_executed_in_order(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        assert all(output.get("name") != "stderr" for output in cell.outputs)


def test_committed_notebook_alternates_prose_and_short_code(committed):
    kinds = [cell.cell_type for cell in committed.cells]
    assert ("code", "code") not in set(pairwise(kinds))
    assert max(len(cell.source.splitlines()) for cell in code_cells(committed)) <= 25
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_every_part_of_the_sheet_has_a_heading_and_an_answer(committed):
    prose = "\n".join(cell.source for cell in committed.cells if cell.cell_type == "markdown")
    for number in ("1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.1.5", "1.2"):
        assert re.search(rf"^#+ {re.escape(number)} ", prose, re.MULTILINE)
        assert re.search(rf"\*\*Question {re.escape(number)}\.\*\*.*\n\n\*\*Answer\.\*\*", prose)


def test_fresh_run_says_what_the_committed_one_says(committed, fresh):
    for old, new in zip(code_cells(committed), code_cells(fresh[0]), strict=True):
        assert all(output.get("name") != "stderr" for output in new.outputs), text_of(new)
        if VOLATILE not in old.metadata.get("tags", []):
            drift = differences(text_of(old), text_of(new))
            assert not drift, f"in the cell that begins {old.source.splitlines()[0]!r}: {drift}"


def test_fresh_run_uses_the_search_that_is_there(fresh, request):
    hidden = "torch_cluster.py" in os.listdir(fresh[1])
    try:
        import torch_cluster  # noqa: F401
    except ImportError:
        hidden = True
    said = text_of(code_cells(fresh[0])[0])
    assert said.endswith("torch, all pairs\n" if hidden else "torch_cluster\n")


def test_fresh_run_writes_the_committed_figures(fresh):
    written = {path.name for path in (fresh[1] / "figures").iterdir()}
    assert len(written) == 6
    assert written <= {path.name for path in (ROOT / "figures").iterdir()}


@pytest.mark.parametrize(
    "new, same",
    [
        ("error 0.0612 at 5", True),
        ("error 0.0612 at 6", False),
        ("error 0.070 at 5", False),
        ("error -0.061 at 5", False),
        ("errors 0.061 at 5", False),
        ("error 0.061 at 5 and 7", False),
    ],
)
def test_comparison_sees_words_and_numbers(new, same):
    assert (differences("error 0.061 at 5", new) == []) == same
    assert differences("rounding 2e-16", "rounding 4e-07") == []
