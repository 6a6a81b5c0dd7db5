"""The committed notebooks are executed, and fresh runs on a clean kernel say the same.

Tags of cells: `nbval-ignore-output` prints versions; `statistical` prints numbers that come out of
training or of chaotic dynamics, which the cell itself checks, so that only words are compared;
`needs-data` is compared where the data folder is, `needs-torch-cluster` where that is.
"""

from __future__ import annotations

import os
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import nbformat
import pypdf
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import schnet_helpers
from report.pdf_exporter import TypstPDFExporter

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SCHNET_DATA", ROOT.parent / "shared" / "data"))
FIGURES = {"schnet_assignment": 7, "schnet_md": 9, "molnets": 4}
RUNS = [
    ("schnet_assignment", "torch_cluster"),
    ("schnet_assignment", "torch"),
    pytest.param(("molnets", "torch_cluster"), marks=pytest.mark.slow),
    pytest.param(("schnet_md", "torch_cluster"), marks=pytest.mark.slow),
]
RTOL = 0.02  # of numbers in plain notation, besides one unit in the last digit printed
FACTOR, ROUNDING = 10, 2e-6  # numbers like 4e-08 are magnitudes; below ROUNDING they are noise
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: NotebookNode) -> str:
    """Return all text that a cell shows, without figures."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return "".join(texts)


def is_close(a: str, b: str) -> bool:
    """Compare two printed numbers: magnitudes by a factor, others by a tolerance."""
    x, y = abs(float(a)), abs(float(b))
    if float(a) * float(b) < 0:
        return max(x, y) < ROUNDING
    if "e" in a or "e" in b:
        return max(x, y) < ROUNDING or max(x, y) <= FACTOR * min(x, y)
    unit = 10.0 ** -len(a.partition(".")[2]) if "." in a else 0.0
    return abs(x - y) <= max(RTOL * max(x, y) if unit else 0.0, 1.001 * unit)


def differences(old: str, new: str) -> list[str]:
    """Say where two texts differ in a word, or in a number beyond the tolerance."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return [f"{old!r} became {new!r}"]
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return [f"{a} became {b}" for a, b in pairs if not is_close(a, b)]


