"""Errors say what is wrong with the place an artifact should go to, and leave nothing there."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swinv2_deploy.artifacts import Lineage, ModelArtifact, WeightsOrigin, read_artifact, write_artifact
from swinv2_deploy.errors import ArtifactError

LINEAGE = Lineage(stage="export", spec={"a": 1}, weights=WeightsOrigin(kind="untrained", source="seed 0"))
Make = Callable[..., ModelArtifact]
Entries = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not be written"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "reports a fault"),
    ],
)
@pytest.mark.parametrize("place", ["mkdtemp", "inside", "lineage", "rename"])
def test_a_disk_error_anywhere_is_one_clear_message(
    number: int, words: str, place: str, entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write fails, nothing is left and the message says why and what to do."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some file")

    targets = {
        "mkdtemp": "swinv2_deploy.atomic.tempfile.mkdtemp",
        "lineage": "swinv2_deploy.artifacts.write_json",
        "rename": "swinv2_deploy.atomic.os.replace",
    }
    with pytest.raises(ArtifactError, match=words) as caught:  # noqa: PT012  # the block is what is tested
        if place in targets:
            monkeypatch.setattr(targets[place], fail)
        with write_artifact(tmp_path / "artifacts" / "nano", LINEAGE):
            if place == "inside":
                fail()

    assert str(tmp_path / "artifacts" / "nano") in str(caught.value)
    assert "--out" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert entries(tmp_path) == []


def test_a_bug_that_raises_another_system_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    """Only what is about the place is translated."""
    with pytest.raises(FileNotFoundError), write_artifact(tmp_path / "nano", LINEAGE):
        (tmp_path / "gone").read_bytes()


@pytest.mark.parametrize("target", ["file/nano", "file/deep/nano"])
def test_a_file_on_the_way_is_named(target: str, make: Make, tmp_path: Path) -> None:
    """--out below a file."""
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="a file, not a folder"):
        make(tmp_path / target)


def test_a_name_that_is_too_long_is_refused(make: Make, entries: Entries, tmp_path: Path) -> None:
    """The system's limit of 255 bytes."""
    with pytest.raises(ArtifactError, match="name is too long"):
        make(tmp_path / ("n" * 300))
    assert entries(tmp_path) == []


def test_too_little_room_is_refused_before_any_work(entries: Entries, tmp_path: Path) -> None:
    """The block does not even run."""
    with (
        pytest.raises(ArtifactError, match=r"disk is full.*MiB are needed and \d+ MiB are free"),
        write_artifact(tmp_path / "nano", LINEAGE, needed_bytes=2**60),
    ):
        pytest.fail("the block ran")
    assert entries(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_artifact_and_nothing_else(make: Make, entries: Entries, small_disk: Path) -> None:
    """A real ENOSPC in the middle of a file, while an artifact is replaced."""
    before = make(small_disk / "nano").sha256
    with (
        pytest.raises(ArtifactError, match="disk is full"),
        write_artifact(small_disk / "nano", LINEAGE, force=True) as folder,
    ):
        (folder / "large").write_bytes(bytes(2**21))

    assert entries(small_disk) == ["nano"]
    assert read_artifact(small_disk / "nano").sha256 == before


def test_weights_on_a_full_disk_are_reported_like_any_file(entries: Entries, small_disk: Path) -> None:
    """safetensors raises an error of its own; the message is the same."""
    import torch

    from swinv2_deploy.modeling.io import save_tensors

    with (
        pytest.raises(ArtifactError, match="disk is full"),
        write_artifact(small_disk / "nano", LINEAGE) as folder,
    ):
        save_tensors({"w": torch.zeros(2**20)}, folder / "model.safetensors", {})

    assert entries(small_disk) == []


def test_a_read_only_disk_is_refused(make: Make, small_disk: Path) -> None:
    """A real EROFS."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match="read-only"):
        make(small_disk / "artifacts" / "nano")


def test_a_mount_point_is_not_replaced(make: Make, entries: Entries, small_disk: Path) -> None:
    """--out may name a place inside a mounted disk, not the disk."""
    with pytest.raises(ArtifactError, match="is a mount point"):
        make(small_disk, force=True)
    assert entries(small_disk) == []
    assert entries(small_disk.parent) == ["disk"]


def test_a_limit_on_file_size_is_reported(entries: Entries, tmp_path: Path) -> None:
    """What ``ulimit -f`` does to a run, where mounting is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (  # noqa: PT012
        pytest.raises(ArtifactError, match="larger than this system or account allows"),
        write_artifact(tmp_path / "nano", LINEAGE) as folder,
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            (folder / "large").write_bytes(bytes(20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert entries(tmp_path) == []
