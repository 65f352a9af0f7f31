"""Artifacts appear whole or not at all, one run at a time, and replace another only when that is asked for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from reference_model.config import make_config
from reference_model.preprocessing import Preprocessing
from swinv2_deploy import atomic
from swinv2_deploy.artifacts import Lineage, ModelArtifact, WeightsOrigin, newest_artifact, read_artifact, write_artifact
from swinv2_deploy.errors import ArtifactError, ArtifactLocked

CONFIG = make_config(embed_dim=8, depths=(1,), num_heads=(1,), window_size=4, image_size=32, num_classes=2)
LINEAGE = Lineage(stage="export", spec={"a": 1}, weights=WeightsOrigin(kind="untrained", source="seed 0"))
Fill = Callable[..., None]
Make = Callable[..., ModelArtifact]
Entries = Callable[[Path], list[str]]


# --- written whole -----------------------------------------------------------------------------------------------------


def test_an_artifact_holds_what_was_written_and_nothing_else(make: Make, entries: Entries, tmp_path: Path) -> None:
    """Config, preprocessing, lineage and hashes come back; no lock and no temporary folder stays."""
    artifact = make(tmp_path / "deep" / "down" / "nano")

    assert entries(artifact.path.parent) == ["nano"]
    assert artifact.config == CONFIG
    assert artifact.preprocessing == Preprocessing.published(32)
    assert list(artifact.lineage.files) == ["config.json", "onnx/model.onnx", "preprocessor_config.json"]
    assert artifact.lineage.spec == {"a": 1}
    assert artifact.lineage.weights == LINEAGE.weights
    assert artifact.lineage.tools["python"] == sys.version.split()[0]
    assert artifact.onnx_files == {"model": artifact.path / "onnx/model.onnx"}
    assert artifact.file("onnx/model.onnx").read_bytes() == b"weights"


def test_others_may_read_it(fill: Fill, tmp_path: Path) -> None:
    """A server under another user reads the files, however private the writing library made them."""
    with write_artifact(tmp_path / "nano", LINEAGE) as folder:
        fill(folder)
        (folder / "onnx/model.onnx").chmod(0o600)

    assert (tmp_path / "nano").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "nano/onnx/model.onnx").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(143)], ids=["bug", "ctrl-c", "sigterm"])
def test_an_exception_inside_leaves_nothing(error: BaseException, fill: Fill, entries: Entries, tmp_path: Path) -> None:
    """Neither a half artifact nor the folders made for it, and the exception is the same."""
    with pytest.raises(type(error)), write_artifact(tmp_path / "artifacts" / "nano", LINEAGE) as folder:  # noqa: PT012
        fill(folder)
        raise error

    assert entries(tmp_path) == []


def test_a_failure_leaves_other_artifacts_and_folders_alone(make: Make, entries: Entries, tmp_path: Path) -> None:
    """Only what the run made is removed."""
    make(tmp_path / "artifacts" / "other")
    with pytest.raises(RuntimeError), write_artifact(tmp_path / "artifacts" / "nano", LINEAGE):
        raise RuntimeError

    assert entries(tmp_path / "artifacts") == ["other"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from swinv2_deploy import atomic
    from swinv2_deploy.artifacts import Lineage, WeightsOrigin, write_artifact

    path, moment = Path(sys.argv[1]), sys.argv[2]
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    replace = os.replace
    def counted(*arguments, calls=[]):
        calls.append(arguments)
        if moment == f"before rename {len(calls)}":
            die()
        replace(*arguments)
    os.replace = counted
    lineage = Lineage(stage="export", spec={}, weights=WeightsOrigin(kind="untrained", source=""))
    with write_artifact(path, lineage, force=True) as folder:
        (folder / "half").write_bytes(bytes(1000))
        if moment == "inside":
            die()
"""


