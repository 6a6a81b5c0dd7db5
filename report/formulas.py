"""TeX formulas as Typst source, and the few helpers that every part of the exporter needs.

All formulas of a notebook go through one pandoc call, each repaired before it where pandoc's Typst
would look unlike TeX. A formula that pandoc cannot read is an error that names the cell.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

WHEELS = {"typst": "typst==0.14.9", "pypandoc": "pypandoc_binary==1.17"}


class ReportError(SystemExit):
    """A notebook that cannot be printed as it stands.

    nbconvert prints a traceback for its own ConversionException; SystemExit with a string ends the
    program with exit code 1 and that one line.
    """


def load(module: str) -> ModuleType:
    """Import one of the two wheels that only this exporter needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ReportError(
            f"the PDF exporter needs {module}: pip install {WHEELS[module]}"
        ) from error


def quote(text: str) -> str:
    """A Typst string: the one form in which no character of the notebook is markup."""
    return '"' + text.replace("\\", r"\\").replace('"', r"\"").replace("\0", r"\u{0}") + '"'


def raw(text: str, **options: str) -> str:
    """Typst's monospaced text; in it too every character stands for itself."""
    extra = "".join(f", {key}: {value}" for key, value in options.items())
    return f"raw({quote(text)}{extra})"


@dataclass
class Formula:
    """A formula as it was typed."""

    tex: str
    display: bool
    fail: Callable[[str], NoReturn]  # raises a ReportError that names the cell


def repaired(tex: str) -> str:
    """TeX that pandoc turns into Typst that looks like TeX's own output."""
    tex = re.sub(r"\\label\{[^}]*\}|\\!|\\nonumber|\\notag", "", tex).replace(r"\;", r"\:")
    tex = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])|\\(left|right)(?=\s*\\\|)", "", tex)
    tex = re.sub(r"(?<!\\)\\\|(.*?)(?<!\\)\\\|", r"\\lVert \1 \\rVert ", tex, flags=re.DOTALL)
    tex = re.sub(r"\\(begin|end)\{(?:equation|displaymath)\*?\}", "", tex)
    tex = re.sub(r"\\(begin|end)\{(?:align|split)\*?\}", r"\\\1{aligned}", tex)
    tex = re.sub(r"\\(begin|end)\{(?:gather|multline)\*?\}", r"\\\1{gathered}", tex)
    return re.sub(
        r"\\begin\{cases\}.*?\\end\{cases\}",
        lambda m: re.sub(r"(?<!\\)&", r"&\\quad ", m[0]),
        tex,
        flags=re.DOTALL,
    )


def polished(source: str) -> str:
    """Pandoc's Typst with the names of this Typst, and with \\operatorname as an operator."""
    source = re.sub(r" *\\\| *", r"\\|", source)  # | is ordinary in TeX; Typst would space it
    source = re.sub(r"\b(dot|times|minus)\.circle\b", r"\1.o", source)
    source = re.sub(r"\bsect\b(?=[^\"]*(?:\"[^\"]*\"[^\"]*)*$)", "inter", source)
    return re.sub(r'(?<![a-z]\()"([A-Za-z\s]+)"', r'op("\1")', source)


def tagged(formula: Formula) -> tuple[str, str | None]:
    """The formula without its \\tag, and the equation number."""
    tags = re.findall(r"\\tag(\*?)\{([^}]*)\}", formula.tex)
    if len(tags) > 1 or (tags and not formula.display):
        formula.fail(f'one \\tag per displayed formula, found {len(tags)} in "{formula.tex}"')
    if not formula.tex.strip():
        formula.fail("an empty formula")
    number = (tags[0][1] if tags[0][0] else f"({tags[0][1]})") if tags else None
    return re.sub(r"\\tag\*?\{[^}]*\}", "", formula.tex).strip(), number


def pandoc(formulas: list[tuple[str, bool]]) -> tuple[list[str], str]:
    """TeX -> Typst for all formulas in one call; also pandoc's warnings."""
    blocks: list[dict[str, Any]] = []
    for tex, display in formulas:
        kind = {"t": "DisplayMath" if display else "InlineMath"}
        blocks += [
            {"t": "RawBlock", "c": ["typst", "\x01"]},
            {"t": "Para", "c": [{"t": "Math", "c": [kind, tex]}]},
        ]
    document = {"pandoc-api-version": [1, 23], "meta": {}, "blocks": blocks}
    # The wheel's own program: pypandoc itself would take a newer one that it finds elsewhere.
    program = shutil.which("pandoc", path=Path(load("pypandoc").__file__).parent / "files")
    if program is None:
        raise ReportError(f"no pandoc in this pypandoc: pip install {WHEELS['pypandoc']}")
    done = subprocess.run(
        [program, "-f", "json", "-t", "typst", "--wrap=none"],
        text=True,
        input=json.dumps(document),
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise ReportError(f"pandoc failed: {done.stderr.strip()}")
    return [part.strip() for part in done.stdout.split("\x01")[1:]], done.stderr


def convert(formulas: list[Formula]) -> list[str]:
    """Typst source of every formula; the first one that pandoc cannot read is an error."""
    if not formulas:
        return []
    bare = [tagged(formula) for formula in formulas]
    sources, warnings = pandoc(
        [(repaired(tex), f.display) for (tex, _), f in zip(bare, formulas, strict=True)]
    )
    result = []
    for formula, (_, number), source in zip(formulas, bare, sources, strict=True):
        if not source.startswith("$"):  # pandoc hands back the TeX, escaped, with a warning
            reason = warnings.split("[WARNING]")[1]
            macro = re.search(r"unexpected control sequence (\\\w+)", reason)
            formula.fail(
                f'unknown macro {macro[1]} in the formula "{formula.tex.strip()}"'
                if macro
                else f'malformed formula "{formula.tex.strip()}"'
            )
        option = f", number: {quote(number)}" if number else ""
        result.append(f"#tex({quote(formula.tex.strip())}{option}, {polished(source)})")
    return result