def read(name: str) -> NotebookNode:
    return nbformat.read(ROOT / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module", params=FIGURES)
def committed(request: pytest.FixtureRequest) -> NotebookNode:
    return read(request.param)


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Run a copy in an empty folder; as it is, or where torch_cluster cannot be imported."""
    name, search = request.param
    folder = tmp_path_factory.mktemp(search)
    paths = [str(ROOT)]
    if search == "torch":
        (folder / "torch_cluster.py").write_text("raise ImportError('hidden by the test')\n")
        paths.insert(0, str(folder))
    notebook = read(name)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    return name, notebook, folder


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
    assert len(nbformat.writes(committed)) < 1_000_000


def test_every_part_of_the_sheet_has_a_heading_and_an_answer():
    cells = read("schnet_assignment").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for number in ("1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.1.5", "1.2"):
        assert re.search(rf"^#+ {re.escape(number)} ", prose, re.MULTILINE)
        assert re.search(rf"\*\*Question {re.escape(number)}\.\*\*.*\n\n\*\*Answer\.\*\*", prose)


def test_fresh_run_says_what_the_committed_one_says(fresh):
    name, notebook, folder = fresh
    hidden = (folder / "torch_cluster.py").exists() or schnet_helpers.radius_graph is None
    for old, new in zip(code_cells(read(name)), code_cells(notebook), strict=True):
        assert all(output.get("name") != "stderr" for output in new.outputs), text_of(new)
        tags = old.metadata.get("tags", [])
        if "nbval-ignore-output" in tags or ("needs-data" in tags and not DATA.is_dir()):
            continue
        if "needs-torch-cluster" in tags and hidden:
            continue
        before, after = text_of(old), text_of(new)
        if "statistical" in tags:
            before, after = NUMBER.sub("#", before), NUMBER.sub("#", after)
        drift = differences(before, after)
        assert not drift, f"in the cell that begins {old.source.splitlines()[0]!r}: {drift}"


def test_fresh_run_uses_the_search_that_is_there(fresh):
    name, notebook, folder = fresh
    hidden = (folder / "torch_cluster.py").exists() or schnet_helpers.radius_graph is None
    if name == "schnet_assignment":
        said = text_of(code_cells(notebook)[0])
        assert said.endswith("torch, all pairs\n" if hidden else "torch_cluster\n")


def test_fresh_run_writes_the_committed_figures(fresh):
    name, _, folder = fresh
    written = {path.name for path in (folder / "figures").iterdir()}
    assert len(written) == FIGURES[name]
    assert written <= {path.name for path in (ROOT / "figures").iterdir()}


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("error 0.061 at 5", "error 0.0612 at 5", True),
        ("error 0.061 at 5", "error 0.0612 at 6", False),
        ("error 0.061 at 5", "error 0.070 at 5", False),
        ("error 0.061 at 5", "error -0.061 at 5", False),
        ("error 0.061 at 5", "errors 0.061 at 5", False),
        ("error 0.061 at 5", "error 0.061 at 5 and 7", False),
        ("error 0.002", "error 0.003", True),
        ("error 0.002", "error 0.004", False),
        ("360 edges", "361 edges", False),
        ("within 4.0e-06", "within 6.0e-06", True),
        ("within 4.0e-06", "within 6.0e-05", False),
        ("within 2e-16", "within 4e-07", True),
    ],
)
def test_comparison_sees_words_and_numbers(old, new, same):
    assert (differences(old, new) == []) == same


@cache  # it takes seconds
def texts_of(path: Path) -> list[str]:
    """Return the text of each page, without spaces: where a PDF has them is a guess."""
    return ["".join(page.extract_text().split()) for page in pypdf.PdfReader(path).pages]


def fill_of(page: pypdf.PageObject) -> float:
    """Return how far down the page's text goes, as a share of its height, without the footer."""
    found = []

    def visit(text: str, page: list[float], line: list[float], _: object, __: object) -> None:
        y = line[4] * page[1] + line[5] * page[3] + page[5]
        if text.strip() and y > 45:  # the footer is below
            found.append(y)

    page.extract_text(visitor_text=visit)
    height = float(page.mediabox.height)
    return 1 - (min(found) - 45) / (height - 45)


@pytest.mark.parametrize(
    "name, most_pages", [("schnet_assignment", 18), ("schnet_md", 12), ("molnets", 14)]
)
def test_committed_pdf_is_the_committed_notebook(tmp_path, name, most_pages):
    about, notebook = {"metadata": {"name": name, "path": str(ROOT)}}, read(name)
    pdf, _ = TypstPDFExporter().from_notebook_node(notebook, about)
    (tmp_path / "again.pdf").write_bytes(pdf)
    assert len(pypdf.PdfReader(tmp_path / "again.pdf").pages) <= most_pages
    again, old = "".join(texts_of(tmp_path / "again.pdf")), "".join(texts_of(pdf_of(name)))
    for cell in code_cells(notebook):
        tags = cell.metadata.get("tags", [])
        if "remove_cell" in tags:
            continue
        printed = [output.text for output in cell.outputs if output.output_type == "stream"]
        source = [] if "remove_input" in tags else [cell.source]
        for line in "\n".join([*source, *printed]).splitlines():
            assert "".join(line.split()) in again
            assert "".join(line.split()) in old, f"not in the committed PDF, make report: {line}"


def pdf_of(name: str) -> Path:
    return ROOT / "report" / f"{name}.pdf"


@pytest.mark.parametrize("name", FIGURES)
def test_no_page_is_more_than_a_third_empty(name):
    pages = pypdf.PdfReader(pdf_of(name)).pages
    for number, page in enumerate(pages[:-1], 1):
        assert fill_of(page) > 2 / 3, f"page {number}"


def test_hand_in_has_every_graded_class_and_answer_on_seven_pages():
    texts = texts_of(pdf_of("schnet_assignment"))
    [first] = [n for n, text in enumerate(texts) if "AChecksandnotes" in text]
    assert first < 7  # the appendix begins on the seventh page at the latest
    before, _, _ = texts[first].partition("AChecksandnotes")
    hand_in = "".join([*texts[:first], before])
    parts = ["class RadiusInteractionGraph(nn.Module)", "class RadialExpansion(nn.Module)",
             "def __init__(self, gamma", "def expand(self, d: Tensor)", "torch.nn.Linear(1, 32)",
             "class SchNet(nn.Module)", "self.embedding = nn.Linear(1, dim_embedding)",
             "def forward(self, z: Tensor, pos: Tensor, batch: Tensor)"]  # fmt: skip
    parts += [f"Question {number}." for number in
              ("1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.1.5", "1.2")]  # fmt: skip
    for part in parts:
        assert "".join(part.split()) in hand_in, part
    assert hand_in.count("Answer.") == 6
    for name in ("due", "Exercise sheet", "Machine Learning for Molecular Physics"):
        assert "".join(name.split()) in texts[0], name


def test_helpers_are_listed_as_handed_in():
    whole = "".join(texts_of(pdf_of("schnet_assignment")))
    for line in (ROOT / "schnet_helpers.py").read_text().splitlines():
        assert "".join(line.split()) in whole, line


def test_readme_has_no_gaps():
    assert not re.search(r"@[A-Z]+@|TODO", (ROOT / "README.md").read_text())
