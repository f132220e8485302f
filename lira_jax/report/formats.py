"""Tables as text: Markdown, LaTeX, and plain columns for a terminal."""

from __future__ import annotations

import re

from lira_jax.report.tables import Cell, Table


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown; whatever Markdown would read in a name is escaped."""

    def cell(cell: Cell) -> str:
        text = _markdown(cell.text)
        if cell.code:
            text = f"{text} ({_markdown_code(cell.code)})" if cell.text != cell.code else (
                _markdown_code(cell.code)
            )  # fmt: skip
        text += r"\*" * cell.few
        return f"{text} ({cell.interval})" if cell.interval else text

    lines = [
        "| " + " | ".join(_markdown(head) for head in table.heads) + " |",
        "|" + "---|" * table.words + "---:|" * (len(table.heads) - table.words),
        *("| " + " | ".join(cell(entry) for entry in row) + " |" for row in table.rows),
        "",
        f"{_markdown(table.caption)}.",
        *(f"\n{_markdown(note)}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", _one_line(text))


def _markdown_code(text: str) -> str:
    """Text between as many backticks as it needs; a bar would end the cell."""
    text = _one_line(text).replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"


# After a line's end LaTeX would take a bracket or a star for an argument.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "–": "--",
    "−": "$-$", "×": r"$\times$", "φ": r"$\phi$", "≤": r"$\le$", "≥": r"$\ge$", "…": r"\dots{}",
    "σ": r"$\sigma$", "μ": r"$\mu$", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "[": "{[}", "*": "{*}", "ε": r"$\varepsilon$",
}  # fmt: skip


def to_latex(table: Table) -> str:
    r"""The table for LaTeX with the package booktabs, in text mode, names escaped."""

    def cell(cell: Cell) -> str:
        text = latex_text(cell.text) + r"\textsuperscript{*}" * cell.few
        return rf"{text} {{\scriptsize ({latex_text(cell.interval)})}}" if cell.interval else text

    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\small",
        rf"\caption{{{latex_text(table.caption)}.}}",
        rf"\begin{{tabular}}{{{'l' * table.words}{'r' * (len(table.heads) - table.words)}}}",
        r"\toprule",
        " & ".join(latex_text(head) for head in table.heads) + r" \\",
        r"\midrule",
    ]
    for place, row in enumerate(table.rows):
        # Where the first of two columns of words begins anew, so does a part of the table.
        if table.words > 1 and place and row[0].text:
            lines.append(r"\midrule")
        lines.append(" & ".join(cell(entry) for entry in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\\ \footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


def to_text(table: Table) -> str:
    """The table in columns of plain text, its caption and notes below."""
    rows = [list(table.heads), *([_one_line(cell.whole) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", f"{table.caption}.", *table.notes])


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 view", "1,200 views"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
