"""The exporter, seen from what stands in the PDF: its text, tags, pictures and positions."""

import base64
import io
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pypdf
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from report.formulas import Formula, convert
from report.markdown import Block, Report
from report.pdf_exporter import ReportError, TypstPDFExporter, explain, join_captions, written

ROOT = Path(__file__).parents[1]
TITLE_BLOCK = {
    "title": "Atoms",
    "subtitle": "in motion",
    "authors": [{"name": "Ada Lovelace"}],
    "matriculation": "12345",
    "course": "Chemistry",
    "sheet": "Sheet 3",
    "due": "7 January",
    "date": "1 May",
}
SPECIAL = "#$*_`@<>\\[]~-/=+.'\"(){}&%^|:;!?,"


def notebook(*cells, **metadata):
    return new_notebook(
        metadata=metadata,
        cells=[new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells],
    )


def code(source="x", *outputs, tags=(), count=1):
    return new_code_cell(
        source, outputs=list(outputs), execution_count=count, metadata={"tags": list(tags)}
    )


def shown(data):
    return new_output("display_data", data=data)


def printed(text, name="stdout"):
    return new_output("stream", text=text, name=name)


def export(*cells, folder=".", metadata=None, **traits):
    about = {"metadata": {"name": "book", "path": str(folder)}}
    nb = notebook(*cells, **(metadata or {}))
    return TypstPDFExporter(**traits).from_notebook_node(nb, about)[0]


def pages(pdf):
    return pypdf.PdfReader(io.BytesIO(pdf)).pages


def squeezed(text):
    """Text without spaces: where a PDF has them is the extractor's guess."""
    return "".join(text.split())


def text_of(pdf):
    return squeezed("".join(page.extract_text() for page in pages(pdf)))


def structure(pdf):
    """(type, alternative text) of every element of the tag tree, in order."""

    def walk(node):
        node = node.get_object()
        if isinstance(node, list):
            for child in node:
                yield from walk(child)
        elif isinstance(node, dict):
            if "/S" in node:
                yield str(node["/S"]), node.get("/Alt")
            yield from walk(node.get("/K", pypdf.generic.NullObject()))

    return list(walk(pypdf.PdfReader(io.BytesIO(pdf)).root_object["/StructTreeRoot"]))


def figure(suffix, width=4.0, height=2.0):
    buffer = io.BytesIO()
    fig, ax = plt.subplots(figsize=(width, height))
    ax.plot([0, 1], [0, 1])
    fig.savefig(buffer, format=suffix)
    plt.close(fig)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def svg():
    return figure("svg").decode()


@pytest.fixture(scope="module")
def png():
    return base64.b64encode(figure("png")).decode()


# Formulas


@pytest.mark.parametrize(
    ("tex", "typst"),
    [
        (r"\|x\|", "lr(bar.v.double x bar.v.double)"),
        (r"\left\|\frac{a}{b}\right\|^2", "lr(bar.v.double a / b bar.v.double)^2"),
        (r"\big\| x \big\|", "lr(bar.v.double x bar.v.double)"),
        (r"|x|", r"\|x\|"),
        (r"\begin{aligned} a \\| \|c\| \end{aligned}", "a\\\n\\|lr(bar.v.double c bar.v.double)"),
        (r"\exp\!(x)\;y", r"exp \( x \) med y"),
        (r"\begin{align} a &= b \\ &= c \end{align}", "a & = b\\\n & = c"),
        (r"\begin{align*} a &= b \end{align*}", "a & = b"),
        (r"\begin{equation}a = b\label{eq:a}\end{equation}", "a = b"),
        (r"\begin{gather} a \\ b \end{gather}", "a\\\nb"),
        (
            r"\begin{cases} x & d < r \\ 0 & \text{else} \end{cases}",
            'cases(delim: "{", x & quad d < r, 0 & quad upright("else"))',
        ),
        (r"a \odot b \otimes c \cap d", "a dot.o b times.o c inter d"),
        (r"\operatorname{softplus} x", 'op("softplus") x'),
    ],
)
def test_repairs(tex, typst):
    [source] = convert([Formula(tex, True, pytest.fail)])
    squeeze = squeezed(source.partition(", $")[2])
    assert squeeze == squeezed(typst) + "$)"