def kill(path: Path, moment: str, root: Path) -> None:
    """Write an artifact in another process that dies at a moment."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), moment]
    result = subprocess.run(command, cwd=root, capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.fixture
def root() -> Path:
    """Folder of the project."""
    return Path(__file__).parents[3]


@pytest.mark.parametrize("moment", ["inside", "before rename 1"])
def test_a_killed_run_leaves_nothing_that_is_read_and_the_next_one_sweeps_up(
    moment: str, make: Make, entries: Entries, tmp_path: Path, root: Path
) -> None:
    """What a kill leaves is hidden, is no artifact, does not lock, and goes when the artifact is next written."""
    kill(tmp_path / "nano", moment, root)

    assert [name for name in entries(tmp_path) if not name.startswith(".")] == []
    assert any(name.endswith(".tmp") for name in entries(tmp_path))
    with pytest.raises(ArtifactError, match="There is no artifact in"):
        newest_artifact(tmp_path)

    make(tmp_path / "nano")

    assert entries(tmp_path) == ["nano"]


@pytest.mark.parametrize("moment", ["inside", "before rename 1", "before rename 2"])
def test_a_kill_while_replacing_never_loses_the_old_artifact(
    moment: str, make: Make, entries: Entries, tmp_path: Path, root: Path
) -> None:
    """The worst moment is between the two renames: the next run puts the old folder back before anything else."""
    before = make(tmp_path / "nano").sha256
    kill(tmp_path / "nano", moment, root)

    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "nano")

    assert read_artifact(tmp_path / "nano").sha256 == before
    make(tmp_path / "nano", force=True)
    assert entries(tmp_path) == ["nano"]


def test_sweeping_leaves_artifacts_of_longer_names_alone(fill: Fill, make: Make, entries: Entries, tmp_path: Path) -> None:
    """``nano`` and ``nano.v2`` may be written at the same time."""
    with write_artifact(tmp_path / "nano.v2", LINEAGE) as folder:
        fill(folder)
        make(tmp_path / "nano")

    assert entries(tmp_path) == ["nano", "nano.v2"]


# --- one at a time -----------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_at_once(fill: Fill, make: Make, entries: Entries, tmp_path: Path) -> None:
    """Exit code 75, no waiting, and the first run is not disturbed."""
    with write_artifact(tmp_path / "nano", LINEAGE) as folder:
        fill(folder)
        started = time.monotonic()
        with pytest.raises(ArtifactLocked, match="Another run is writing") as caught:
            make(tmp_path / "nano")
        assert time.monotonic() - started < 1

    assert caught.value.exit_code == 75
    assert entries(tmp_path) == ["nano"]
    assert read_artifact(tmp_path / "nano").lineage.stage == "export"


def test_a_lock_left_by_a_dead_run_does_not_lock(make: Make, entries: Entries, tmp_path: Path) -> None:
    """The system forgets locks of dead processes; the file alone means nothing."""
    (tmp_path / ".nano.lock").touch()
    make(tmp_path / "nano")
    assert entries(tmp_path) == ["nano"]


def test_a_run_that_finished_meanwhile_is_not_replaced(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the place is free is looked at again under the lock."""

    def acquire(lock: FileLock, **_: object) -> None:
        monkeypatch.undo()
        make(tmp_path / "nano")
        lock.acquire()

    monkeypatch.setattr(atomic.FileLock, "acquire", acquire)
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "nano")


# --- replacing ---------------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_without_force(make: Make, tmp_path: Path) -> None:
    """The message names both ways out."""
    before = make(tmp_path / "nano").sha256
    with pytest.raises(ArtifactError, match=r"exists already; use --force .* or --out"):
        make(tmp_path / "nano")
    assert read_artifact(tmp_path / "nano").sha256 == before


def test_force_replaces_the_whole_folder(fill: Fill, make: Make, entries: Entries, tmp_path: Path) -> None:
    """Files of the old artifact do not survive in the new one, nor beside it."""
    with write_artifact(tmp_path / "nano", LINEAGE) as folder:
        fill(folder)
        (folder / "old").touch()
    make(tmp_path / "nano", force=True)

    assert not (tmp_path / "nano/old").exists()
    assert entries(tmp_path) == ["nano"]


@pytest.mark.parametrize("place", ["inside", "rename"])
def test_a_failed_replacement_keeps_the_old_artifact(
    place: str, fill: Fill, make: Make, entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the new folder was complete and only the last rename failed."""
    before = make(tmp_path / "nano").sha256
    replace = os.replace

    def fail_into_place(source: Path, target: Path) -> None:
        if place == "rename" and Path(source).suffix == ".tmp":
            raise OSError(errno.EIO, "I/O error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_into_place)
    with pytest.raises(ArtifactError), write_artifact(tmp_path / "nano", LINEAGE, force=True) as folder:  # noqa: PT012
        fill(folder)
        if place == "inside":
            raise OSError(errno.ENOSPC, "full")

    assert read_artifact(tmp_path / "nano").sha256 == before
    assert entries(tmp_path) == ["nano"]


def test_a_folder_that_is_no_artifact_is_never_replaced(make: Make, entries: Entries, tmp_path: Path) -> None:
    """--force does not delete someone's photographs; an empty folder may be filled."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").touch()
    with pytest.raises(ArtifactError, match="is not an artifact, so it is not replaced"):
        make(tmp_path / "photos", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is not an artifact"):
        make(tmp_path / "file", force=True)
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", force=True)

    assert entries(tmp_path) == ["empty", "file", "photos"]
    assert entries(tmp_path / "photos") == ["holiday.jpg"]
