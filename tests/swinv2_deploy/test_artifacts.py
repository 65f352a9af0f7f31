"""Artifacts appear whole or not at all, never change unnoticed, and say what is wrong with the place they should go to."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reference_model.config import SwinV2Config, make_config
from reference_model.preprocessing import Preprocessing
from swinv2_deploy import atomic
from swinv2_deploy.artifacts import (
    Lineage,
    ModelArtifact,
    ResolutionRange,
    WeightsOrigin,
    newest_artifact,
    read_artifact,
    write_artifact,
    write_json,
)
from swinv2_deploy.errors import ArtifactError, ArtifactLocked, SpecError

CONFIG = make_config(embed_dim=8, depths=(1,), num_heads=(1,), window_size=4, image_size=32, num_classes=2)
LINEAGE = Lineage(stage="export", spec={"a": 1}, weights=WeightsOrigin(kind="untrained", source="seed 0"))


def fill(folder: Path, config: SwinV2Config = CONFIG, content: bytes = b"weights") -> None:
    """What the smallest artifact holds."""
    write_json(folder / "config.json", {"swinv2_deploy": config.to_dict()})
    write_json(folder / "preprocessor_config.json", Preprocessing.published(32).to_huggingface())
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(content)


def make(path: Path, lineage: Lineage = LINEAGE, **options: Any) -> ModelArtifact:
    with write_artifact(path, lineage, **options) as folder:
        fill(folder)
    return read_artifact(path)


def entries(folder: Path) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a lineage file."""
    content = json.loads((path / "lineage.json").read_text("utf-8"))
    change(content)
    write_json(path / "lineage.json", content)


# --- written whole -----------------------------------------------------------------------------------------------------


def test_an_artifact_holds_what_was_written_and_nothing_else(tmp_path: Path) -> None:
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


def test_others_may_read_it(tmp_path: Path) -> None:
    """A server under another user reads the files, however private the writing library made them."""
    with write_artifact(tmp_path / "nano", LINEAGE) as folder:
        fill(folder)
        (folder / "onnx/model.onnx").chmod(0o600)

    assert (tmp_path / "nano").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "nano/onnx/model.onnx").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(143)], ids=["bug", "ctrl-c", "sigterm"])
def test_an_exception_inside_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    """Neither a half artifact nor the folders made for it, and the exception is the same."""
    with pytest.raises(type(error)), write_artifact(tmp_path / "artifacts" / "nano", LINEAGE) as folder:  # noqa: PT012
        fill(folder)
        raise error

    assert entries(tmp_path) == []


def test_a_failure_leaves_other_artifacts_and_folders_alone(tmp_path: Path) -> None:
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
    return Path(__file__).parents[2]


@pytest.mark.parametrize("moment", ["inside", "before rename 1"])
def test_a_killed_run_leaves_nothing_that_is_read_and_the_next_one_sweeps_up(moment: str, tmp_path: Path, root: Path) -> None:
    """What a kill leaves is hidden, is no artifact, does not lock, and goes when the artifact is next written."""
    kill(tmp_path / "nano", moment, root)

    assert [name for name in entries(tmp_path) if not name.startswith(".")] == []
    assert any(name.endswith(".tmp") for name in entries(tmp_path))
    with pytest.raises(ArtifactError, match="There is no artifact in"):
        newest_artifact(tmp_path)

    make(tmp_path / "nano")

    assert entries(tmp_path) == ["nano"]


@pytest.mark.parametrize("moment", ["inside", "before rename 1", "before rename 2"])
def test_a_kill_while_replacing_never_loses_the_old_artifact(moment: str, tmp_path: Path, root: Path) -> None:
    """The worst moment is between the two renames: the next run puts the old folder back before anything else."""
    before = make(tmp_path / "nano").sha256
    kill(tmp_path / "nano", moment, root)

    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "nano")

    assert read_artifact(tmp_path / "nano").sha256 == before
    make(tmp_path / "nano", force=True)
    assert entries(tmp_path) == ["nano"]


def test_sweeping_leaves_artifacts_of_longer_names_alone(tmp_path: Path) -> None:
    """``nano`` and ``nano.v2`` may be written at the same time."""
    with write_artifact(tmp_path / "nano.v2", LINEAGE) as folder:
        fill(folder)
        make(tmp_path / "nano")

    assert entries(tmp_path) == ["nano", "nano.v2"]


