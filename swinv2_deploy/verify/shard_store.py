"""Shards on disk: a verification that was killed goes on where it was, and several processes share one.

Every shard is a file that appears whole or not at all. A process takes a shard by locking its name; the system unlocks it when the
process dies, so another one takes it over. No process needs to know of any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swinv2_deploy.atomic import disk_errors, replace_file
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.verify.comparison import Shard

IDENTITY = "verification.json"
SCHEMA = 1


class ShardStore:
    """The shards of one verification in a folder.

    Args:
        folder: The folder; made when it is missing.
        identity: What the figures depend on, by name, in plain JSON types.
        measured: What the first process measured and all others use, in plain JSON types.

    Raises:
        ArtifactError: When the folder holds another verification, is no such folder, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        self.folder = folder.absolute()
        stated = {"schema": SCHEMA, "identity": dict(identity), "measured": dict(measured)}
        with disk_errors(self.folder):
            self._shards.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{IDENTITY}.lock"):
                found = self._read_identity()
                if found is None:
                    replace_file(self.folder / IDENTITY, _json(stated), mode=0o644)
                    found = json.loads(_json(stated))
        wanted = json.loads(_json({"schema": SCHEMA, **identity}))
        stored = {"schema": found.get("schema"), **found["identity"]}
        different = [name for name in wanted | stored if wanted.get(name) != stored.get(name)]
        if different:
            raise ArtifactError(
                f"{self.folder} holds the shards of another verification: its {', '.join(different)} differ. Use another --run "
                "folder, or delete this one to start again."
            )
        self.measured: dict[str, Any] = found["measured"]

    @property
    def _shards(self) -> Path:
        return self.folder / "shards"

    def _read_identity(self) -> dict[str, Any] | None:
        path = self.folder / IDENTITY
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found["measured"], dict) or not isinstance(found["identity"], dict):
                raise TypeError("not a table")
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} does not say which verification the shards are of ({error}); use another --run folder, or delete this one."
            ) from error
        return dict(found)

    def path(self, index: int) -> Path:
        """File of a shard."""
        return self._shards / f"{index:06d}.json"

    def has(self, index: int) -> bool:
        """Whether a shard was compared."""
        return self.path(index).exists()

    def load(self, index: int) -> Shard:
        """A shard that was compared.

        Raises:
            ArtifactError: When its file is damaged.
        """
        path = self.path(index)
        try:
            shard = Shard.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); delete it, and the shard is compared again.") from error
        if shard.index != index:
            raise ArtifactError(f"{path} holds shard {shard.index}; delete it, and the shard is compared again.")
        return shard

    def save(self, shard: Shard) -> None:
        """Keep a shard.

        Raises:
            ArtifactError: When the folder cannot be written.
        """
        with disk_errors(self.folder):
            replace_file(self.path(shard.index), _json(shard.to_dict()), mode=0o644)

    def compare(self, indices: range, compare: Callable[[int], Shard], *, waits: bool) -> int:
        """Compare and keep every shard that nobody has compared; the number of those compared here.

        Args:
            indices: Shards to look at.
            compare: Compares one.
            waits: Whether to wait for shards that other processes hold, and to take over those of processes that died.
        """
        done = 0
        for patient in (False, True) if waits else (False,):
            for index in indices:
                if self.has(index):
                    continue
                with self._taken(index, waits=patient) as mine:
                    if mine and not self.has(index):
                        self.save(compare(index))
                        done += 1
        return done

    @contextmanager
    def _taken(self, index: int, *, waits: bool) -> Iterator[bool]:
        """Hold a shard's name, or not, where another process holds it."""
        lock = FileLock(self._shards / f".{index:06d}.lock")
        try:
            lock.acquire(timeout=-1 if waits else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _json(value: Any) -> bytes:
    """ASCII, for a name of a file may be no valid Unicode."""
    return (json.dumps(value) + "\n").encode()
