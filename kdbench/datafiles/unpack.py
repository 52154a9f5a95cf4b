"""Unpack archives in a staging folder, then move the files into place: all or nothing, and never outside the data folder."""

from __future__ import annotations

import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.download import checksum_mismatches
from kdbench.errors import KdbenchError
from kdbench.files import quarantine


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return path.name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))


def unpack(archive: Path, facts: Dataset, root: Path) -> None:
    """Unpack a data set's folder below ``root``.

    Of an archive whose files have sums of their own, only these are taken. Raises KdbenchError for a damaged archive, for one
    without the files, and for one with a name that leads out of the folder.
    """
    staging_dir = root / f".{facts.name}.unpacking"
    shutil.rmtree(staging_dir, ignore_errors=True)
    try:
        staging_dir.mkdir()
        if archive.name.endswith(".zip"):
            _unzip(archive, staging_dir)
        else:
            _untar(archive, staging_dir, {posixpath.join(facts.folder, file) for file in facts.files})
        _check(archive, facts, staging_dir)
        _move(facts, staging_dir / facts.folder, root / facts.folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise KdbenchError(f"{archive} cannot be unpacked: {error}. Remove it and fetch it again.") from None
    except OSError as error:
        raise KdbenchError(f"{archive} cannot be unpacked into {root}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)


def _untar(archive: Path, folder: Path, wanted: set[str]) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _reject_path_traversal(archive, member.name)
            if posixpath.normpath(member.name) in wanted:
                if not member.isreg():
                    raise KdbenchError(f"{archive}: {member.name} is not a plain file. Nothing of it is used.")
                tar.extract(member, folder, filter="data")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _reject_path_traversal(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise KdbenchError(f"{archive}: {member.filename} is not a plain file. Nothing of it is used.")
        file.extractall(folder)


def _reject_path_traversal(archive: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise KdbenchError(f"{archive}: {name} leads out of the folder. Nothing of it is used.")


def _check(archive: Path, facts: Dataset, root: Path) -> None:
    wrong = [path.name for path in facts.lacking(root)] + checksum_mismatches(facts, root)
    if wrong:
        raise KdbenchError(f"{archive} does not hold {facts.name}: {', '.join(wrong)} missing or not the official one")


def _move(facts: Dataset, source: Path, target: Path) -> None:
    """Move a folder into place. Files with sums replace the old ones; a folder without gives way as a whole."""
    if target.exists() and all(facts.files.values()):
        for file in facts.files:
            shutil.move(source / file, target / file)
        return
    if target.exists():
        quarantine(target)
    source.rename(target)
