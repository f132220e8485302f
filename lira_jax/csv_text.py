"""Records as CSV, as RFC 4180 has it: lines end in a carriage return and a line feed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    r"""One line per record, of which there is one at least, under the names of its fields.

    None is an empty cell.

    Examples:
        >>> csv_text([{"name": "yeom", "auc": 0.6, "fpr": None}])
        'name,auc,fpr\r\nyeom,0.6,\r\n'
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def with_interval(name: str, value: Any, interval: Sequence[float] | None) -> dict[str, Any]:
    """The fields of a figure and of the ends of its interval: NAME, NAME_lo and NAME_hi."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_lo": low, f"{name}_hi": high}