@pytest.mark.parametrize(
    ("tex", "symbol"),
    [
        (r"\circ", "∘"),
        (r"\in", "∈"),
        (r"\leq", "≤"),
        (r"\odot", "⊙"),
        (r"\otimes", "⊗"),
        (r"\sum", "∑"),
        (r"\gamma", "𝛾"),
        (r"\mu", "𝜇"),
        (r"\mathcal{L}", "ℒ\ufe00"),
        (r"\mathbf{W}", "𝐖"),
        (r"\mathbb{R}", "ℝ"),
        (r"\nabla", "∇"),
        (r"\partial", "𝜕"),
        (r"\cap", "∩"),
        (r"\|", "∥"),
    ],
)
def test_symbols_are_printed(tex, symbol):
    assert text_of(export(f"Text ${tex}$ here")) == f"Text{symbol}here1/1"


@pytest.mark.parametrize(
    "cell",
    [
        "# On $\\|x\\|_2$ here",
        "- item $\\|x\\|_2$",
        "> say $\\|x\\|_2$",
        "**Figure 1.** $\\|x\\|_2$",
        "| head |\n|---|\n| $\\|x\\|_2$ |",
        "| $\\|x\\|_2$ |\n|---|\n| a |",
        "$$\\hat x \\|x\\|_2$$",
    ],
)
def test_formulas_wherever_markdown_has_text(cell):
    assert "‖𝑥‖" in text_of(export(cell))


def test_a_bar_in_a_formula_is_no_border_of_a_table():
    assert "a|𝑥|b" in text_of(export("| head | other |\n|---|---|\n| a $|x|$ b | c |"))


def test_equation_numbers_only_from_tags():
    pdf = export("$$a = 1 \\tag{7}$$\n\n$$b = 2$$\n\n$$c = 3 \\tag*{(B.1)}$$")
    assert text_of(pdf).startswith("𝑎=1(7)𝑏=2𝑐=3(B.1)")
    numbers = positions(pdf)["(7)"]
    assert min(numbers) > 500  # at the right margin of a page of 595 pt


def positions(pdf):
    """x of every piece of text."""
    found = {}
    for page in pages(pdf):
        page.extract_text(
            visitor_text=lambda text, cm, tm, *_: found.setdefault(text.strip(), []).append(
                tm[4] * cm[0] + cm[4]
            )
        )
    return found


# Markdown


def test_special_characters_are_literal():
    pdf = export(" ".join(f"a\\{character}b" for character in SPECIAL))
    assert text_of(pdf).startswith("".join(f"a{character}b" for character in SPECIAL))


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        *((f"\\{character} b", f"{character}b") for character in SPECIAL),
        ("@word 1/2 // no -- en --- em ...", "@word1/2//no--en---em..."),
        ("'a' \"b\" ~ 2^3 {x} C:\\dir snake_case", "'a'\"b\"~2^3{x}C:\\dirsnake_case"),
        ("= no heading", "=noheading"),
        ("/ no: term", "/no:term"),
        ('`#raw $x$ \\ "q"`', '#raw$x$\\"q"'),
        ("&lt;a&gt; &amp; é", "<a>&é"),
    ],
)
def test_text_is_printed_as_typed(paragraph, expected):
    assert text_of(export(paragraph)) == expected + "1/1"


def test_code_and_outputs_are_literal():
    source = f"s = '{SPECIAL}'  # \\n \\u{{41}} #[x] $y$"
    pdf = export(code(source, printed(source + "\x1b[31m red\x1b[0m")))
    assert text_of(pdf).count(squeezed(source)) == 2
    assert squeezed(source) + "red" in text_of(pdf)


