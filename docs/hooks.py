"""What mkdocs needs to read these pages as GitHub does."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Indent what belongs to an item of a numbered list by four spaces, where GitHub wants three,
    and set the next item off by a blank line."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):  # all but fenced code
        parts[i] = re.sub(r"^ {3}", "    ", parts[i], flags=re.MULTILINE)
        parts[i] = re.sub(r"^( {4}.*\n)(?=\d+\. )", r"\1\n", parts[i], flags=re.MULTILINE)
    return "".join(parts)
