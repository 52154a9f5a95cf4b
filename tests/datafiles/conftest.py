"""Small data sets in the official formats, a catalogue that knows them, and a server that has them."""

import contextlib
import runpy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdbench.catalogue import datasets as catalogue
from kdbench.catalogue.text import normalise


@pytest.fixture(scope="session")
def official():
    """The functions of official.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("official.py"))))


@pytest.fixture
def know(monkeypatch):
    """Put entries into the catalogue, in the place of those of the same name."""

    def put(*entries):
        known = catalogue.datasets() | {entry.name: entry for entry in entries}
        spellings = {normalise(name): each for each in known.values() for name in (each.name, *each.aliases)}
        monkeypatch.setattr(catalogue, "datasets", lambda: known)
        monkeypatch.setattr(catalogue, "_spellings", lambda: spellings)

    return put


class Heard:
    """A listener that remembers."""

    def __init__(self):
        self.notes, self.steps = [], []

    def progress(self, name, done, total):
        self.steps.append((name, done, total))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def heard():
    return Heard()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``, from the middle if asked to, in the way that ``server.manners`` says."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content, manner = self.server.files.get(self.path), self.server.manners.get(self.path, "good")
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and manner != "no ranges" else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", "text/html; charset=utf-8" if manner == "page" else "application/octet-stream")
        if manner != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        with contextlib.suppress(OSError):
            self.wfile.write(rest[: len(rest) // 2] if manner == "breaks" else rest)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A server on this machine: ``url``, ``files`` by path, ``manners`` by path, and what was ``asked`` of it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.files, serving.manners, serving.asked = {}, {}, []
        serving.url = f"http://127.0.0.1:{serving.server_port}"
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()
