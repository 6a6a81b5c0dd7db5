"""Notebook -> PDF without TeX, a browser or the network.

    jupyter nbconvert --to report.pdf_exporter.TypstPDFExporter schnet_assignment.ipynb

Markdown:  nbconvert's own parser gives tokens, `Markdown` writes them as Typst.
Formulas:  all of a notebook go TeX -> Typst in one pandoc call.
Layout:    template.typ; the wheel `typst` compiles to PDF/UA-1 (tagged, and a glyph that no font
           has is an error instead of a box).
Captions:  a paragraph that begins **Figure 3.** right after a picture, or **Table 2.** right
           before or after a table, is its caption. The number typed is the number printed.
Title:     notebook metadata `title`, `subtitle`, `authors`, `matriculation`, `course`, `sheet`,
           `due`, `date`. What is still a placeholder is printed, and said in one warning.
Cell tags: remove_cell, remove_input, remove_output; `appendix` moves a cell, in its order, behind
           all others, under the heading of the metadata `appendix`.
Listings:  metadata `listings`, files beside the notebook, follow in an appendix of their own.
Pages:     code stays with what it shows, a sentence with its formula, a caption with its figure.
Errors:    whatever cannot be printed as it stands is a `ReportError` that names the cell.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import matplotlib
from nbconvert.exporters import Exporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from traitlets import List, Unicode
from traitlets.config import Config

from .formulas import ReportError, convert, load, quote, raw
from .markdown import PICTURES, Block, Markdown, Report, code_call, image

TEMPLATE = Path(__file__).with_name("template.typ")
RICHEST_FIRST = ("text/markdown", *PICTURES, "text/latex", "text/plain")
FONTS = {"text": "Libertinus Serif", "code": "DejaVu Sans Mono", "math": "New Computer Modern Math"}
Pieces = list[tuple[int, str]]  # Typst source, in order, with the cell that each part came from
# One by one: the folder also holds LastResortHE, whose boxes would pass for any character.
FALLBACK_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")


PLACEHOLDERS = {  # what the notebooks hold where the reader's own belongs -> how to set it
    "Your Name": "AUTHOR", "your matriculation number": "MATRICULATION",
}  # fmt: skip


def without_title(nb: NotebookNode, title: str) -> list[NotebookNode]:
    """The cells; a first heading that only repeats the title is left out."""
    for cell in [cell for cell in nb.cells if cell.cell_type == "markdown"][:1]:
        first, _, rest = cell.source.strip().partition("\n")
        if first == f"# {title}":
            cell.source = rest
    return nb.cells


def cell_blocks(report: Report, number: int, cell: NotebookNode) -> list[Block]:
    """What the tags of a cell leave of it."""
    tags = cell.metadata.get("tags", [])
    if "remove_cell" in tags:
        return []
    if cell.cell_type == "raw":
        report.fail(number, "a raw cell cannot be printed; the tag remove_cell leaves it out")
    if cell.cell_type == "markdown":
        return Markdown(report, number, cell.get("attachments", {})).blocks(cell.source)
    count = quote(f"[{cell.execution_count}]" if cell.execution_count else "")
    blocks = []
    if cell.source.strip() and "remove_input" not in tags:
        blocks.append(Block(number, code_call("code-cell", f"{count}, ", cell.source, "python")))
    outputs = [] if "remove_output" in tags else cell.outputs
    blocks += [block for output in outputs for block in output_blocks(report, number, output)]
    for block in blocks[:-1]:
        block.keep = True  # code and what it prints stay with what it shows
    return blocks


def output_blocks(report: Report, number: int, output: NotebookNode) -> list[Block]:
    """The richest form of an output that can be printed."""
    if output.output_type == "error":
        report.fail(number, f"the cell failed with {output.ename}: {strip_ansi(output.evalue)}")
    if output.output_type == "stream":
        is_blank = not output.text.strip()
        return [] if is_blank else [printed(number, output.text, output.name == "stderr")]
    mime = next((mime for mime in RICHEST_FIRST if mime in output.data), None)
    if mime is None:
        report.fail(number, f"an output that is only {', '.join(output.data)} cannot be printed")
    content = output.data[mime]
    if mime in PICTURES:
        picture = report.keep_bundle(output.data, mime)
        return [Block(number, picture, "picture", f"Output of cell {number}")]
    if mime == "text/plain":
        return [printed(number, content)]
    return Markdown(report, number, {}).blocks(content)


def printed(cell: int, text: str, is_error: bool = False) -> Block:
    """Text as a terminal shows it."""
    source = raw(strip_ansi(text).strip("\r\n"), block="true")
    return Block(cell, f"#output({source}, error: {str(is_error).lower()})\n\n")


def join_captions(blocks: list[Block]) -> list[Block]:
    """Hand every caption to its picture or table; beside neither, it stays a paragraph."""

    def free(index: int, kind: str) -> bool:
        return 0 <= index < len(blocks) and blocks[index].kind == kind and not blocks[index].caption

    taken = set()
    for i, block in enumerate(blocks):
        if block.kind not in ("Figure", "Table"):
            continue
        before = free(i - 1, "picture" if block.kind == "Figure" else "datatable")
        after = block.kind == "Table" and free(i + 1, "datatable")
        if before and after:  # a table on either side: the next caption tells where they stand
            before = free(i + 2, "Table")
        if before or after:
            owner = blocks[i - 1 if before else i + 1]
            owner.caption, owner.above, owner.alt = block, not before, block.alt
            taken.add(i)
    return [block for i, block in enumerate(blocks) if i not in taken]


def written(block: Block) -> Pieces:
    """Typst source, each piece with the cell it came from."""
    if block.kind not in ("picture", "datatable"):
        source = f"#keep[{block.source}]\n\n" if block.keep else block.source
        return [(block.cell, source)]
    is_picture = block.kind == "picture"
    call = f"#{block.kind}({image(block.source, block.alt) if is_picture else block.source}"
    if not block.caption:
        return [(block.cell, call + ")\n")]
    return [
        (block.cell, f"{call}, above: {str(block.above).lower()},\n"),
        (block.caption.cell, f"caption: [{block.caption.source.strip()}])\n"),
    ]


class TypstPDFExporter(Exporter):
    """nbconvert's exporter; the title block's traits win over the notebook's metadata."""

    file_extension = Unicode(".pdf").tag(config=True)
    output_mimetype = "application/pdf"
    title = Unicode(help="title of the report").tag(config=True)
    subtitle = Unicode(help="line below the title").tag(config=True)
    author = Unicode(help="replaces the metadata's authors").tag(config=True)
    matriculation = Unicode(help="matriculation number").tag(config=True)
    course = Unicode(help="above the title").tag(config=True)
    sheet = Unicode(help="above the title, after the course").tag(config=True)
    due = Unicode(help="due date, printed as typed").tag(config=True)
    date = Unicode(help="date, printed as typed").tag(config=True)
    font_paths = List(Unicode(), help="folders with more fonts").tag(config=True)

    @property
    def default_config(self) -> Config:
        """Streams as a terminal shows them: joined, and a carriage return overwrites its line."""
        return Config({"CoalesceStreamsPreprocessor": {"enabled": True}}, **super().default_config)

    def from_notebook_node(
        self, nb: NotebookNode, resources: Any = None, **kw: Any
    ) -> tuple[bytes, dict[str, Any]]:
        """The PDF; nothing is written before it is complete."""
        typst = load("typst")
        nb, resources = super().from_notebook_node(nb, resources, **kw)
        about = resources["metadata"]
        with tempfile.TemporaryDirectory() as work:
            report = Report(f"{about['name']}.ipynb", Path(about.get("path") or "."), Path(work))
            families = self._fonts(typst, report)
            return compiled(
                typst,
                report,
                self._pieces(report, nb, families),
                [report.work / "fonts", *self.font_paths],
            ), resources

    def _fonts(self, typst: ModuleType, report: Report) -> list[str]:
        """Put the fallback fonts in place; the families of `font_paths`."""
        (report.work / "fonts").mkdir()
        for font in FALLBACK_FONTS:
            shutil.copy(
                Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"),
                report.work / "fonts",
            )
        families: list[str] = []
        for folder in self.font_paths:
            found = (
                typst.Fonts(
                    include_system_fonts=False, include_embedded_fonts=False, font_paths=[folder]
                ).families()
                if Path(folder).is_dir()
                else []
            )
            if not found:
                raise ReportError(f"font_paths: no folder with fonts at {folder}")
            families += found
        return families

    def _pieces(self, report: Report, nb: NotebookNode, families: list[str]) -> Pieces:
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        if code and not any(cell.execution_count or cell.outputs for cell in code):
            self.log.warning("%s was never executed: the report has no outputs", report.name)
        title_block = self._title_block(nb.metadata)
        self._announce_placeholders(title_block)
        cells = list(enumerate(without_title(nb, title_block["title"]), 1))
        body = [cell for cell in cells if "appendix" not in cell[1].metadata.get("tags", [])]
        rest = [cell for cell in cells if "appendix" in cell[1].metadata.get("tags", [])]
        blocks = [block for cell in body for block in cell_blocks(report, *cell)]
        if rest:
            title = str(nb.metadata.get("appendix", "Appendix"))
            blocks += [Block(0, "#show: appendices\n"), self._heading_of_appendix(report, title)]
            blocks += [block for cell in rest for block in cell_blocks(report, *cell)]
        blocks += self._listings(report, nb.metadata.get("listings", {}))
        formulas = convert(report.formulas)
        return [(0, preamble(report.name, title_block, families))] + [
            (cell, re.sub("\0(\\d+)\0", lambda m: formulas[int(m[1])], source))
            for block in join_captions(blocks)
            for cell, source in written(block)
        ]

    def _announce_placeholders(self, title_block: dict[str, Any]) -> None:
        printed = [title_block["matriculation"], *title_block["authors"]]
        missing = [name for text, name in PLACEHOLDERS.items() if text in printed]
        if missing:
            how = " ".join(f'{name}="…"' for name in missing)
            self.log.warning("the title block holds placeholders: make report %s", how)

    def _heading_of_appendix(self, report: Report, title: str) -> Block:
        report.levels = [1]
        return Block(0, f"#heading(level: 1, {quote(title)})\n\n")

    def _listings(self, report: Report, listings: dict[str, str]) -> list[Block]:
        blocks = []
        for name, title in listings.items():
            path = report.folder / name
            if not path.is_file():
                report.fail(None, f"listings: no file {name} beside the notebook")
            blocks.append(self._heading_of_appendix(report, title))
            source = raw(
                path.read_text(encoding="utf-8").strip("\n"), block="true", lang=quote("python")
            )
            blocks.append(Block(0, f"#listing({source})\n\n"))
        return blocks

    def _title_block(self, metadata: NotebookNode) -> dict[str, Any]:
        keys = ("title", "subtitle", "matriculation", "course", "sheet", "due", "date")
        block: dict[str, Any] = {
            key: getattr(self, key).strip() or str(metadata.get(key, "")).strip() for key in keys
        }
        authors = [author["name"] for author in metadata.get("authors", [])]
        return {**block, "authors": [self.author.strip()] if self.author.strip() else authors}


