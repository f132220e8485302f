"""docs/methods.md names, for each known mistake, tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "methods.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_the_page_names_exists(file, test):
    assert f"\ndef {test}(" in (TESTS / file).read_text("utf-8")


def test_every_known_mistake_has_its_number_and_names_a_test():
    pitfalls = re.findall(r"^\*\*3\.(\d+) (.*?)(?=^\*\*3\.|^## )", PAGE, re.DOTALL | re.MULTILINE)
    assert [int(number) for number, _ in pitfalls] == list(range(1, 17))
    for number, text in pitfalls:
        assert "::test_" in text, number
