"""What became of tiny runs: one line for each suite, and what failed or is missing in its tables.

    python .ci/tiny.py RESULTS SUITE…

Exit code 1 where a run failed, or a cell of a suite's tables is empty without a reason or lacks what was planned.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from kdbench.report.assemble import Report, measured_report
from kdbench.report.cells import Cell
from kdbench.store.store import Store
from kdbench.suite.load import load_suites


def main(results: str, *names: str) -> int:
    """Print the lines; returns the exit code."""
    wrong = 0
    for suite in load_suites(names, tiny=True):
        report = measured_report([suite], [Store(Path(results))])
        done = sum(row.status == "done" for row in report.rows)
        cells = list(cells_of(report))
        problems = [f"{name}: {cell.note or 'empty'}" for name, cell in cells if lacks(cell)]
        filled = sum(cell.mean is not None for _, cell in cells)
        print(
            f"{suite.name}: {done} of {len(report.rows)} runs, {len(suite.measurements)} measurements, "
            f"{filled} cells filled, {len(cells) - filled} empty" + (f", {len(problems)} WRONG" if problems else "")
        )
        for problem in problems:
            print(f"  {problem}")
        wrong += len(problems) + len(report.rows) - done
    return int(wrong > 0)


def cells_of(report: Report) -> Iterator[tuple[str, Cell]]:
    """The cells of all tables by their names."""
    for printed in report.printed:
        yield from ((f"{printed.layout.id}, {place.name}", cell) for place, cell in printed.cells.items())
    others = [(table.group.title, table.cells) for table in report.tables]
    others += [(table.title, table.cells) for table in report.measurements]
    for title, cells in others:
        yield from ((f"{title}, {method}, {' → '.join(place)}", cell) for (method, place), cell in cells.items())


def lacks(cell: Cell) -> bool:
    """Whether a cell has less than was planned, or nothing and no word on why."""
    return cell.n < cell.planned or (cell.mean is None and not cell.note)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
