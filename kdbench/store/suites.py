"""The suites that were run, and the code of plug-ins, kept with the results: so that these can be reported elsewhere.

suites/ID/NAME.yaml  the file as it was, with the modules of its plug-ins; ID is a hash of its text
suites/ID/about.json where it was, when it was last run, the SHA-256 of the files of weights that it names, and what is known
                     of the images of one's own
sources/SHA256/      the modules of a plug-in
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kdbench.catalogue.plugins import in_folder
from kdbench.catalogue.text import one_line, shorten
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, BadRecord, BadSuite
from kdbench.files import write_json, write_text
from kdbench.store.reading import read
from kdbench.store.record import timestamp
from kdbench.store.store import Store, exclusive, write_modules
from kdbench.suite.components import hashed
from kdbench.suite.load import Known
from kdbench.suite.methods import sources_of
from kdbench.suite.specs import Imported
from kdbench.suite.suite import Suite
from kdbench.suite.yaml_reader import Document, read_yaml


class About(BaseModel):
    """What about.json says.

    ``file`` and the keys of ``weights`` are absolute paths; of a pipe, ``file`` is the working folder with a slash. What was
    wanted at last: ``trials``, ``tiny`` runs, and of these a ``part``, by their ids.
    """

    file: str
    run: str
    weights: dict[str, str]
    images: dict[str, dict[str, Any]] = {}
    settings: list[str] = []
    trials: int | None = None
    tiny: bool = False
    part: list[str] | None = None


@dataclass(frozen=True)
class KeptSuite:
    """A suite as it was when it was run last."""

    folder: Path
    about: About

    @property
    def piped(self) -> bool:
        return self.about.file.endswith(os.sep)

    @property
    def file(self) -> Path:
        return self.folder / ("suite.yaml" if self.piped else Path(self.about.file).name)

    @property
    def text(self) -> bytes:
        """The archived file's content; empty where it cannot be read."""
        try:
            return read(str(self.file))
        except (OSError, BadRecord):
            return b""

    @property
    def name(self) -> str:
        """The name that its text gives it; "" if none."""
        try:
            data = read_yaml(self.file).data
        except BadSuite:
            return ""
        name = data.get("name") if isinstance(data, dict) else None
        return name if isinstance(name, str) else ""

    @property
    def original(self) -> Path:
        """The original path if the file is unchanged, else the archived copy."""
        path = Path(self.about.file)
        try:
            return path if path.is_file() and path.read_bytes() == self.text else self.file
        except (OSError, ValueError):
            return self.file


def keep_suites(suites: Iterable[Suite], store: Store) -> None:
    """Archive suites. Raises OSError, or KdbenchError where a lock cannot be used."""
    for suite in suites:
        folder = store.root / "suites" / hashed(suite.text)
        before = about_of(folder)
        weights = {os.path.abspath(path): sha256 for sha256, path in suite.weight_files.items()}
        file = os.path.abspath(suite.file) if os.path.isfile(suite.file) else os.path.join(os.getcwd(), "")
        weights = {**(before.weights if before else {}), **weights}
        images = {**(before.images if before else {}), **_facts_of_images(suite)}
        about = About(
            file=file,
            run=timestamp(),
            weights=weights,
            images=images,
            settings=list(suite.settings),
            trials=suite.trials,
            tiny=suite.tiny,
            part=list(suite.specs) if suite.whole else None,
        )
        with exclusive(folder):
            for source in sources_of((suite.whole or suite).specs.values()):
                write_modules(source.local_files, folder)
            write_text(KeptSuite(folder, about).file, suite.text)
            write_json(folder / "about.json", about.model_dump())


def find_kept(stores: Sequence[Store], name: str) -> Path | None:
    """The suite of this name, or from a file of this name, that was run last; None if none was kept."""
    found = [kept for kept in all_kept(stores) if name in (kept.file.name, kept.file.stem, kept.name)]
    return found[-1].original if found else None


def _facts_of_images(suite: Suite) -> dict[str, dict[str, Any]]:
    """What is known of a suite's own images, by their source."""
    specs = {spec.dataset.images.sha256: spec.dataset.images for spec in suite.specs.values() if spec.dataset.images}
    return {
        source.key: specs[sha256].model_dump(mode="json")
        for sha256, source in suite.image_sources.items()
        if sha256 in specs
    }


def kept_suites(stores: Sequence[Store]) -> list[KeptSuite]:
    """The suites that were run last from each file with the same settings, and all from pipes; the first run first."""
    latest = {
        (each.folder.parent, each.folder if each.piped else each.about.file, *each.about.settings): each
        for each in all_kept(stores)
    }
    return list({each.folder.name: each for each in latest.values()}.values())


def image_sources(store: Store) -> dict[str, ImageSource]:
    """Where the images of one's own were when suites with them were run last, by the hash of their content."""
    found = {}
    for kept in all_kept([store]):
        for key, facts in kept.about.images.items():
            with suppress(ValueError, TypeError, KeyError):  # of another version
                found[facts["sha256"]] = ImageSource.of_key(key)
    return found


