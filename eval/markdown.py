"""Tables in Markdown whose columns line up in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence


def table(cells: Sequence[Sequence[str]], left: int) -> str:
    """A table of cells, its first row the header.

    Args:
        cells: Rows, all of one length.
        left: How many columns are of words, and stand to the left; figures stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        " | ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "|".join(
        "-" * (width + 2) if index < left else "-" * (width + 1) + ":"
        for index, width in enumerate(widths)
    )
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])