def preamble(name: str, title_block: dict[str, Any], families: list[str]) -> str:
    """The call of the template."""

    def typst_value(value: str | list[str]) -> str:
        if isinstance(value, list):
            return "(" + "".join(quote(item) + ", " for item in value) + ")"
        return quote(value) if value else "none"

    fonts = {f"{kind}-fonts": [first, "DejaVu Sans", *families] for kind, first in FONTS.items()}
    values = {"name": name, **title_block, **fonts}
    arguments = ", ".join(f"{key}: {typst_value(value)}" for key, value in values.items())
    return f'#import "template.typ": *\n#show: report.with({arguments})\n'


def compiled(typst: ModuleType, report: Report, pieces: Pieces, fonts: list[Any]) -> bytes:
    """PDF/UA-1: tagged, and for a character that no font has there is an error, not a box."""
    shutil.copy(TEMPLATE, report.work / "template.typ")
    main = report.work / "main.typ"
    main.write_text("".join(source for _, source in pieces), encoding="utf-8")
    try:
        pdf, warnings = typst.compile_with_warnings(
            main,
            root=report.work,
            font_paths=fonts,
            ignore_system_fonts=True,
            pdf_standards=["ua-1"],
        )
    except typst.TypstError as error:
        explain(report, pieces, error.diagnostic)
    if warnings:
        explain(report, pieces, warnings[0].diagnostic)
    return pdf