# --- the disk ----------------------------------------------------------------------------------------------------------


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
    number: int, words: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write fails, nothing is left and the message says why and what to do."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some file")

    targets = {
        "mkdtemp": "swinv2_deploy.artifacts.tempfile.mkdtemp",
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
def test_a_file_on_the_way_is_named(target: str, tmp_path: Path) -> None:
    """--out below a file."""
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="a file, not a folder"):
        make(tmp_path / target)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """The system's limit of 255 bytes."""
    with pytest.raises(ArtifactError, match="name is too long"):
        make(tmp_path / ("n" * 300))
    assert entries(tmp_path) == []


def test_too_little_room_is_refused_before_any_work(tmp_path: Path) -> None:
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


def test_a_full_disk_leaves_the_old_artifact_and_nothing_else(small_disk: Path) -> None:
    """A real ENOSPC in the middle of a file, while an artifact is replaced."""
    before = make(small_disk / "nano").sha256
    with (
        pytest.raises(ArtifactError, match="disk is full"),
        write_artifact(small_disk / "nano", LINEAGE, force=True) as folder,
    ):
        (folder / "large").write_bytes(bytes(2**21))

    assert entries(small_disk) == ["nano"]
    assert read_artifact(small_disk / "nano").sha256 == before


def test_weights_on_a_full_disk_are_reported_like_any_file(small_disk: Path) -> None:
    """safetensors raises an error of its own; the message is the same."""
    import torch

    from swinv2_deploy.modeling.io import save_tensors

    with (
        pytest.raises(ArtifactError, match="disk is full"),
        write_artifact(small_disk / "nano", LINEAGE) as folder,
    ):
        save_tensors({"w": torch.zeros(2**20)}, folder / "model.safetensors", {})

    assert entries(small_disk) == []


def test_a_read_only_disk_is_refused(small_disk: Path) -> None:
    """A real EROFS."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match="read-only"):
        make(small_disk / "artifacts" / "nano")


def test_a_mount_point_is_not_replaced(small_disk: Path) -> None:
    """--out may name a place inside a mounted disk, not the disk."""
    with pytest.raises(ArtifactError, match="is a mount point"):
        make(small_disk, force=True)
    assert entries(small_disk) == []
    assert entries(small_disk.parent) == ["disk"]


def test_a_limit_on_file_size_is_reported(tmp_path: Path) -> None:
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


# --- one at a time -----------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_at_once(tmp_path: Path) -> None:
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


def test_a_lock_left_by_a_dead_run_does_not_lock(tmp_path: Path) -> None:
    """The system forgets locks of dead processes; the file alone means nothing."""
    (tmp_path / ".nano.lock").touch()
    make(tmp_path / "nano")
    assert entries(tmp_path) == ["nano"]


def test_a_run_that_finished_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the place is free is looked at again under the lock."""

    def acquire(lock: FileLock, **_: object) -> None:
        monkeypatch.undo()
        make(tmp_path / "nano")
        lock.acquire()

    monkeypatch.setattr(atomic.FileLock, "acquire", acquire)
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "nano")


# --- replacing ---------------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    """The message names both ways out."""
    before = make(tmp_path / "nano").sha256
    with pytest.raises(ArtifactError, match=r"exists already; use --force .* or --out"):
        make(tmp_path / "nano")
    assert read_artifact(tmp_path / "nano").sha256 == before


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    """Files of the old artifact do not survive in the new one, nor beside it."""
    with write_artifact(tmp_path / "nano", LINEAGE) as folder:
        fill(folder)
        (folder / "old").touch()
    make(tmp_path / "nano", force=True)

    assert not (tmp_path / "nano/old").exists()
    assert entries(tmp_path) == ["nano"]


