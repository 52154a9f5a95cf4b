"""The exceptions of kdbench, as one tree.

KdbenchError                exit code 1: something failed while running
├── BadInput                exit code 2: nothing was run
│   └── BadSuite            every problem of a suite file, each with its place
├── BadRecord               a file of the results directory does not hold what it should
│   ├── UnreadableRecord    the system does not let it be read: permissions, a faulty disk
│   └── LostTeacher         a teacher's weights are damaged; they are quarantined and trained again
├── LostLease               another process has taken over what this one was at
├── CannotSave              the results directory cannot be written; resumable
├── NoDevice                no device is left that the work could go on with; resumable
└── Interrupted             exit code 130: stopped on request; resumable
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class KdbenchError(Exception):
    """Any failure that a user can understand from its message alone."""

    exit_code = 1


class BadInput(KdbenchError):
    """A name, file or option that cannot be used. Nothing was run."""

    exit_code = 2


class BadRecord(KdbenchError):
    """A file of the results directory that does not hold what it should."""


class UnreadableRecord(BadRecord):
    """A file of the results directory that the system does not let be read. What it holds may be whole."""


class LostTeacher(BadRecord):
    """A teacher whose weights are damaged. They were quarantined; it must be retrained."""


class LostLease(KdbenchError):
    """What this process was at was taken over by another, which saw no sign of life of it for long."""


class CannotSave(KdbenchError):
    """Results cannot be written, for want of space or permission. The work can be resumed."""


class NoDevice(KdbenchError):
    """None of the devices can be used, or can be used any longer. The work can be resumed."""


class Interrupted(KdbenchError):
    """The user stopped the work. It can be resumed."""

    exit_code = 130


def message_of(error: BaseException) -> str:
    """An error's message on one line; "" if it has none, or fails to format."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


LONGEST_REASON = 400
"""Characters. Longer reasons are truncated; the traceback has them in full."""


def reason_of(error: BaseException, where: str = "") -> str:
    """Why something failed, in one line that is not too long. The type is named of errors that are not kdbench's own."""
    text = message_of(error)
    if not isinstance(error, KdbenchError) or not text:
        text = f"{type(error).__name__}{where}" + (f": {text}" if text else "")
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} …"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    ``line`` counts from 1 (0 where no line applies); ``path`` is written like ``grid[0].student[2]``.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}  {self.path}: {self.message}" if self.path else f"{place}  {self.message}"


PRINTED = 100
"""As many problems are printed; ``BadSuite.problems`` holds all."""


class BadSuite(BadInput):
    """All the problems that were found in one or several files, ordered by place."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.file, p.line, p.path, p.message))
        count = len(self.problems)
        lines = [str(problem) for problem in self.problems[:PRINTED]]
        if count > PRINTED:
            lines.append(f"… and {count - PRINTED:,} more, of this kind or others: kdbench validate --json lists all.")
        lines.append(f"{count:,} problem{'s' if count != 1 else ''}. Nothing was run.")
        super().__init__("\n".join(lines))
