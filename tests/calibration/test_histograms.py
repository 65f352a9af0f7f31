"""Histograms keep every count when they are joined, written and read; a damaged or foreign file is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.calibrators import CALIBRATORS, PercentileCalibrator, Recorder
from calibration.collect import collect
from calibration.dataset import Manifest
from calibration.errors import CalibrationError
from calibration.histograms import KEPT_BINS, load_histograms, save_histograms

MANIFEST = Manifest({"a.png": "0" * 64})


def seen(scale: float = 1.0) -> PercentileCalibrator:
    calibrator = PercentileCalibrator(99.0)
    calibrator.collect(torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * scale)
    return calibrator


def test_the_share_beyond_is_the_calibrators() -> None:
    """To the bin."""
    calibrator = seen()
    histogram = calibrator.histogram()
    for amax in (0.0, 0.5, 1.0, calibrator.compute_amax(), 100.0):
        assert histogram.share_beyond(amax) == calibrator.clipped_fraction(amax)


def test_joining_bins_loses_no_count() -> None:
    """And the share beyond an edge that stays one is the same."""
    histogram = seen().histogram()
    coarse = histogram.coarse(64)
    assert (len(coarse.counts), sum(coarse.counts)) == (64, 10_000)
    assert coarse.width == histogram.width * len(histogram.counts) / 64
    assert coarse.share_beyond(10 * coarse.width) == histogram.share_beyond(10 * coarse.width) > 0
    assert coarse.coarse(64) == coarse


def test_zeros_are_a_histogram_without_width() -> None:
    """A dead site."""
    recorder = Recorder()
    recorder.collect(torch.zeros(7))
    assert recorder.histogram().share_beyond(0.0) == 0.0
    assert (recorder.compute_amax(), recorder.histogram().width) == (0.0, 0.0)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_leaves_histograms_behind(name: str) -> None:
    """Where they are asked for; the ranges are the same with and without."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    batches = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    sites = {"first": "0", "second": "1"}
    plain = collect(model, batches, sites, manifest=MANIFEST, model_sha256="0" * 64, calibrator=name)
    full = collect(model, batches, sites, manifest=MANIFEST, model_sha256="0" * 64, calibrator=name, histograms=True)
    assert (plain.histograms, plain) == ({}, full)
    assert {site: sum(histogram.counts) for site, histogram in full.histograms.items()} == {"first": 60, "second": 60}
    values = torch.cat(batches).abs()
    for amax in (0.25, 1.0):
        exact = float((values >= amax).double().mean())
        assert full.histograms["first"].share_beyond(amax) == pytest.approx(exact, abs=1e-12)


def held(calibrator: Any) -> int:
    """Bytes of everything a calibrator refers to."""
    return sum(
        value.numel() * value.element_size() if isinstance(value, torch.Tensor) else value.__sizeof__()
        for value in vars(calibrator).values()
    )


@pytest.mark.parametrize("name", CALIBRATORS)
def test_what_is_kept_does_not_grow_with_the_images(name: str) -> None:
    """Sixteen times as many batches, the same bytes."""
    sizes = []
    for batches in (4, 64):
        calibrator, random = CALIBRATORS[name](), torch.Generator().manual_seed(0)
        for _ in range(batches):
            calibrator.collect(torch.randn(1000, generator=random))
        sizes.append(held(calibrator))
    assert sizes[0] == sizes[1] < 50_000


def test_the_file_holds_the_coarse_histograms(tmp_path: Path) -> None:
    """Tied to its table by hash."""
    table = tmp_path / "table.json"
    table.write_text("{}", "utf-8")
    histograms = {"a": seen().histogram(), "b": seen(30).histogram()}
    save_histograms(histograms, tmp_path / "h.json", table)
    loaded = load_histograms(tmp_path / "h.json", table)
    assert loaded == {name: histogram.coarse() for name, histogram in histograms.items()}
    assert {len(histogram.counts) for histogram in loaded.values()} == {KEPT_BINS}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "has schema 2; this version reads 1"),
        ({"table_sha256": "0" * 64}, "was written for another table"),
        ({"sites": {"a": {"width": 1.0}}}, "holds no histograms"),
        ({"sites": {"a": {"width": -1.0, "counts": [1]}}}, "holds no histograms"),
        ({"sites": {"a": {"width": 1.0, "counts": [0]}}}, "holds no histograms"),
        ({"sites": {"a": {"width": 1.0, "counts": [1.5]}}}, "holds no histograms"),
        ({"sites": []}, "holds no histograms"),
    ],
)
def test_another_file_is_refused(change: Mapping[str, Any], words: str, tmp_path: Path) -> None:
    """With the reason."""
    table, file = tmp_path / "table.json", tmp_path / "h.json"
    table.write_text("{}", "utf-8")
    save_histograms({"a": seen().histogram()}, file, table)
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(CalibrationError, match=words):
        load_histograms(file, table)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    """With its name."""
    (tmp_path / "h.json").write_text("[", "utf-8")
    for name, words in (("none.json", "cannot be read"), ("h.json", "holds no histograms")):
        with pytest.raises(CalibrationError, match=rf"{name}.*{words}|{words}"):
            load_histograms(tmp_path / name, tmp_path / "table.json")