def explain(report: Report, pieces: Pieces, diagnostic: str) -> NoReturn:
    """Raise Typst's first error, or else its first warning, with the cell that it comes from."""
    parts = re.findall(r"(?ms)^(?:error|warning): .*?(?=^error: |^warning: |\Z)", diagnostic)
    parts.sort(key=lambda part: part.startswith("warning"))
    message = parts[0].partition("\n")[0].partition(": ")[2]
    line = re.search(r"main\.typ:(\d+)", parts[0])
    glyph = re.search(r'the text `"(.+?)"` could not be displayed', message)
    text = re.sub(r"\\u\{(\w+)\}", lambda m: chr(int(m[1], 16)), glyph[1]) if glyph else ""
    if glyph:
        codes = " ".join(f"U+{ord(character):04X}" for character in text)
        shown = f'"{text}" ({codes})' if text.isprintable() else codes
        message = (
            f"no font has the character {shown}; name a folder with a font that has it: "
            "--TypstPDFExporter.font_paths=FOLDER"
        )
    cell = origin(pieces, int(line[1]) if line else 0, text)
    report.fail(cell, message if cell is not None else f"in a picture: {message}")


def origin(pieces: Pieces, line: int, text: str) -> int | None:
    """The cell that wrote a line of main.typ, or else the first one that has the text."""
    if not line:
        return next((cell for cell, source in pieces if text and text in source), None)
    lines = [cell for cell, source in pieces for _ in range(source.count("\n"))]
    return lines[line - 1]