def test_blocks():
    pdf = export(
        "# One\n\n- a\n  1. b\n\n> quote\n\n```python\nx = 1\n```\n\n"
        "~~gone~~ **bold** [link](https://a.b)<br>new <!-- comment -->\n\n---\n\n3. three"
    )
    assert text_of(pdf).startswith("One•a1.bquotex=1goneboldlinknew3.three")
    kinds = [kind for kind, _ in structure(pdf)]
    assert {"/H1", "/L", "/LI", "/BlockQuote", "/Code", "/Link", "/Strong"} <= set(kinds)
    assert pages(pdf)[0]["/Annots"][0].get_object()["/A"]["/URI"] == "https://a.b"


def test_headings_have_no_gaps():
    kinds = [kind for kind, _ in structure(export("## a\n\n#### b\n\n## c\n\n# d\n\n### e"))]
    assert [kind for kind in kinds if kind[:2] == "/H"] == ["/H1", "/H2", "/H1", "/H1", "/H2"]


def test_table():
    rows = "\n".join(f"| {i} | left | **b** |" for i in range(80))
    pdf = export(f"| Heading | $x$ | c |\n|--:|:--|:-:|\n{rows}")
    assert [squeezed(page.extract_text()).count("Heading") for page in pages(pdf)] == [1, 1]
    kinds = [kind for kind, _ in structure(pdf)]
    assert kinds.count("/TH") == 3 and kinds.count("/TD") == 240
    x = positions(pdf)
    assert x["1"][0] > x["10"][0]  # right-aligned: the shorter number starts further right


# Code and outputs


@pytest.mark.parametrize(
    "line", ["word " * 80, "a" * 500, "'" + "b" * 300 + "'", "f(x, y).g(1).h[2]." * 30]
)
@pytest.mark.parametrize("place", ["cell", "output", "fence", "inline", "table"])
def test_long_lines_stay_on_the_page(line, place):
    cell = {
        "cell": code(line),
        "output": code("1", printed(line)),
        "fence": f"```\n{line}\n```",
        "inline": f"text `{line.strip()}`",
        "table": f"| a | b |\n|---|---|\n| b | `{line.strip()}` |",
    }[place]
    pdf = export(cell)
    right = max(x + 4.4 * len(text) for text, xs in positions(pdf).items() for x in xs)
    assert 480 < right < 595 - 50
    assert squeezed(line) in text_of(pdf).replace("[1]", "")


def test_a_run_is_cut_only_where_no_line_could_hold_it():
    fits, long = "f(1)." * 14, "f(1)." * 16
    [page] = pages(export(code("start = " + "g(1, 2) + " * 3 + fits, count=None)))
    assert squeezed(page.extract_text().splitlines()[1]) == fits
    x = positions(export(code(" " * 40 + long, count=None)))
    assert max(starts[-1] for starts in x.values()) < 595 - 60


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("x" * 300, "x" * 300),
        ("| a | b |\n|---|---|\n| b | " + "x" * 300 + " |", "x" * 300),
        ("| a | b | c | d |\n|---|---|---|---|\n" + f"| {'m' * 40} " * 4 + "|", "m" * 10),
    ],
)
def test_long_words_stay_on_the_page(cell, word):
    pdf = export(cell)
    right = max(x + 4 * len(text) for text, xs in positions(pdf).items() for x in xs)
    assert 480 < right < 595 - 50
    assert word in text_of(pdf)


def test_tags_and_counts():
    pdf = export(
        code("first", printed("alpha"), count=3),
        code("second", printed("beta"), tags=["remove_input"]),
        code("third", printed("gamma"), tags=["remove_output"]),
        code("fourth", printed("delta"), tags=["remove_cell"]),
    )
    text = text_of(pdf)
    assert "[3]" in text
    for word in ("first", "alpha", "beta", "third"):
        assert word in text
    for word in ("second", "gamma", "fourth", "delta"):
        assert word not in text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text/plain": "poor", "text/html": "<b>"}, "poor"),
        ({"text/plain": "poor", "text/latex": "$\\displaystyle \\gamma$"}, "𝛾"),
        ({"text/plain": "poor", "text/markdown": "**rich** $\\mu$"}, "rich𝜇"),
    ],
)
def test_richest_output(data, expected):
    assert text_of(export(code("1", shown(data)))).startswith(f"[1]1{expected}1/1")


