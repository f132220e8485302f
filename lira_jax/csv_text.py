"""Records as CSV, as RFC 4180 has it: lines end in a carriage return and a line feed.

Class names and titles may come from strangers, and a spreadsheet takes a cell that begins with `=`
for a formula, which may fetch and run things. Such text gets an apostrophe in front, and so does
text that begins with one: whoever reads it back drops one apostrophe from the front of a cell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

# What begins a formula, or is skipped before one; the wide signs count for the same.
_ACTIVE = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    r"""One line per record, of which there is one at least, under the names of its fields.

    None is an empty cell. Numbers, also as text, stay numbers.

    Examples:
        >>> csv_text([{"name": "yeom", "auc": -0.6, "fpr": None}])
        'name,auc,fpr\r\nyeom,-0.6,\r\n'
        >>> csv_text([{"name": "=1+1"}, {"name": "-1"}])
        "name\r\n'=1+1\r\n-1\r\n"
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_harmless, records[0]))
    writer.writerows(map(_harmless, record.values()) for record in records)
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(_ACTIVE):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    # float() skips white space, and spreadsheets may not.
    return cell if cell == cell.strip() else f"'{cell}"


def with_interval(name: str, value: Any, interval: Sequence[float] | None) -> dict[str, Any]:
    """The fields of a figure and of the ends of its interval: NAME, NAME_lo and NAME_hi."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_lo": low, f"{name}_hi": high}
