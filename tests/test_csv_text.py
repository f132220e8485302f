"""Cells of strangers: no spreadsheet takes them for formulas, and readers get them back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.csv_text import csv_text

ACTIVE = "=+-@\t\r\n＝＋－＠"


def read_back(text: str) -> str:
    [_, [cell, _]] = csv.reader(io.StringIO(text, newline=""))
    return cell.removeprefix("'")


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "－1"])
def test_what_a_spreadsheet_would_run_is_text(cell):
    [_, [written, _]] = csv.reader(io.StringIO(csv_text([{"a": cell, "b": 1}]), newline=""))
    assert written == f"'{cell}"


@pytest.mark.parametrize("number", [-1, -0.5, 1e-300, "-1", "+3.5", "-1e-5", "-inf"])
def test_numbers_stay_numbers(number):
    assert csv_text([{"a": number}]) == f"a\r\n{number}\r\n"


@settings(max_examples=100)
@given(st.text(st.sampled_from(ACTIVE + "'a1., \"") | st.characters(codec="utf-8"), max_size=8))
def test_one_apostrophe_dropped_gives_the_text_back(cell):
    text = csv_text([{"a": cell, "b": 1}])
    assert read_back(text) == cell
    [_, [written, _]] = csv.reader(io.StringIO(text, newline=""))
    if written.startswith(tuple(ACTIVE)):
        float(written)


def test_names_of_columns_are_cells_too():
    assert csv_text([{"=a": 1}]) == "'=a\r\n1\r\n"