def test_stderr_and_carriage_returns():
    pdf = export(code("1", printed(" 1%\r50%\r99%\nwarned", "stderr")))
    assert "99%warned" in text_of(pdf) and "50%" not in text_of(pdf)


def test_a_blank_stream_leaves_no_trace():
    assert export(code("1", printed("\n"))) == export(code("1"))


# Pictures and captions


def test_svg_stays_vector_and_wins_over_png(svg, png):
    pdf = export(code("1", shown({"image/svg+xml": svg, "image/png": png})))
    assert not pages(pdf)[0].images and "/Figure" in dict(structure(pdf))
    assert len(pages(export(code("1", shown({"image/png": png}))))[0].images) == 1


@pytest.mark.parametrize(
    ("inches", "points"),
    [((4, 2), (288, 144)), ((20, 2), (470.6, 47.06)), ((4, 10), (170.1, 425.2))],
)
def test_pictures_keep_their_size_up_to_the_limits(inches, points):
    png = base64.b64encode(figure("png", *inches)).decode()
    page = pages(export(code("1", shown({"image/png": png}))))[0]
    sizes = []
    page.extract_text(
        visitor_operand_before=lambda operator, arguments, cm, tm: (
            sizes.append((cm[0], abs(cm[3]))) if operator == b"Do" else None
        )
    )
    assert sizes == [pytest.approx(points, abs=1)]


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_figure_from_a_file_with_its_caption(tmp_path, svg, between):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a b.svg").write_text(svg)
    pdf = export(f"![short](figures/a%20b.svg){between}**Figure 3.** Energy $E$.", folder=tmp_path)
    elements = structure(pdf)
    assert ("/Figure", "Figure 3. Energy E.") in elements
    assert [kind for kind, _ in elements].count("/Caption") == 1


def test_caption_of_an_output_and_of_an_attachment(png):
    cell = code("1", shown({"image/png": png}))
    attached = new_markdown_cell(
        "![alone](attachment:a.png)", attachments={"a.png": {"image/png": png}}
    )
    pdf = export(cell, "**Figure 1.** Dots.", attached, "**Figures** are no caption.")
    elements = structure(pdf)
    assert ("/Figure", "Figure 1. Dots.") in elements and ("/Figure", "alone") in elements
    assert [kind for kind, _ in elements].count("/Caption") == 1


def test_a_caption_beside_nothing_is_a_paragraph():
    pdf = export("text", "**Figure 1.** Alone.")
    assert "textFigure1.Alone." in text_of(pdf)
    assert "/Caption" not in dict(structure(pdf))


TABLE = "| a{0} | b |\n|---|---|\n| c{0} | d |"


@pytest.mark.parametrize(
    ("cells", "order"),
    [
        (
            ["**Table 1.** One.\n\n" + TABLE.format(1), "**Table 2.** Two.", TABLE.format(2)],
            ["Table1.", "c1", "Table2.", "c2"],
        ),
        (
            [TABLE.format(1), "**Table 1.** One.", TABLE.format(2), "**Table 2.** Two."],
            ["c1", "Table1.", "c2", "Table2."],
        ),
        (
            [code("1", shown({"text/markdown": TABLE.format(1)})), "**Table 1.** One."],
            ["c1", "Table1."],
        ),
    ],
)
def test_table_captions_stand_where_they_were_typed(cells, order):
    pdf = export(*cells)
    found = text_of(pdf)
    assert sorted(order, key=found.index) == order
    kinds = [kind for kind, _ in structure(pdf)]
    assert kinds.count("/Caption") == sum("Table" in word for word in order)


def test_a_caption_between_two_tables_goes_with_the_others():
    def owners(*kinds):
        blocks = [Block(i, "", kind) for i, kind in enumerate(kinds)]
        return [
            (block.cell, block.caption.cell) for block in join_captions(blocks) if block.caption
        ]

    assert owners("datatable", "Table", "datatable") == [(2, 1)]
    assert owners("datatable", "Table", "datatable", "Table") == [(0, 1), (2, 3)]
    assert owners("Table", "datatable", "Table", "datatable") == [(1, 0), (3, 2)]


