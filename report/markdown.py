"""Markdown cells as Typst source.

nbconvert's own Markdown parser gives tokens. Every text becomes a Typst string, so no character of
the notebook is markup; a formula becomes a place holder (its number between two NULs) until all of
the notebook's are converted. A paragraph that begins **Figure 3.** or **Table 2.** is a caption.
"""

from __future__ import annotations

import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import mistune
from mistune.plugins.formatting import strikethrough
from mistune.plugins.table import table, table_in_list, table_in_quote
from mistune.plugins.url import url
from nbconvert.filters.markdown_mistune import MathBlockParser, MathInlineParser

from .formulas import Formula, ReportError, quote, raw

Token = dict[str, Any]
PICTURES = {"image/svg+xml": ".svg", "image/png": ".png", "image/jpeg": ".jpg"}
CAPTION = re.compile(r"(Figure|Table)\s+\w[\w.]*[.:](\s|$)")
WRAPPERS = {
    "paragraph": "{}\n\n",
    "block_text": "{}",
    "list_item": "[{}]",
    "table_cell": "[{}]",
    "strong": "#strong[{}]",
    "emphasis": "#emph[{}]",
    "strikethrough": "#strike[{}]",
    "block_quote": "#quote-box[{}]\n\n",
}
PARSE = mistune.Markdown(
    None,
    MathBlockParser(),
    MathInlineParser(),
    [table, table_in_list, table_in_quote, strikethrough, url],
)
DISPLAYED = ("block_math", "latex_environment")
# Numbers in a table: a minus that is no hyphen, and a power of ten instead of an e.
MINUS = re.compile(r"(?<![\w.)])-(?=\d)")
POWER = re.compile(r"(?<![\w.])([-−]?)(\d+(?:\.\d+)?)e([+-]?)0*(\d+)(?!\w)")
LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
RULE = "#rule()\n\n"
FRAME = 40  # lines that surely fit on one page
PIPE = "\ue000"  # stands for | inside the formulas of a table row while the row is split


def plain(tokens: list[Token]) -> str:
    """What a reader without the layout gets: the text, formulas as TeX."""

    def one(token: Token) -> str:
        if token["type"] in ("softbreak", "linebreak"):
            return " "
        return html.unescape(token["raw"]) if "raw" in token else plain(token.get("children", []))

    return "".join(map(one, tokens)).replace(PIPE, "|")


def image(name: str, alt: str) -> str:
    """Typst's image element; made here, so that an error in it is traced to its cell."""
    return f"image({name}, alt: {quote(alt)})"


def code_call(function: str, arguments: str, code: str, language: str = "") -> str:
    """A call of the template's code-box or code-cell."""
    options = {"lang": quote(language)} if language else {}
    source = raw(code.strip("\n"), block="true", **options)
    return f"#{function}({arguments}{code.strip().count(chr(10)) + 1}, {source})\n\n"


def typeset_numbers(text: str) -> str:
    """The text of a table's cell as Typst: −7.2 with a true minus, 3.7e-04 as 3.7 · 10⁻⁴."""
    found, end = "", 0
    for match in POWER.finditer(text):
        sign, digits, minus, power = match.groups()
        found += _literal(text[end : match.start()])
        number = f"{'−' if sign else ''}{digits}"
        is_zero = float(digits) == 0
        found += _literal("0" if is_zero else number if power == "0" else f"{number} · 10")
        if not is_zero and power != "0":
            found += f"#super[#{quote(('−' if minus == '-' else '') + power)}]"
        end = match.end()
    return found + _literal(text[end:])


def _literal(text: str) -> str:
    return f"#{quote(MINUS.sub('−', text))}" if text else ""


class Report:
    """What is gathered of one notebook while its cells are read."""

    def __init__(self, name: str, folder: Path, work: Path) -> None:
        self.name, self.folder, self.work = name, folder, work
        self.formulas: list[Formula] = []
        self.levels: list[int] = []
        self.anchors: set[str] = set()
        self.num_pictures = 0

    def fail(self, cell: int | None, message: str) -> NoReturn:
        """Raise the one line that nbconvert ends with; cell 0 is the title block."""
        place = "" if cell is None else f", cell {cell}" if cell else ", title block"
        raise ReportError(f"{self.name}{place}: {' '.join(message.split())}")

    def keep(self, content: bytes, suffix: str) -> str:
        """Put a picture into the working folder; its name there as a Typst string."""
        self.num_pictures += 1
        name = f"picture{self.num_pictures}{suffix}"
        (self.work / name).write_bytes(content)
        return quote(name)

    def keep_bundle(self, bundle: dict[str, str], mime: str) -> str:
        """The same for one type of an output or an attachment."""
        content = bundle[mime]
        is_text = content.lstrip().startswith("<")
        return self.keep(content.encode() if is_text else base64.b64decode(content), PICTURES[mime])


