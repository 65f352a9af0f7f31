"""Folders that appear whole or not at all: locked, written beside their place, flushed, renamed into it. No torch import.

A run that is killed leaves a hidden ``.<name>.<random>.tmp`` behind, which nothing reads; the next run that writes the same
folder removes it, and puts an older folder back if the kill came between the two renames that replace one.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from swinv2_deploy.errors import ArtifactError, ArtifactLocked

RANDOM = "[a-z0-9_]" * 8
"""What :func:`tempfile.mkdtemp` puts between prefix and suffix."""

REASONS = {
    errno.ENOSPC: "the disk is full; free some room or use --out on another disk",
    errno.EDQUOT: "the disk quota is used up; free some room or use --out elsewhere",
    errno.EROFS: "the disk is read-only; use --out elsewhere",
    errno.EACCES: "the folder may not be written; check its permissions or use --out elsewhere",
    errno.EPERM: "the folder may not be written; check its permissions or use --out elsewhere",
    errno.EFBIG: "a file is larger than this system or account allows; use --out elsewhere or raise the limit",
    errno.EIO: "the disk reports a fault; use --out on another disk",
    errno.ENOTDIR: "something on the way to it is a file, not a folder; use --out elsewhere",
    errno.EEXIST: "something on the way to it is a file, not a folder; use --out elsewhere",
    errno.ENAMETOOLONG: "the name is too long; use a shorter --out",
    errno.EBUSY: "it is a mount point, which cannot be replaced; use --out for a folder inside it",
}


def flush(path: Path) -> None:
    """Have a file or folder on the disk before anything relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(temporary: Path, path: Path) -> None:
    """Rename into place; an older artifact is moved aside first and put back if the rename fails."""
    if not path.exists():
        os.replace(temporary, path)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        try:
            os.replace(path, aside / path.name)
            os.replace(temporary, path)
        except BaseException:
            if (aside / path.name).exists() and not path.exists():
                os.replace(aside / path.name, path)
            raise
        finally:
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
    flush(path.parent)


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file beside its place and rename it into it, so that it holds the old content or the new, never a part."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Clean up after a run that was killed while it wrote this artifact: it held the lock, so nothing here is in use."""
    for aside in path.parent.glob(f".{escape(path.name)}.{RANDOM}.old"):
        if (aside / path.name).exists() and not path.exists():  # killed between the two renames
            os.replace(aside / path.name, path)
        shutil.rmtree(aside, ignore_errors=True)
    for left in path.parent.glob(f".{escape(path.name)}.{RANDOM}.tmp"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def made_parents(path: Path) -> Iterator[None]:
    """Make the folders above; those that were missing go again when the block fails and leaves them empty."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


@contextmanager
def whole_folder(path: Path, refuse: Callable[[], None], *, needed_bytes: int = 0) -> Iterator[Path]:
    """Fill the yielded folder; it becomes ``path`` when the block ends well, and vanishes when it does not.

    Args:
        path: Folder to make, absolute.
        refuse: Raises where the place is taken. Called again under the lock: the run that held it until then may have made it.
        needed_bytes: Estimated size; refused before any work where the disk has less room.

    Raises:
        ArtifactError: When it cannot be written, or the disk is full.
        ArtifactLocked: When another run is writing it.
    """
    with disk_errors(path):
        refuse()
    with disk_errors(path), made_parents(path), locked(path):
        sweep(path)
        refuse()
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            free = shutil.disk_usage(temporary).free
            if free < needed_bytes * 1.1:
                raise OSError(errno.ENOSPC, f"{needed_bytes / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free")
            temporary.chmod(0o755)
            yield temporary
            replace_folder(temporary, path)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only run that writes ``path``; the system unlocks it when a run dies.

    Raises:
        ArtifactLocked: When another run is writing it.
    """
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ArtifactLocked(f"Another run is writing {path}; wait for it, or use --out for another folder.") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what is wrong with the place instead of raising the system's error.

    Raises:
        ArtifactError: When ``path`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise ArtifactError(
            f"{path} cannot be written: {REASONS[error.errno]} ({error.strerror}). Nothing was left behind."
        ) from error