def test_picture_and_caption_stay_together(png):
    seen = set()
    for lines in range(36, 50):
        pdf = export("word  \n" * lines, code("", shown({"image/png": png})), "**Figure 1.** Here.")
        [with_picture] = [i for i, page in enumerate(pages(pdf)) if page.images]
        [with_text] = [i for i, page in enumerate(pages(pdf)) if "Figure 1" in page.extract_text()]
        assert with_picture == with_text
        seen.add(with_picture)
    assert seen == {0, 1}  # the page did break in between


# Title block


def test_title_block_from_the_metadata():
    pdf = export("# Atoms\n\nText.", metadata=TITLE_BLOCK)
    assert text_of(pdf).startswith(
        "Chemistry·Sheet3AtomsinmotionAdaLovelace·12345·due7January·1MayText."
    )
    info = pypdf.PdfReader(io.BytesIO(pdf)).metadata
    assert (info.title, info.author) == ("Atoms", "Ada Lovelace")


def test_only_the_title_itself_is_left_out():
    assert "AtomsAtomsandmore" in squeezed(export_text("# Atoms and more", title="Atoms"))
    assert export_text("intro", "# Atoms", title="Atoms").count("Atoms") == 2


def export_text(*cells, **metadata):
    return text_of(export(*cells, metadata=metadata))


def test_traits_win_over_the_metadata_and_empty_ones_do_not():
    pdf = export(
        "text",
        metadata=TITLE_BLOCK,
        author="Emmy Noether",
        course="Algebra",
        title="",
        matriculation="",
    )
    assert text_of(pdf).startswith(
        "Algebra·Sheet3AtomsinmotionEmmyNoether·12345·due7January·1Maytext"
    )


def test_no_title_block_without_metadata():
    assert text_of(export("text")) == "text1/1"


def test_running_header_and_page_numbers():
    pdf = export("word  \n" * 60, metadata=TITLE_BLOCK)
    first, second = (squeezed(page.extract_text()) for page in pages(pdf))
    assert "1/2" in first and first.count("AdaLovelace") == 1
    assert "2/2" in second and "AtomsAdaLovelace·12345" in second


# The file


def test_pdf_is_tagged_and_has_no_date():
    reader = pypdf.PdfReader(io.BytesIO(export("text", metadata=TITLE_BLOCK)))
    assert reader.root_object["/MarkInfo"]["/Marked"] and reader.root_object["/Lang"] == "en"
    assert b"<pdfuaid:part>1<" in reader.root_object["/Metadata"].get_object().get_data()
    assert reader.metadata.creation_date is None