class ArchivedFiles:
    """Looks up a suite's missing files in the archive of its last run.

    Weights are known by their SHA-256, modules are kept. ``messages`` are for the user: one for each file that is gone.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self._kept = all_kept(stores)
        self.messages: dict[str, None] = {}

    def tell(self, document: Document) -> None:
        """Let a suite's document know of its weights and modules."""
        document.known, document.elsewhere = self._weights(document), self._modules(document)
        document.images, document.run = self._images(document), partial(finished_run, self._stores)
        document.class_counts = self._class_counts

    def _images(self, document: Document) -> Callable[[ImageSource], dict[str, Any] | None]:
        """The look-up of the facts of images that are not there any more, as a suite with them was run last.

        They are the same at the same place, or from the folder on where a suite with the same text was.
        """
        here, id = os.path.abspath(document.folder), hashed(document.text)

        def find(source: ImageSource) -> dict[str, Any] | None:
            if os.path.exists(source.path):
                return None
            within = os.path.relpath(source.path, here)
            for each in reversed(self._kept):
                there = os.path.normpath(os.path.join(os.path.dirname(each.about.file), within))
                keys = [source.key, *([replace(source, path=there).key] if each.folder.name == id else [])]
                found = next((each.about.images[key] for key in keys if key in each.about.images), None)
                if found is not None:
                    gone = f"{source.path} is not there: what is known of its images is taken from the run of"
                    self.messages[f"{gone} {each.about.run}"] = None
                    return found
            return None

        return find

    def _class_counts(self, sha256: str, key: str | None) -> frozenset[int] | None:
        """For how many classes a file was imported with its classifier; empty: without it. None: it was not imported."""
        same: list[Imported] = []
        for record in (record for store in self._stores for record in store.records("teachers")):
            with suppress(ValidationError):  # another kind of stage, or one that cannot be read
                stage = Imported.model_validate(record.spec())
                same += [stage] if (stage.weights.sha256, stage.weights.key) == (sha256, key) else []
        return frozenset(stage.dataset.class_count for stage in same if stage.dataset) if same else None

    def _modules(self, document: Document) -> Callable[[str], Path | None]:
        """The look-up of a suite's modules: all are the kept ones, or none is."""
        own, id = document.folder.resolve(), hashed(document.text)
        kept = next((each for each in reversed(self._kept) if each.folder.name == id), None)
        modules = {each.stem for each in kept.folder.glob("*") if in_folder(each.stem, kept.folder)} if kept else set()
        if not kept or any(in_folder(each, own) for each in modules):
            return lambda top: None

        def find(top: str) -> Path | None:
            if top not in modules:
                return None
            gone = f"the modules that were beside {document.file} are not there"
            self.messages[f"{gone}: their code is taken from the run of {kept.about.run} ({kept.folder})"] = None
            return kept.folder.resolve()

        return find

    def _weights(self, document: Document) -> Callable[[str], str | None]:
        """The look-up of a suite's weights, as they are written there.

        A file is the same at the same place, or from the folder on where a suite with the same text was.
        """
        here, id = document.folder, hashed(document.text)

        def find(written: str) -> str | None:
            path = os.path.abspath(os.path.join(here, written))
            if _readable(path):
                return None
            found = None
            for each in self._kept:
                there = os.path.abspath(os.path.join(os.path.dirname(each.about.file), written))
                known = each.about.weights.get(there if each.folder.name == id else path)
                found = (known, there, each.about.run) if known else found
            if not found:
                return None
            sha256, there, run = found
            if not _readable(there):
                self.messages[f"{path} is not there: its SHA-256 is taken from the run of {run} ({sha256})"] = None
            return sha256

        return find


def teaching_runs(stores: Sequence[Store]) -> Known:
    """Lets a suite's document know of finished runs alone."""

    def tell(document: Document) -> None:
        document.run = partial(finished_run, stores)

    return tell


def finished_run(stores: Sequence[Store], id: str) -> dict[str, Any]:
    """The stored spec of a finished run whose id begins so, and whose weights were kept. Raises BadInput for any other."""
    found = [(record, store) for store in stores if (record := store.find("runs", id))]
    where = ", ".join(str(store.root) for store in stores)
    if not found:
        aside = [path for store in stores for path in store.quarantined("runs") if path.name.startswith(id)]
        if aside:
            raise BadInput(f"run {id} was damaged and is quarantined ({aside[0]}): run its suite again")
        raise BadInput(f"no run's id in {where} begins with '{shorten(id)}' (four digits or more): kdbench list runs")
    try:
        done = [record for record, _ in found if record.result()]
    except BadRecord as error:
        raise BadInput(f"{error}. The next kdbench run of its suite makes it again") from None
    record = (done or [record for record, _ in found])[0]
    if not done:
        failure = record.failure()
        state = f"failed: {failure.reason}" if failure else f"{len(record.metrics())} epochs so far"
        raise BadInput(f"run {record.id} is not finished ({one_line(state)}): run its suite first")
    if not record.keeps_weights():
        raise BadInput(f"the weights of run {record.id} were not kept, as those of tiny runs: name another run")
    return record.spec()


def all_kept(stores: Sequence[Store]) -> list[KeptSuite]:
    """All, by the time at which they were run last."""
    folders = [folder for store in stores for folder in sorted((store.root / "suites").glob("*"))]
    found = [KeptSuite(folder, about) for folder in folders if (about := about_of(folder))]
    return sorted(found, key=lambda each: each.about.run)


def _readable(path: str) -> bool:
    try:
        return os.access(path, os.R_OK)
    except ValueError:  # a null byte
        return False


def about_of(folder: Path) -> About | None:
    """What is known of an archived suite; None if nothing that can be read."""
    try:
        return About.model_validate_json((folder / "about.json").read_bytes())
    except (OSError, ValidationError):
        return None
