"""A verification in shards: killed, resumed, shared by processes or by Ray's workers, it finds the same to the bit."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.verify import VerifySpec, check_sharing, share, verify
from swinv2_deploy.verify.comparison import Shard
from swinv2_deploy.verify.meter import DriftMeter
from swinv2_deploy.verify.shard_store import ShardStore

CLASSES = tuple("abcdefg")
IDENTITY = {"artifact": "1", "batch_size": 8}


@pytest.fixture
def spec(photos: Path) -> VerifySpec:
    return VerifySpec(
        data=photos,
        threads=1,
        latency_seconds=0.0,
        layer_images=0,
        sizes=((32, 32),),
        batch_sizes=(1, 2),
        shard_size=4,
        batch_size=2,
    )


def gathered(parts: int) -> DriftMeter:
    """A meter of 60 images that went through JSON in so many parts."""
    generator = np.random.default_rng(3)
    reference = (3 * generator.standard_normal((60, 7))).astype(np.float32)
    candidate = reference + generator.standard_normal((60, 7)).astype(np.float32)
    candidate[5] = np.nan
    labels = [None if row % 9 == 0 else int(row % 7) for row in range(60)]
    whole = DriftMeter(CLASSES, 0.01)
    for rows in np.array_split(np.arange(60), parts):
        one = DriftMeter(CLASSES, 0.01)
        one.add(
            [f"{row}.png" for row in rows],
            [labels[row] for row in rows],
            {"logits": reference[rows]},
            {"logits": candidate[rows]},
        )
        whole.add_saved(json.loads(json.dumps(one.to_dict())))
    return whole


def test_parts_add_up(spec: VerifySpec) -> None:
    """In one part and in seven, every count and list is equal, every sum but for its rounding."""
    one, seven = gathered(1), gathered(7)
    first, second = one.class_drift(), seven.class_drift()

    assert first is not None
    assert second is not None
    assert len(first.flips) > 5
    assert (one.images, one.nonfinite) == (seven.images, seven.nonfinite) == (60, ["5.png"])
    assert replace(first, kl=0, calibration_error=None) == replace(second, kl=0, calibration_error=None)
    assert (first.kl, *(first.calibration_error or ())) == pytest.approx(
        (second.kl, *(second.calibration_error or ())), rel=1e-12
    )
    drifts = one.outputs()["logits"], seven.outputs()["logits"]
    assert drifts[0].max_abs == drifts[1].max_abs
    assert drifts[0].sqnr_db == pytest.approx(drifts[1].sqnr_db, rel=1e-12)


@pytest.mark.parametrize("missing", ["outputs", "confidence", "triples"])
def test_a_part_of_something_else_is_refused(missing: str) -> None:
    found = gathered(1).to_dict()
    wrong = {"triples": [[1, 2]], "outputs": {"logits": {"wrong": 1}}, "confidence": [[[0], [0], [0]]] * 2}
    found[missing] = wrong[missing]

    with pytest.raises((KeyError, TypeError, ValueError)):
        DriftMeter(CLASSES).add_saved(found)


def test_a_run_goes_on(tiny_artifact: ModelArtifact, spec: VerifySpec, tmp_path: Path) -> None:
    """Kept or not, whole or with shards that a killed run lacks: one result, and what is there is not compared again."""
    plain = verify(tiny_artifact, spec)
    first = verify(tiny_artifact, spec, run=tmp_path / "run")
    shards = sorted((tmp_path / "run" / "shards").glob("[0-9]*.json"))
    for path in shards[1::2]:
        path.unlink()
    before = {path.name: path.stat().st_mtime_ns for path in shards[::2]}
    told: list[tuple[str, int, int]] = []

    second = verify(tiny_artifact, spec, lambda *step: told.append(step), run=tmp_path / "run")

    assert len(shards) == 6  # 21 images
    assert plain.figures_sha256 == first.figures_sha256 == second.figures_sha256
    assert plain.to_dict()["figures_sha256"] == plain.figures_sha256
    assert {path.name: path.stat().st_mtime_ns for path in shards[::2]} == before
    counts = [done for what, done, _ in told if what.startswith("Comparing")]
    assert (counts[1], counts[-1]) == (12, 21)


def test_another_figure_is_another_hash(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    """The hash sees one image less, and does not see the clock."""
    assert verify(tiny_artifact, replace(spec, limit=20)).figures_sha256 != verify(tiny_artifact, spec).figures_sha256
    timed = verify(tiny_artifact, replace(spec, latency_seconds=0.01))
    assert timed.candidates[0].latencies
    assert timed.figures_sha256 == verify(tiny_artifact, spec).figures_sha256


def test_a_damaged_image_is_told_once(tiny_artifact: ModelArtifact, spec: VerifySpec, photos: Path, tmp_path: Path) -> None:
    """Whichever shard it is in, also when that shard was kept."""
    import shutil

    data = shutil.copytree(photos, tmp_path / "photos")
    broken = sorted(data.rglob("*.*"))[-1]
    broken.write_bytes(b"no image")
    spec = replace(spec, data=data)

    first, second = (verify(tiny_artifact, spec, run=tmp_path / "run") for _ in range(2))

    assert first.skipped == second.skipped
    assert [item.image for item in first.skipped] == [broken.relative_to(data).as_posix()]
    assert first.images == 20


def test_the_folder_of_another_run_is_refused(tiny_artifact: ModelArtifact, spec: VerifySpec, tmp_path: Path) -> None:
    """By what is different, with nothing lost."""
    verify(tiny_artifact, spec, run=tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))

    with pytest.raises(ArtifactError, match=r"another verification: its images, batch_size differ\. Use another --run"):
        verify(tiny_artifact, replace(spec, limit=10, batch_size=4), run=tmp_path / "run")

    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("content", ["", "[]", '{"measured": 1, "identity": 2}'])
def test_a_folder_that_does_not_say_whose_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "verification.json").write_text(content)

    with pytest.raises(ArtifactError, match="does not say which verification"):
        ShardStore(tmp_path, IDENTITY, {})


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, IDENTITY, {})
    store.save(Shard(index=0, skipped=()))
    store.path(1).write_bytes(store.path(0).read_bytes())
    store.path(2).write_text('{"index": 2')

    for index in (1, 2):
        with pytest.raises(ArtifactError, match="delete it, and the shard is compared again"):
            store.load(index)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")

    with pytest.raises(ArtifactError, match="cannot be written"):
        ShardStore(tmp_path / "run", IDENTITY, {})


def test_a_shard_that_is_held_is_left_or_waited_for(tmp_path: Path) -> None:
    """A process that dies lets go of its shard, and who waits takes it over."""
    store = ShardStore(tmp_path, IDENTITY, {})
    code = (
        "import sys, time; from pathlib import Path; from swinv2_deploy.verify.shard_store import ShardStore\n"
        f"store = ShardStore(Path(sys.argv[1]), {IDENTITY}, {{}})\n"
        "def compare(index):\n    print('held', flush=True)\n    time.sleep(600)\n"
        "store.compare(range(1), compare, waits=False)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert store.compare(range(1), lambda index: Shard(index=index, skipped=()), waits=False) == 0
        other.kill()
        assert store.compare(range(1), lambda index: Shard(index=index, skipped=()), waits=True) == 1
    finally:
        other.kill()
        other.communicate()
    assert store.has(0)


def test_two_processes_share(
    tiny_artifact: ModelArtifact, spec: VerifySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second compares what nobody has; the first judges all of it."""
    count = share(tiny_artifact, spec, tmp_path / "run")
    monkeypatch.setattr("swinv2_deploy.verify.comparison.Comparer.shard", lambda *_: pytest.fail("compared again"))
    report = verify(tiny_artifact, spec, run=tmp_path / "run")
    monkeypatch.undo()

    assert count == 6
    assert report.figures_sha256 == verify(tiny_artifact, spec).figures_sha256