@pytest.fixture(scope="module")
def han_font(tmp_path_factory):
    """A folder with a font that has one Chinese character, as a square."""
    pen = TTGlyphPen(None)
    for move, point in zip(
        [pen.moveTo, pen.lineTo, pen.lineTo, pen.lineTo],
        [(0, 0), (0, 700), (700, 700), (700, 0)],
        strict=True,
    ):
        move(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "han"])
    builder.setupCharacterMap({0x6F22: "han"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "han": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "han": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Han", "styleName": "Regular", "psName": "OneHan"})
    builder.setupOS2()
    builder.setupPost()
    folder = tmp_path_factory.mktemp("fonts")
    builder.save(folder / "han.ttf")
    return str(folder)


def test_font_paths_print_what_no_other_font_has(han_font):
    pdf = export(
        "text 漢",
        code("s = '漢'", printed("漢")),
        font_paths=[han_font],
        metadata={**TITLE_BLOCK, "authors": [{"name": "漢"}]},
    )
    assert text_of(pdf).count("漢") == 4


# Errors


def failing(*cells, **traits):
    with pytest.raises(ReportError) as error:
        export("first", *cells, **traits)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (r"$\foo x$ and $a^{$", r'unknown macro \foo in the formula "\foo x"'),
        (r"$a^{$ and $\foo x$", r'malformed formula "a^{"'),
        (r"| a |" "\n|---|\n" r"| $$\bar{a$$ |", r'malformed formula "\bar{a"'),
        (r"$$a \tag{1} \tag{2}$$", r"one \tag per displayed formula, found 2"),
        ("$$ $$", "an empty formula"),
        ("a <b>bold</b>", "raw HTML cannot be printed: <b>"),
        ("<div>x</div>", "raw HTML cannot be printed: <div>x</div>"),
        ("![a](figures/none.svg)", "no picture file figures/none.svg beside the notebook"),
        ("![a](attachment:none.png)", "no picture attachment:none.png"),
        ("| a | b |\n|---|---|\n| 1 |", "a table whose rows differ in their number of cells"),
        ("[to](#nowhere)", "label `<nowhere>` does not exist"),
        (
            code(
                "1 / 0", new_output("error", ename="ZeroDivisionError", evalue="division by zero")
            ),
            "the cell failed with ZeroDivisionError: division by zero",
        ),
        (
            code("1", shown({"text/html": "<b>"})),
            "an output that is only text/html cannot be printed",
        ),
        (code("1", shown({"image/png": "AAAA"})), "failed to decode image"),
        ("a 漢 b", 'no font has the character "漢" (U+6F22)'),
        ("$x_漢$", 'no font has the character "漢" (U+6F22)'),
        ("bell \a", "no font has the character U+0007"),
        (code("s = '漢'"), "--TypstPDFExporter.font_paths"),
        (code("1", printed("漢")), 'no font has the character "漢" (U+6F22)'),
        (nbformat.v4.new_raw_cell("raw"), "a raw cell cannot be printed"),
    ],
)
def test_errors_name_the_cell(cell, message):
    text = failing(cell)
    assert text.startswith(f"book.ipynb, cell 2: {message}" if message[0] != "-" else "book.ipynb")
    assert message in text


def test_a_broken_picture_is_not_blamed_on_its_caption():
    text = failing(code("1", shown({"image/png": "AAAA"})), "**Figure 1.** Broken.")
    assert text.startswith("book.ipynb, cell 2: failed to decode image")


def test_missing_glyph_inside_a_picture():
    svg = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><text y='9'>漢</text></svg>"
    text = failing(code("1", shown({"image/svg+xml": svg})))
    assert text.startswith("book.ipynb: in a picture: no font has the character")


def test_the_first_error_counts_not_a_warning_before_it(tmp_path):
    both = "warning: odd\n  ┌─ main.typ:1:1\n\nerror: bad\n  ┌─ main.typ:2:1\n"
    with pytest.raises(ReportError, match=r"^book\.ipynb, cell 6: bad$"):
        explain(Report("book.ipynb", tmp_path, tmp_path), [(5, "a\n"), (6, "b\n")], both)


def test_error_in_the_title_block():
    assert failing(metadata={"title": "漢"}).startswith("book.ipynb, title block: no font has")


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_fonts_is_an_error(tmp_path, folder):
    path = str(tmp_path / folder)
    assert failing(font_paths=[path]) == f"font_paths: no folder with fonts at {path}"


@pytest.mark.parametrize(
    ("module", "wheel"), [("typst", "typst==0.14.9"), ("pypandoc", "pypandoc_binary==1.17")]
)
def test_a_missing_wheel_is_named(monkeypatch, module, wheel):
    monkeypatch.setitem(sys.modules, module, None)
    assert failing("$x$") == f"the PDF exporter needs {module}: pip install {wheel}"


def test_a_notebook_never_executed_is_announced(caplog):
    export(code(count=None))
    assert "book.ipynb was never executed" in caplog.text
    caplog.clear()
    export(code(count=1))
    assert not caplog.text


# The command