@dataclass
class Block:
    """One piece of the report: plain Typst, or a picture or table that may get a caption."""

    cell: int
    source: str  # of a picture or a table: the arguments of the template's function
    kind: str = ""  # picture, datatable: that function; Figure, Table: a caption
    alt: str = ""
    caption: Block | None = None
    above: bool = False  # the caption stands above
    keep: bool = False  # on the page of the next block


def framed(blocks: list[Block]) -> list[Block]:
    """Keep text between two rules on one page with them: a question and its answer, say."""
    rules = [i for i, block in enumerate(blocks) if block.source == RULE]
    for first, last in reversed(list(zip(rules[::2], rules[1::2], strict=False))):
        inner = blocks[first + 1 : last]
        source = "".join(block.source for block in inner)
        lines = sum(2 + len(block.source) // 80 for block in inner)
        if inner and lines < FRAME and not any(block.kind for block in inner):
            blocks[first : last + 1] = [Block(inner[0].cell, f"#framed[{source}]\n\n")]
    return blocks


class Markdown:
    """Tokens of the Markdown parser -> Typst; `_text` writes the tokens of type text, and so on."""

    def __init__(self, report: Report, cell: int, attachments: dict[str, Any]) -> None:
        self.report, self.cell, self.attachments = report, cell, attachments
        self.in_table = False

    def _fail(self, message: str) -> NoReturn:
        self.report.fail(self.cell, message)

    def blocks(self, source: str) -> list[Block]:
        """The blocks of a cell or of an output."""
        # A table row is split at | before formulas are looked at, and norms would fall apart.
        safe = re.sub(
            r"^[ >]*\|.*",
            lambda row: re.sub(r"\$(?! )[^$]+(?<! )\$", lambda m: m[0].replace("|", PIPE), row[0]),
            source,
            flags=re.M,
        )
        tokens = [token for token in PARSE(safe) if token["type"] != "blank_line"]
        found: list[Block] = []
        for token in tokens:
            parts = token["children"][:1] if token["type"] == "paragraph" else [token]
            is_formula = any(part["type"] in DISPLAYED for part in parts)
            if is_formula and found and found[-1].kind == "":
                found[-1].keep = True  # a formula stays with the sentence that leads to it
            found += self._block(token)
        for block in found:
            if block.kind == "" and block.alt.rstrip().endswith(":"):
                block.keep = True  # and so does what is announced with a colon
        return framed([block for block in found if block.source])

    def _block(self, token: Token) -> list[Block]:
        if token["type"] == "table":
            return [Block(self.cell, self._table_arguments(token), "datatable")]
        if token["type"] != "paragraph":
            return [Block(self.cell, self.render([token]))]
        found, children = [], token["children"]
        while (
            children
            and children[0]["type"] == "image"
            and (len(children) == 1 or children[1]["type"] in ("softbreak", "linebreak"))
        ):
            found.append(
                Block(
                    self.cell,
                    self._picture(children[0]),
                    "picture",
                    plain(children[0]["children"]) or children[0]["attrs"]["url"],
                )
            )
            children = children[2:]
        if children:
            text = plain(children)
            caption = CAPTION.match(text) if children[0]["type"] == "strong" else None
            found.append(
                Block(
                    self.cell, self.render(children) + "\n\n", caption[1] if caption else "", text
                )
            )
        return found

    def render(self, tokens: list[Token]) -> str:
        """Typst source of the tokens."""
        return "".join(
            WRAPPERS[token["type"]].format(self.render(token["children"]))
            if token["type"] in WRAPPERS
            else getattr(self, "_" + token["type"])(token)
            for token in tokens
        )

    def _text(self, token: Token) -> str:
        if re.match(r"\|?\s*:?-{2,}:?\s*\|", token["raw"]):
            self._fail(f"a table whose rows differ in their number of cells: {token['raw']}")
        text = html.unescape(token["raw"]).replace(PIPE, "|")
        return typeset_numbers(text) if self.in_table else "#" + quote(text)

    def _codespan(self, token: Token) -> str:
        return "#" + raw(token["raw"].replace(PIPE, "|"))

    def _block_code(self, token: Token) -> str:
        language = token.get("attrs", {}).get("info", "").split()[:1]
        return code_call("code-box", "", token["raw"], *language)

    def _softbreak(self, token: Token) -> str:
        return "\n"

    def _linebreak(self, token: Token) -> str:
        return "#linebreak()\n"

    def _blank_line(self, token: Token) -> str:
        return ""

    def _thematic_break(self, token: Token) -> str:
        return RULE

    def _inline_html(self, token: Token) -> str:
        breaks = len(re.findall(LINE_BREAK, token["raw"]))
        rest = re.sub(LINE_BREAK, "", re.sub(r"(?s)<!--.*?-->", "", token["raw"])).strip()
        if rest:
            self._fail(f"raw HTML cannot be printed: {rest}")
        return "#linebreak()" * breaks

    _block_html = _inline_html

    def _heading(self, token: Token) -> str:
        level, children = token["attrs"]["level"], token["children"]
        # PDF/UA wants levels without gaps: the depth among the headings that are still open.
        still_open = [other for other in self.report.levels if other < level]
        self.report.levels = [*still_open, level]
        anchor = plain(children).replace(" ", "-")  # as Jupyter names it
        label = f"#label({quote(anchor)})" if anchor and anchor not in self.report.anchors else ""
        self.report.anchors.add(anchor)
        return f"#heading(level: {len(still_open) + 1})[{self.render(children)}]{label}\n\n"

    def _link(self, token: Token) -> str:
        to = token["attrs"]["url"]
        target = f"label({quote(unquote(to[1:]))})" if to.startswith("#") else quote(to)
        return f"#link({target})[{self.render(token['children'])}]"

    def _list(self, token: Token) -> str:
        options = f"tight: {str(token['tight']).lower()}"
        if token["attrs"]["ordered"]:
            options += f", start: {token['attrs'].get('start', 1)}"
        items = ", ".join(self.render([item]) for item in token["children"])
        return f"#{'enum' if token['attrs']['ordered'] else 'list'}({options}, {items})\n\n"

    def _table_arguments(self, token: Token) -> str:
        head, *body = token["children"]
        self.in_table = True
        align = "".join(f"{cell['attrs']['align'] or 'left'}, " for cell in head["children"])
        cells = [
            self.render([cell])
            for row in (body[0]["children"] if body else [])
            for cell in row["children"]
        ]
        titles = "".join(self.render([cell]) + ", " for cell in head["children"])
        self.in_table = False
        return ",\n".join([*cells, f"align: ({align})", f"header: ({titles})"])

    def _table(self, token: Token) -> str:
        return f"#datatable({self._table_arguments(token)})\n\n"

    def _image(self, token: Token) -> str:
        alt = plain(token["children"]) or token["attrs"]["url"]
        return f"#box(fitted({image(self._picture(token), alt)}))"

    def _picture(self, token: Token) -> str:
        """The file's name in the working folder, as a Typst string."""
        address = unquote(token["attrs"]["url"])
        if address.startswith("attachment:"):
            bundle = self.attachments.get(address.removeprefix("attachment:"), {})
            mime = next((mime for mime in PICTURES if mime in bundle), None)
            if mime is None:
                self._fail(f"no picture {address}")
            return self.report.keep_bundle(bundle, mime)
        path = self.report.folder / address
        if not path.is_file():
            self._fail(f"no picture file {address} beside the notebook")
        return self.report.keep(path.read_bytes(), path.suffix)

    def _formula(self, tex: str, display: bool) -> str:
        self.report.formulas.append(Formula(tex.replace(PIPE, "|").strip(), display, self._fail))
        return f"\0{len(self.report.formulas) - 1}\0"

    def _inline_math(self, token: Token) -> str:
        return self._formula(token["raw"], display=False)

    def _block_math(self, token: Token) -> str:
        return self._formula(token["raw"], display=True)

    def _latex_environment(self, token: Token) -> str:
        name, body = token["attrs"]["name"], token["attrs"]["body"]
        return self._formula(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)