def test_a_launcher_needs_a_folder(spec: VerifySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And Ray no launcher."""
    assert check_sharing(spec, None) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    assert check_sharing(spec, tmp_path) == 1
    with pytest.raises(SpecError, match=r"started 2 processes.*--run DIR"):
        check_sharing(spec, None)
    with pytest.raises(SpecError, match="without a launcher"):
        check_sharing(replace(spec, engine="ray"), tmp_path)


def command(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.Popen[str]:
    code = "from swinv2_deploy.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "verify", *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return dict(json.loads(out))


def without_clock(report: dict[str, Any]) -> dict[str, Any]:
    """A report without the only entries that two runs may have different: when it ran, how long, and where it was saved."""
    return {name: value for name, value in report.items() if name not in ("created", "seconds", "report", "spec", "tools")}


@pytest.fixture
def options(tiny_artifact: ModelArtifact, photos: Path) -> list[str | Path]:
    return [
        *("--model", tiny_artifact.path, "--data", photos, "--threads", "1", "--latency-seconds", "0", "--sizes", "32x32"),
        *("--layer-images", "0", "--batch-size", "1", "--shard-size", "1", "--json", "--quiet"),
    ]


@pytest.mark.slow
def test_killed_three_times(options: list[str | Path], tmp_path: Path) -> None:
    """SIGKILL as soon as a further shard appears, and the last run gives the report of one that was never killed."""
    run, shards = tmp_path / "run", tmp_path / "run" / "shards"
    for _ in range(3):
        before = len(list(shards.glob("[0-9]*.json"))) if shards.exists() else 0
        process = command(*options, "--run", run, folder=tmp_path)
        while process.poll() is None:
            if shards.exists() and len(list(shards.glob("[0-9]*.json"))) > before:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        process.communicate()
    resumed = result_of(command(*options, "--run", run, folder=tmp_path))
    whole = result_of(command(*options, folder=tmp_path))

    assert without_clock(resumed) == without_clock(whole)


@pytest.mark.slow
def test_a_launcher_shares_the_work(options: list[str | Path], tmp_path: Path) -> None:
    """Two processes at once: no shard twice, one verdict, the same as alone."""
    run = tmp_path / "run"
    second, first = (
        command(*options, "--run", run, folder=tmp_path, RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank) for rank in ("1", "0")
    )
    report, helped = result_of(first), result_of(second)

    assert helped["rank"] == 1
    assert 0 <= helped["shards"] <= 21
    assert without_clock(report) == without_clock(result_of(command(*options, folder=tmp_path)))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed")
def test_ray_finds_the_same(options: list[str | Path], tmp_path: Path) -> None:
    """Ray's workers and this process: one report."""
    ray = result_of(command(*options, "--engine", "ray", folder=tmp_path))

    assert ray["spec"]["engine"] == "ray"
    assert without_clock(ray) == without_clock(result_of(command(*options, folder=tmp_path)))


def test_ray_is_told_how_many_threads(photos: Path) -> None:
    with pytest.raises(SpecError, match="--threads"):
        VerifySpec(data=photos, engine="ray")
    with pytest.raises(SpecError, match="no engine 'spark'"):
        VerifySpec(data=photos, engine="spark")  # type: ignore[arg-type]  # refused


def test_shards_have_images(photos: Path) -> None:
    with pytest.raises(SpecError, match="shard_size is 0"):
        VerifySpec(data=photos, shard_size=0)