def nbconvert(path, *options):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "nbconvert",
            "--to",
            "report.pdf_exporter.TypstPDFExporter",
            *options,
            str(path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_command_writes_the_same_bytes_each_time(tmp_path, svg, han_font):
    nb = notebook("Text $x$. 漢", code("1", shown({"image/svg+xml": svg})), **TITLE_BLOCK)
    nbformat.write(nb, tmp_path / "book.ipynb")
    done = nbconvert(
        tmp_path / "book.ipynb",
        "--TypstPDFExporter.author=Emmy Noether",
        f"--TypstPDFExporter.font_paths={han_font}",
    )
    assert done.returncode == 0, done.stderr
    pdf = (tmp_path / "book.pdf").read_bytes()
    again, _ = TypstPDFExporter(author="Emmy Noether", font_paths=[han_font]).from_filename(
        str(tmp_path / "book.ipynb")
    )
    assert pdf == again and "EmmyNoether·12345" in text_of(pdf)


def test_command_fails_in_one_line_and_leaves_the_old_pdf(tmp_path):
    nbformat.write(notebook("text", r"$\foo$"), tmp_path / "book.ipynb")
    (tmp_path / "book.pdf").write_bytes(b"old")
    done = nbconvert(tmp_path / "book.ipynb")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        r'book.ipynb, cell 2: unknown macro \foo in the formula "\foo"'
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "book.pdf").read_bytes() == b"old"


@pytest.mark.parametrize("lines_before", [0, 30, 47, 48, 49, 50, 51, 52])
def test_a_question_and_its_answer_share_a_page(lines_before):
    filler = "\n\n".join(["word"] * lines_before)
    pdf = export(filler, "---\n\nQuestion first.\n\nAnswer last.\n\n---\n\nAfterwards.")
    holding = [n for n, page in enumerate(pages(pdf)) if "Question" in page.extract_text()]
    assert len(holding) == 1
    assert "Answer" in pages(pdf)[holding[0]].extract_text()


def test_a_frame_longer_than_a_page_still_breaks():
    pdf = export("---\n\n" + "\n\n".join(f"word{n}" for n in range(200)) + "\n\n---")
    assert len(pages(pdf)) > 2
    assert "word0word1" in text_of(pdf)
    assert "word199" in text_of(pdf)


# Appendices and listings


def test_cells_tagged_appendix_come_after_all_others(tmp_path):
    cells = [new_markdown_cell("## Body one"), code("early = 1", tags=["appendix"], count=7),
             new_markdown_cell("### Remark", metadata={"tags": ["appendix"]}),
             new_markdown_cell("Body two")]  # fmt: skip
    (tmp_path / "helper.py").write_text('"""Help."""\n\nanswer = 42  # not 41\n')
    metadata = {"appendix": "A Notes", "listings": {"helper.py": "B Listing"}}
    pdf = export(*cells, folder=tmp_path, metadata=metadata)
    parts = ["Bodyone", "Bodytwo", "ANotes", "[7]", "early=1", "Remark", "BListing", '"""Help."""',
             "answer=42#not41"]  # fmt: skip
    text = text_of(pdf)
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    headings = [kind for kind, _ in structure(pdf) if kind.startswith("/H")]
    assert headings == ["/H1", "/H1", "/H2", "/H1"]


def test_without_the_tag_there_is_no_appendix():
    assert "Notes" not in text_of(export("Body", metadata={"appendix": "A Notes"}))


def test_a_listing_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"listings: no file helper.py beside the notebook"):
        export("text", folder=tmp_path, metadata={"listings": {"helper.py": "B"}})


# Placeholders


def test_placeholders_are_announced_in_one_line(caplog):
    metadata = {"authors": [{"name": "Your Name"}], "matriculation": "your matriculation number"}
    export("text", metadata=metadata)
    [record] = caplog.records
    assert record.message.endswith('make report AUTHOR="…" MATRICULATION="…"')
    caplog.clear()
    export("text", metadata=metadata, author="Ada Lovelace")
    [record] = caplog.records
    assert record.message.endswith('make report MATRICULATION="…"')
    caplog.clear()
    export("text", metadata=metadata, author="Ada Lovelace", matriculation="1")
    export("text", metadata=TITLE_BLOCK)
    assert not caplog.records


# Pages


