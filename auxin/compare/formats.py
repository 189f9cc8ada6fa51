"""One table as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "λ": r"$\lambda$",
}


@dataclass(frozen=True)
class Table:
    """What a table says, whatever it is written in.

    Attributes:
        title: One line.
        columns: Headings.
        rows: As many cells each; the first is a name, the others are numbers.
        notes: Sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def markdown(tables: Sequence[Table]) -> str:
    r"""Return tables as Markdown, each under a heading.

    Args:
        tables: In order.

    Returns:
        The text of a file.

    Example:
        >>> print(markdown([Table("T", ("row", "test %"), (("a|b", "1 ± 2"),))]))
        ## T
        <BLANKLINE>
        | row | test % |
        | :-- | --: |
        | a\|b | 1 ± 2 |
        <BLANKLINE>
    """
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", _line(table.columns), _line([":--", *["--:"] * (len(table.columns) - 1)])]
        lines += [_line([cell.replace("|", "\\|") for cell in row]) for row in table.rows]
        lines += [word for note in table.notes for word in ("", note)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def latex(tables: Sequence[Table]) -> str:
    r"""Return tables as LaTeX for the booktabs package.

    Args:
        tables: In order.

    Returns:
        The text of a file that a document takes in with ``\input``.

    Example:
        >>> print(latex([Table("T", ("row", "test %"), (("a_b", "1 ± 2"),))]))
        % Needs \usepackage{booktabs}.
        \begin{table}
          \caption{T}
          \centering
          \begin{tabular}{lr}
            \toprule
            row & test \% \\
            \midrule
            a\_b & 1 $\pm$ 2 \\
            \bottomrule
          \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    parts = ["% Needs \\usepackage{booktabs}."]
    for table in tables:
        rows = ["    " + " & ".join(map(escape, row)) + r" \\" for row in (table.columns, *table.rows)]
        parts += [
            r"\begin{table}",
            rf"  \caption{{{escape(' '.join((table.title + ('.' if table.notes else ''), *table.notes)))}}}",
            r"  \centering",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"    \toprule",
            rows[0],
            r"    \midrule",
            *rows[1:],
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Return text with LaTeX's special characters made ordinary.

    Args:
        text: Any text.

    Returns:
        LaTeX that prints it.

    Example:
        >>> escape("50 % of a_b & c")
        '50 \\% of a\\_b \\& c'
    """
    return re.sub(r"[\\±−–λ~^×%&_#${}]", lambda found: _ESCAPES.get(found[0], "\\" + found[0]), text)