@pytest.mark.parametrize("place", ["inside", "rename"])
def test_a_failed_replacement_keeps_the_old_artifact(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
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


# --- hashes ------------------------------------------------------------------------------------------------------------


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    """One flipped bit at every position of a file, and a cut and a longer file."""
    artifact = make(tmp_path / "nano")
    path = artifact.path / "onnx/model.onnx"
    good = path.read_bytes()
    flipped = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for content in (*flipped, good[:-1], good + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="changed or damaged"):
            artifact.file("onnx/model.onnx")
    path.write_bytes(good)
    assert artifact.file("onnx/model.onnx") == path


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_changed_description_is_refused_on_opening(name: str, tmp_path: Path) -> None:
    """Still valid JSON, but not what was written."""
    make(tmp_path / "nano")
    with (tmp_path / "nano" / name).open("a") as file:
        file.write(" \n")
    with pytest.raises(ArtifactError, match=f"{name} was changed or damaged"):
        read_artifact(tmp_path / "nano")


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    """Both one that never was and one that was deleted."""
    artifact = make(tmp_path / "nano")
    with pytest.raises(ArtifactError, match=r"has no onnx/model_int8.onnx; it holds \['config.json'"):
        artifact.file("onnx/model_int8.onnx")
    (artifact.path / "onnx/model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"has no onnx/model\.onnx"):
        artifact.file("onnx/model.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "train"},
        {"spec": {"a": 2}},
        {"weights": WeightsOrigin(kind="file", source="x", sha256="0" * 64)},
        {"parent": {"name": "p", "sha256": "1" * 64}},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_lineage_hash_changes_when_anything_changes(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked, of what, from where; the same twice is the same hash but for the time."""

    class Clock:
        @staticmethod
        def now(_: object) -> Clock:
            return Clock()

        def isoformat(self, **_: object) -> str:
            return "2026-01-01T00:00:00.000+00:00"

    monkeypatch.setattr("swinv2_deploy.artifacts.datetime", Clock)
    from dataclasses import replace

    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    other = make(tmp_path / "c", replace(LINEAGE, **change))

    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_the_lineage_hash_covers_every_file(tmp_path: Path) -> None:
    """A changed file, and a file more, change the list of hashes; reports and engines come later and do not."""
    first = make(tmp_path / "a")
    with write_artifact(tmp_path / "b", LINEAGE) as folder:
        fill(folder, content=b"weightz")
    with write_artifact(tmp_path / "c", LINEAGE) as folder:
        fill(folder)
        (folder / "more").touch()
    (first.path / "reports").mkdir()
    (first.path / "reports" / "report.json").touch()

    hashes = [dict(read_artifact(tmp_path / name).lineage.files) for name in "abc"]
    assert hashes[0] != hashes[1]
    assert hashes[0] != hashes[2]
    assert read_artifact(first.path).sha256 == first.sha256


# --- reading -----------------------------------------------------------------------------------------------------------


def test_another_schema_is_refused(tmp_path: Path) -> None:
    """Both numbers are in the message."""
    make(tmp_path / "nano")
    rewrite(tmp_path / "nano", lambda content: content.update(schema=99))
    with pytest.raises(ArtifactError, match="schema 99, this version reads 1; make the artifact again"):
        read_artifact(tmp_path / "nano")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("weights"), "incomplete"),
        (lambda content: content.pop("files"), "incomplete"),
        (lambda content: content.update(weights={"kind": "file"}), "incomplete"),
        (lambda content: content.update(weights=3), "incomplete"),
        (lambda content: content.update(files=["a"]), "must be objects"),
        (lambda content: content.update(spec=None), "must be objects"),
        (lambda content: content["files"].update({"../../secret": "0"}), "outside the artifact"),
        (lambda content: content["files"].update({"/etc/hostname": "0"}), "outside the artifact"),
    ],
)
def test_a_lineage_that_is_not_ours_is_refused(change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path) -> None:
    """Missing keys, wrong types, and names that lead out of the folder."""
    make(tmp_path / "nano")
    rewrite(tmp_path / "nano", change)
    with pytest.raises(ArtifactError, match=words):
        read_artifact(tmp_path / "nano")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_lineage_is_refused(content: bytes, tmp_path: Path) -> None:
    """Empty, cut, or other bytes."""
    make(tmp_path / "nano")
    (tmp_path / "nano/lineage.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not an artifact: it has no readable lineage\.json"):
        read_artifact(tmp_path / "nano")


def test_what_is_no_artifact_is_told_apart(tmp_path: Path) -> None:
    """A missing folder, a file, and a folder without lineage."""
    (tmp_path / "file").touch()
    for name in ("gone", "file"):
        with pytest.raises(ArtifactError, match=r"There is no artifact at .*; make one with"):
            read_artifact(tmp_path / name)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        read_artifact(tmp_path)


# --- the newest --------------------------------------------------------------------------------------------------------


def dated(path: Path, created: str, stage: str = "export") -> None:
    make(path)
    rewrite(path, lambda content: content.update(created=created, stage=stage))


def test_the_newest_artifact_is_the_one_made_last(tmp_path: Path) -> None:
    """By the time in the lineage, not the file's: copies keep their age. Hidden and unfinished folders do not count."""
    dated(tmp_path / "zebra", "2026-01-01T00:00:00.000+00:00")
    dated(tmp_path / "aardvark", "2026-01-03T00:00:00.000+00:00")
    dated(tmp_path / "middle", "2026-01-02T00:00:00.000+00:00")
    dated(tmp_path / ".hidden", "2026-01-09T00:00:00.000+00:00")
    (tmp_path / "unfinished").mkdir()

    assert newest_artifact(tmp_path).name == "aardvark"


def test_a_stage_can_be_passed_over(tmp_path: Path) -> None:
    """Quantizing again starts from what was quantized before, not from its result; where there is nothing else, that is it."""
    dated(tmp_path / "nano", "2026-01-01T00:00:00.000+00:00")
    dated(tmp_path / "nano-int8", "2026-01-02T00:00:00.000+00:00", stage="quantize")

    assert newest_artifact(tmp_path).name == "nano-int8"
    assert newest_artifact(tmp_path, besides="quantize").name == "nano"
    assert newest_artifact(tmp_path, besides="train").name == "nano-int8"
    shutil.rmtree(tmp_path / "nano")
    assert newest_artifact(tmp_path, besides="quantize").name == "nano-int8"


def test_an_old_damaged_artifact_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """A damaged one is an error only when it is the one to use."""
    dated(tmp_path / "old", "2026-01-01T00:00:00.000+00:00")
    dated(tmp_path / "new", "2026-01-02T00:00:00.000+00:00")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/lineage.json").write_text("{", "utf-8")
    (tmp_path / "old/config.json").write_text("{}", "utf-8")

    assert newest_artifact(tmp_path).name == "new"
    (tmp_path / "new/config.json").write_text("{}", "utf-8")
    with pytest.raises(ArtifactError, match="does not describe a model"):
        newest_artifact(tmp_path)


def test_no_artifact_says_how_to_make_one(tmp_path: Path) -> None:
    """In an empty folder and in one that does not exist."""
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ArtifactError, match=r"There is no artifact in .*; make one with 'swinv2-deploy export'"):
            newest_artifact(folder)


# --- sizes -------------------------------------------------------------------------------------------------------------


RANGE = ResolutionRange(min=(32, 64), opt=(128, 128), max=(256, 512), multiple=32)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (256, 512), (128, 128), (64, 96)])
def test_sizes_inside_the_range_are_taken(height: int, width: int) -> None:
    """Both ends belong to it."""
    assert RANGE.refusal(height, width) is None


@pytest.mark.parametrize(("height", "width"), [(31, 64), (32, 63), (257, 512), (256, 513), (33, 64), (128, 100), (64, 32)])
def test_sizes_outside_are_refused_with_the_range(height: int, width: int) -> None:
    """Height comes first, and the axes are not confused."""
    reason = RANGE.refusal(height, width)
    assert reason == (f"{height}x{width} px is outside what this file was exported for: 32x64 to 256x512 px in steps of 32.")


@pytest.mark.parametrize(
    ("size", "nearest"), [((1, 1), (32, 64)), ((999, 999), (256, 512)), ((100, 100), (96, 96)), ((64, 64), (64, 64))]
)
def test_any_size_has_a_nearest_one_inside(size: tuple[int, int], nearest: tuple[int, int]) -> None:
    """Which the range then takes."""
    assert RANGE.nearest(*size) == nearest
    assert RANGE.refusal(*RANGE.nearest(*size)) is None


def test_a_static_range_says_exactly() -> None:
    """One size, one number."""
    only = ResolutionRange(min=(128, 96), opt=(128, 96), max=(128, 96))
    assert only.static
    assert only.refusal(128, 96) is None
    assert only.refusal(96, 128) == "96x128 px is outside what this file was exported for: exactly 128x96 px."


@pytest.mark.parametrize(
    "sides",
    [((0, 1), (1, 1), (2, 2)), ((4, 4), (2, 4), (8, 8)), ((1, 1), (4, 4), (4, 3))],
)
def test_an_empty_range_is_refused(sides: tuple[tuple[int, int], ...]) -> None:
    """Min, opt and max in order, on both axes."""
    with pytest.raises(SpecError, match="is empty"):
        ResolutionRange(min=sides[0], opt=sides[1], max=sides[2])


def test_a_multiple_below_one_is_refused() -> None:
    """Nothing is a multiple of zero."""
    with pytest.raises(SpecError, match="multiple is 0"):
        ResolutionRange(min=(1, 1), opt=(1, 1), max=(1, 1), multiple=0)


def test_a_range_survives_json() -> None:
    """As the ONNX metadata keeps it."""
    from dataclasses import asdict

    assert ResolutionRange.from_dict(json.loads(json.dumps(asdict(RANGE)))) == RANGE