def page_with(pdf, word):
    [number] = [n for n, page in enumerate(pages(pdf)) if word in squeezed(page.extract_text())]
    return number


FILLERS = range(24, 56, 2)  # paragraphs of one word before what must stay together


@pytest.mark.parametrize("lines_before", FILLERS)
def test_code_stays_with_its_output_its_figure_and_the_caption(png, lines_before):
    filler = "\n\n".join(["word"] * lines_before)
    cell = code("first = 1\n" * 8 + "last = 2", printed("result"), shown({"image/png": png}))
    pdf = export(filler, cell, "**Figure 1.** What it shows.")
    words = ("last=2", "result", "Whatitshows")
    assert len({page_with(pdf, word) for word in words}) == 1


@pytest.mark.parametrize("lines_before", FILLERS)
def test_code_that_fits_on_a_page_is_not_split(lines_before):
    filler = "\n\n".join(["word"] * lines_before)
    pdf = export(filler, code("\n".join(["begin = 1", *["x = 2"] * 28, "end = 3"])))
    assert page_with(pdf, "begin=1") == page_with(pdf, "end=3")


@pytest.mark.parametrize("lines_before", FILLERS)
def test_a_formula_stays_with_the_sentence_before_it(lines_before):
    filler = "\n\n".join(["word"] * lines_before)
    pdf = export(filler, "The leading sentence is\n\n$$\\sum_i \\frac{a}{b} = 4711$$\n\nand so on.")
    assert page_with(pdf, "leadingsentence") == page_with(pdf, "4711")


@pytest.mark.parametrize("lines_before", FILLERS)
def test_what_a_colon_announces_follows_on_the_same_page(lines_before):
    filler = "\n\n".join(["word"] * lines_before)
    pdf = export(filler, "The cell is:", code("first = 1\n" * 8 + "last = 2"))
    assert page_with(pdf, "Thecellis:") == page_with(pdf, "last=2")


@pytest.mark.parametrize("lines_before", FILLERS)
def test_no_line_of_a_paragraph_stands_alone(lines_before):
    filler = "\n\n".join(["word"] * lines_before)
    pdf = export(filler, " ".join(f"piece{n:03d}" for n in range(40)))  # four lines and more
    counts = [page.extract_text().count("piece") for page in pages(pdf)]
    assert sum(counts) == 40
    assert all(count == 0 or count > 10 for count in counts)  # more than one line's


def test_without_the_rules_something_would_be_torn(monkeypatch, png):
    """The control of the tests above: pages where code, formula or paragraph would break."""
    monkeypatch.setattr("report.pdf_exporter.written", loose(written))
    torn = 0
    for lines_before in FILLERS:
        filler = "\n\n".join(["word"] * lines_before)
        cell = code("first = 1\n" * 8 + "last = 2", printed("result"), shown({"image/png": png}))
        pdf = export(filler, cell, "**Figure 1.** What it shows.")
        torn += page_with(pdf, "last=2") != page_with(pdf, "Whatitshows")
    assert torn > 0


def loose(function):
    def without_keeping(block):
        block.keep = False
        return function(block)

    return without_keeping


# Numbers in tables


@pytest.mark.parametrize(
    ("typed", "shown_as"),
    [
        ("3.7e-04", "3.7·10−4"), ("-7.2", "−7.2"), ("-1e+06", "−1·106"), ("0e+00", "0"),
        ("2e+00", "2"), ("1-3", "1-3"), ("x-1", "x-1"), ("a1e5", "a1e5"),
        ("0.5 ± 2e-3", "0.5±2·10−3"), ("`-1e-3`", "-1e-3"),
        ("1e-3, not -4e-10", "1·10−3,not−4·10−10"),
    ],
)  # fmt: skip
def test_numbers_of_a_table_are_typeset(typed, shown_as):
    text = text_of(export(f"| value |\n| --- |\n| {typed} |"))
    assert text == f"value{shown_as}1/1"


def test_numbers_outside_tables_stay_as_typed():
    assert text_of(export("between -1 and 3.7e-04")) == "between-1and3.7e-041/1"
