"""Timing cache: what kernels took on this machine, kept from build to build and shared by runs at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from swinv2_deploy.atomic import disk_errors, replace_file
from swinv2_deploy.runtime.tensorrt.backend import cache_folder

if TYPE_CHECKING:
    from swinv2_deploy.runtime.tensorrt.backend import Backend

logger = logging.getLogger(__name__)


@contextmanager
def timing_cache(backend: Backend, options: Any, file: str | None) -> Iterator[None]:
    """Give the builder what earlier builds measured, and keep what this one adds when it ends well.

    Args:
        backend: What builds; TensorRT-RTX measures nothing when it builds, and takes no file.
        options: Builder configuration.
        file: The file; None takes that of this machine and version, ``""`` none.

    Raises:
        SpecError: When a file is named and the back end has no timing cache.
        ArtifactError: When the file cannot be written.
    """
    path = cache_path(backend, file)
    if path is None:
        yield
        return
    cache = options.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not options.set_timing_cache(cache, ignore_mismatch=False):
        # Made by another version or for another GPU: it is replaced when this build ends well.
        logger.warning("The timing cache %s belongs to another version or GPU; it is measured anew.", path)
        options.set_timing_cache(options.create_timing_cache(b""), ignore_mismatch=False)
    yield
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")) as lock:
            _merge(options, path)
            Path(lock.lock_file).unlink(missing_ok=True)


def cache_path(backend: Backend, file: str | None) -> Path | None:
    """Where timings are kept, or None where there are none.

    Raises:
        SpecError: When a file is named and the back end has no timing cache.
    """
    if file == "":
        return None
    if file is not None:
        backend.require_timing_cache(file)
        return Path(file)
    if not backend.has_timing_cache:
        return None
    gpu = "-".join(backend.default_targets)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{backend.name}-{backend.version}-{gpu}")
    return cache_folder("timing") / f"{name}.cache"


def _merge(options: Any, path: Path) -> None:
    """Write the cache of this build and what another run has put there meanwhile."""
    cache = options.get_timing_cache()
    if path.is_file():
        cache.combine(options.create_timing_cache(path.read_bytes()), ignore_mismatch=True)
    replace_file(path, bytes(cache.serialize()))
