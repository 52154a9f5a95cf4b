"""Two results folders side by side."""

import pytest

from kdbench.report.comparison import compare, conflicts
from kdbench.store.store import Store


@pytest.fixture
def suite(load):
    return load("""
protocol: smoke
dataset: digits
trials: 2
grid: {teacher: resnet8x4, student: resnet8, method: [ce, kd, at, sp]}
""")


@pytest.fixture
def stores(suite, tmp_path, finish):
    """Both hold ce (one trial of it with the same accuracy), each one more method; sp is in neither."""
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    ce, kd, at = [[run for run in suite.runs if run.method == name] for name in ("ce", "kd", "at")]
    for store, values in ((first, (50.0, 60.0)), (second, (50.0, 62.0))):
        for run, value in zip(ce, values, strict=True):
            finish(store.run(run.id), last=value)
    finish(first.run(kd[0].id), last=70.0)
    finish(second.run(at[0].id), last=80.0)
    return first, second


def test_cell_by_cell(suite, stores):
    (sheet,) = compare([suite], *stores)
    lines = [[entry.text for entry in line] for line in sheet.lines]
    assert lines[0] == ["method, networks", str(stores[0].root), str(stores[1].root), "difference"]
    assert lines[1:] == [
        ["ce, resnet8x4 → resnet8", "55.00 ± 7.07 (2)", "56.00 ± 8.49 (2)", "+1.00"],
        ["kd, resnet8x4 → resnet8", "70.00 (1 of 2)", "–", "–"],
        ["at, resnet8x4 → resnet8", "–", "80.00 (1 of 2)", "–"],
    ]
    assert sheet.notes == (
        f"kd on resnet8x4 → resnet8: only in {stores[0].root}",
        f"at on resnet8x4 → resnet8: only in {stores[1].root}",
    )


def test_nothing_to_compare(suite, tmp_path):
    assert compare([suite], Store(tmp_path / "x"), Store(tmp_path / "y")) == []


def test_conflicts_are_told(suite, stores):
    (message,) = conflicts([suite], stores)
    run = suite.runs[1]
    assert message == (
        f"resnet8 ce #1 ({run.id}): 60.00 in {stores[0].root}, 62.00 in {stores[1].root}; the first is shown"
    )
    assert list(conflicts([suite], stores[:1])) == []
    assert list(conflicts([suite], [stores[0], stores[0]])) == []
