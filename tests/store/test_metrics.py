"""Which epochs of a run are read."""

import json

import pytest

from kdbench.store.record import Record


@pytest.fixture
def epochs(tmp_path):
    """The epochs that are read of a record with these epochs."""

    def read(there, every):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"epoch": epoch}) + "\n" for epoch in there))
        return [row["epoch"] for row in Record(tmp_path).metrics(every=every)]

    return read


@pytest.mark.parametrize(
    ("there", "every", "expected"),
    [
        (range(1, 11), 1, list(range(1, 11))),
        (range(1, 11), 4, [1, 4, 8, 10]),
        (range(1, 9), 4, [1, 4, 8]),
        (range(-3, 6), 3, [-3, 0, 3, 5]),
        (range(4, 10), 4, [4, 8, 9]),
        (range(1, 3), 5, [1, 2]),
        (range(1, 3), 1, [1, 2]),
        (range(1, 6), 2, [1, 2, 4, 5]),
        (range(1, 2), 5, [1]),
        (range(0), 5, []),
    ],
)
def test_every_nth_epoch_the_first_and_the_last(epochs, there, every, expected):
    assert epochs(there, every) == expected


def test_lines_that_cannot_be_read_are_left_out(tmp_path):
    lines = [b"\xff", b'{"epoch": 2}', b"[", b"5", b'{"epoch": 5}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert Record(tmp_path).metrics() == [{"epoch": 2}, {"epoch": 5}]
    assert Record(tmp_path).metrics(every=2)[-1] == {"epoch": 5}


def test_each_epoch_is_read_where_the_first_line_is_not_of_epoch_one(epochs):
    assert epochs(range(2, 7), 1) == [2, 3, 4, 5, 6]
    assert epochs(range(2, 7), 2) == [2, 4, 6]


def test_where_the_first_line_says_no_epoch_each_nth_line_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n' + "".join(f'{{"epoch": {n}}}\n' for n in range(2, 8)))
    assert Record(tmp_path).metrics(every=3) == [{"loss": 1}, {"epoch": 4}, {"epoch": 7}]
