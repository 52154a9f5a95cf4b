"""Who hears how far a download is."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Hears of every block that arrives, and of what else happens."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """So many bytes of a file are there, of so many in all where the server has told."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Silent:
    """Nobody listens."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""
