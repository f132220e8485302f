"""What a field of a configuration may hold: the limits of numbers, and lists."""

from __future__ import annotations

import functools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from lira_jax.errors import InputError

# Of the entries of a list, ranges written out; and of what a message shows of a value.
MOST_ENTRIES, MOST_SHOWN = 100_000, 200


@dataclass(frozen=True)
class Limits:
    """Between what a number, or each number of a list, must lie.

    Examples:
        >>> print(Limits(least=0, below=1))
        at least 0 and below 1
        >>> 1.0 in Limits(least=0, below=1)
        False
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
        bounds = [(word, getattr(self, name)) for name, word in words.items()]
        return " and ".join(
            f"{word} {as_text((bound,))}" for word, bound in bounds if math.isfinite(bound)
        )


class Declared(NamedTuple):
    """How a field is declared.

    Attributes:
        kind: its type.
        entry: the type of each entry, of a list; else None.
        limits: of its numbers; None if they are free.
    """

    kind: Any
    entry: Any
    limits: Limits | None


def _fields_of(section: type) -> Mapping[str, Declared]:
    """The fields of a dataclass by name, in the order of declaration."""
    plain, full = (
        typing.get_type_hints(section, include_extras=extras) for extras in (False, True)
    )
    return {
        key: Declared(
            kind=kind,
            entry=typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None,
            limits=next(iter(getattr(full[key], "__metadata__", ())), None),
        )
        for key, kind in plain.items()
    }


fields_of: Callable[[type], Mapping[str, Declared]] = functools.cache(_fields_of)


def as_tuple(name: str, value: str | Iterable[Any], entry: Any) -> tuple[Any, ...]:
    """The entries of a list, which may be given as text with commas.

    Examples:
        >>> as_tuple("label_only.targets", "0, 2-5", int)
        (0, 2, 3, 4, 5)

    Args:
        name: of the field, for messages.
        value: a list, or text.
        entry: the type of the entries: int, of which text may give ranges, float, str, or choices.

    Raises:
        InputError: an entry of another type, one that is there twice, or more than MOST_ENTRIES.
    """
    if isinstance(value, str):
        given: list[Any] = [part.strip() for part in value.split(",") if part.strip()]
    else:
        given = list(value)
    alternatives = _alternatives(entry)
    entries: dict[Any, None] = {}
    for part in given:
        try:
            parsed = next(filter(None, (_parsed(part, kind) for kind in alternatives)))
        except StopIteration:
            words = " or ".join(_IN_WORDS.get(kind, kind) for kind in alternatives)
            raise refusal(name, value, f"{shown(part)} must be {words}") from None
        if len(entries) + len(parsed) > MOST_ENTRIES:
            raise refusal(name, value, f"more than {MOST_ENTRIES:,} entries; give fewer")
        if any(number in entries for number in parsed):
            raise refusal(name, value, f"{shown(part)} is there twice; leave one out")
        entries |= dict.fromkeys(parsed)
    return tuple(entries)


_RANGE = re.compile(r"([0-9]{1,18})\s*[-–]\s*([0-9]{1,18})")
_IN_WORDS = {int: "a whole number or a range such as 2-5", float: "a number"}


def _alternatives(entry: Any) -> list[Any]:
    """Types and words that an entry may be: [float, "fit"] of float | Literal["fit"]."""
    return [kind for part in typing.get_args(entry) for kind in _alternatives(part)] or [entry]


def _parsed(part: Any, kind: Any) -> Sequence[Any]:
    """What one entry stands for if it is of a kind: several numbers if it is a range."""
    if kind == part or type(part) is kind:
        return [part]
    if kind is str:
        return [str(part)]
    if kind is int and isinstance(part, str) and (bounds := _RANGE.fullmatch(part)):
        return range(int(bounds[1]), int(bounds[2]) + 1)
    try:
        number = float(part)
    except (TypeError, ValueError, OverflowError):
        return []
    if isinstance(part, bool) or kind not in (int, float) or (kind is int and number % 1):
        return []
    return [kind(number)]


def as_text(value: Any) -> Any:
    """A list as text with commas; anything else as it is.

    Examples:
        >>> as_text(("fit", 0.5, 2.0))
        'fit, 0.5, 2'
    """
    if not isinstance(value, tuple | list):
        return value
    return ", ".join(
        repr(entry).removesuffix(".0") if isinstance(entry, float) else _as_text(entry)
        for entry in value
    )


def _as_text(entry: Any) -> str:
    return shown(entry) if isinstance(entry, int) else str(entry)


def keep_fraction(keep: str) -> tuple[int, int]:
    """Parse `train.keep`, "m/B", into (m, B).

    Examples:
        >>> keep_fraction("2/4")
        (1, 2)

    Raises:
        InputError: not a fraction strictly between 0 and 1, of numbers with at most six digits.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})|0?\.[0-9]{1,6}", keep.strip())
    if match and (match[2] is None or int(match[2])):
        fraction = Fraction(match[0])
        if 0 < fraction < 1:
            return fraction.numerator, fraction.denominator
    raise InputError(f'train.keep = "{shown(keep)}": give a fraction between 0 and 1 such as "1/2"')


def refusal(name: str, value: Any, reason: str) -> InputError:
    """The message that a field has a value which no stage could use."""
    is_list = not isinstance(value, (int, float))
    text = shown(as_text(value) if is_list else value)
    return InputError(f'{name} = "{text}": {reason}' if is_list else f"{name} = {text}: {reason}")


def shown(value: Any) -> str:
    """A value for a message, cut off where it is long: text as it is, all else as in Python."""
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:  # Python refuses to write these
        return f"a number of more than {MOST_SHOWN} digits"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
