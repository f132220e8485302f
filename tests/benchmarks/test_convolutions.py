from __future__ import annotations

from benchmarks import convolutions


def test_it_prints_a_row_for_each_pass_of_a_layer(capsys):
    convolutions.main(convolutions.Options(layers=("8,32",), batch=4, repeats=1))
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "4 images" in title
    assert head.split() == ["Winograd", "direct", "PyTorch", "error"]
    assert [row[16:32].strip() for row in rows] == ["forward", "input gradient", "weight gradient"]
    assert all(float(row.split()[-1]) < 1e-5 for row in rows)
