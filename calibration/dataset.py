"""An image folder, a deterministic choice from it, and a manifest that proves which images were used.

Nothing here depends on the order of the file system, on the working directory, or on a random generator's version.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.errors import CalibrationError

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Image files of a folder, in the order of their names.

    Attributes:
        root: Absolute path of the folder.
        names: Paths relative to ``root`` with forward slashes, sorted.
        classes: First sub-folder names, sorted; empty when some image lies in no sub-folder, so that the images have no labels.
    """

    root: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the images below ``root``.

        Hidden files and folders are skipped, links are followed, and each folder is entered once.

        Raises:
            CalibrationError: When ``root`` is missing, no folder, unreadable, or holds no image.
        """
        folder = Path(os.path.abspath(root))
        if not os.path.exists(folder):
            raise CalibrationError(f"{folder} does not exist; expected a folder of images.")
        if not os.path.isdir(folder):
            raise CalibrationError(f"{folder} is a file; expected the folder that holds the images.")
        names = tuple(sorted(_image_names(folder)))
        if not names:
            raise CalibrationError(f"{folder} holds no image; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        labeled = all("/" in name for name in names)
        return cls(folder, names, tuple(sorted({name.split("/")[0] for name in names})) if labeled else ())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Absolute path of each image, in the order of ``names``."""
        return tuple(self.root / name for name in self.names)

    @property
    def labels(self) -> dict[str, int]:
        """Name to index in ``classes``; empty without labels."""
        index = {name: position for position, name in enumerate(self.classes)}
        return {name: index[name.split("/")[0]] for name in self.names} if index else {}

    def select(self, count: int, seed: int = 0) -> ImageFolder:
        """Choose ``count`` images, as evenly over the classes as they allow.

        A choice of fewer images with the same seed is part of it. ``classes`` stays whole, so labels mean the same.

        Raises:
            CalibrationError: When ``count`` is below 1 or above the number of images.
        """
        if not 1 <= count <= len(self.names):
            raise CalibrationError(
                f"{count} images were asked for; {self.root} has {len(self.names)}, so ask for 1 to that many."
            )

        def shuffled(text: str) -> bytes:
            return hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogateescape")).digest()

        queues: dict[str, deque[str]] = {}
        for name in sorted(self.names, key=shuffled):
            queues.setdefault(name.split("/")[0] if self.classes else "", deque()).append(name)
        chosen: list[str] = []
        while len(chosen) < count:
            # One image a class and round. Classes are shuffled as well, so that a cut round favors none by its name.
            round_of_one_each = [queues[group].popleft() for group in sorted(queues, key=shuffled) if queues[group]]
            chosen += round_of_one_each[: count - len(chosen)]
        return ImageFolder(self.root, tuple(sorted(chosen)), self.classes)

    def manifest(self) -> Manifest:
        """Hash every image.

        Raises:
            CalibrationError: When a file cannot be read.
        """
        return Manifest({name: _sha256_of(self.root / name) for name in self.names})


def split_of(root: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """The folders ``train`` and ``val`` where a folder has both, else None."""
    learned, judged = Path(root, "train"), Path(root, "val")
    return (learned, judged) if learned.is_dir() and judged.is_dir() else None


def open_split(root: str | os.PathLike[str]) -> tuple[ImageFolder, ImageFolder | None]:
    """Images to learn from, and images to be judged on where the folder has both as ``train`` and ``val``.

    A folder of another form is all to learn from.

    Raises:
        CalibrationError: As :meth:`ImageFolder.open`.
    """
    parts = split_of(root)
    if parts is None:
        return ImageFolder.open(root), None
    return ImageFolder.open(parts[0]), ImageFolder.open(parts[1])


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which images were used.

    Attributes:
        files: Relative name to the sha256 of the file's bytes, sorted by name.
    """

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.files:
            raise CalibrationError("The manifest is empty; expected at least one image.")
        for name, digest in self.files.items():
            if not isinstance(name, str) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise CalibrationError(f"The manifest gives {name!r} the hash {digest!r}; expected 64 lowercase hex digits.")
        object.__setattr__(self, "files", dict(sorted(self.files.items())))

    @property
    def sha256(self) -> str:
        """One hash of all names and contents."""
        overall = hashlib.sha256()
        for name, digest in self.files.items():
            # A length before each name: no two lists of files run together into the same bytes.
            encoded = name.encode("utf-8", "surrogateescape")
            overall.update(len(encoded).to_bytes(8, "big") + encoded + bytes.fromhex(digest))
        return overall.hexdigest()


def overlap(first: Manifest, second: Manifest) -> tuple[tuple[str, str], ...]:
    """Pairs of names, one from each manifest, of files with the same bytes."""
    names: dict[str, list[str]] = {}
    for name, digest in second.files.items():
        names.setdefault(digest, []).append(name)
    return tuple((name, other) for name, digest in first.files.items() for other in names.get(digest, ()))


def _image_names(root: Path) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    pending = deque([""])
    while pending:
        prefix = pending.popleft()
        folder = root / prefix
        try:
            status = folder.stat()
            # Links to a parent would otherwise never end.
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            raise CalibrationError(f"{folder} cannot be listed ({error.strerror}); make it readable or remove it.") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A link that leads nowhere, or round in a circle, is neither a folder nor a file.
            if os.path.isdir(entry.path):
                pending.append(f"{prefix}{entry.name}/")
            elif os.path.isfile(entry.path) and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield prefix + entry.name


def _sha256_of(path: Path) -> str:
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read ({error.strerror}); make it readable or remove it.") from error
