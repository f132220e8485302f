"""Lists on the command line: one word with commas, since every flag takes one value."""

from __future__ import annotations

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lira_jax.fields import as_text

LISTS = ConstructorRegistry()


@LISTS.primitive_rule
def _one_word(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """For every list that is named by a flag; the configuration parses the word itself."""
    if kind.type_origin is not tuple or tyro.conf.Positional in kind.markers:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,…",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda entries: [as_text(entries)],
    )
