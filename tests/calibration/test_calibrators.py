"""Calibrators against numpy on the whole data, a brute-force reference, and ModelOpt on the same histogram."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from calibration.calibrators import (
    CALIBRATORS,
    Calibrator,
    EntropyCalibrator,
    HistogramCalibrator,
    MaxCalibrator,
    MseCalibrator,
    PercentileCalibrator,
    entropy_edge,
    mse_bin,
)
from calibration.errors import CalibrationError


def heavy_tailed(count: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, count).astype(np.float32)) * scale


def collected(calibrator: Calibrator, *tensors: Tensor) -> Calibrator:
    for tensor in tensors:
        calibrator.collect(tensor)
    return calibrator


def test_the_registry_makes_every_calibrator_by_its_name() -> None:
    assert list(CALIBRATORS) == ["max", "percentile", "entropy", "mse"]
    assert all(make().name == name for name, make in CALIBRATORS.items())


# Properties of all calibrators


@pytest.mark.parametrize("name", CALIBRATORS)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, 4999), max_size=6, unique=True), scale=st.floats(1e-6, 1e6))
@settings(max_examples=15, deadline=None)
def test_order_and_split_into_batches_do_not_matter(name: str, seed: int, cuts: list[int], scale: float) -> None:
    values = heavy_tailed(5000, seed, scale)
    whole = collected(CALIBRATORS[name](), values)
    shuffled = values[torch.randperm(5000, generator=torch.Generator().manual_seed(seed))]
    parts = collected(CALIBRATORS[name](), *shuffled.tensor_split(sorted(cuts)))
    assert parts.compute_amax() == whole.compute_amax()
    assert (parts.low, parts.high) == (whole.low, whole.high)
    assert parts.clipped_fraction(parts.compute_amax()) == whole.clipped_fraction(whole.compute_amax())


@pytest.mark.parametrize("name", CALIBRATORS)
@given(power=st.integers(-60, 60))
@settings(max_examples=15, deadline=None)
def test_scaling_by_a_power_of_two_scales_the_amax_exactly(name: str, power: int) -> None:
    values = heavy_tailed(5000, 1)
    once = collected(CALIBRATORS[name](), values).compute_amax()
    assert collected(CALIBRATORS[name](), values * 2.0**power).compute_amax() == math.ldexp(once, power)


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_every_type_is_measured_within_its_extremes(name: str, dtype: torch.dtype) -> None:
    calibrator = collected(CALIBRATORS[name](), (heavy_tailed(5000, 2) * 50).to(dtype).reshape(10, 20, 25))
    assert 0 < calibrator.compute_amax() <= calibrator.largest
    assert calibrator.low < 0 < calibrator.high


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-38, 3e38, 1e-44])
def test_the_smallest_and_largest_numbers_are_measured(name: str, value: float) -> None:
    calibrator = collected(CALIBRATORS[name](), torch.zeros(7), torch.full((100,), value))
    assert calibrator.largest == float(torch.tensor(value).abs())
    assert calibrator.compute_amax() == pytest.approx(calibrator.largest, rel=0.01, abs=1e-30)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_collecting_does_not_touch_the_tensor_and_reads_views(name: str) -> None:
    values = heavy_tailed(6000, 3).reshape(60, 100)
    before = values.clone()
    view = collected(CALIBRATORS[name](), values[::2].T)
    assert torch.equal(values, before)
    assert view.compute_amax() == collected(CALIBRATORS[name](), before[::2].clone()).compute_amax()


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_leave_nothing_behind(name: str, bad: float) -> None:
    calibrator = collected(CALIBRATORS[name](), torch.ones(5))
    with pytest.raises(CalibrationError, match="2 of 4 values are NaN or infinite"):
        calibrator.collect(torch.tensor([0.0, bad, 9.0, bad]))
    assert calibrator.compute_amax() <= 1.0
    assert calibrator.high == 1.0


@pytest.mark.parametrize("name", CALIBRATORS)
def test_an_amax_before_any_value_is_refused(name: str) -> None:
    with pytest.raises(CalibrationError, match="No values were collected"):
        collected(CALIBRATORS[name](), torch.zeros(0, 3)).compute_amax()


# Histogram


@given(
    batches=st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20), min_size=1, max_size=8),
    num_bins=st.sampled_from([512, 4096]),
)
@settings(max_examples=100, deadline=None)
def test_the_histogram_is_the_one_its_final_width_gives(batches: list[list[float]], num_bins: int) -> None:
    calibrator = HistogramCalibratorOnly(num_bins)
    for batch in batches:
        calibrator.collect(torch.tensor(batch))
    assert calibrator.counts.numel() == num_bins
    values = np.abs(np.array([value for batch in batches for value in batch], np.float64))
    assert int(calibrator.counts.sum()) == values.size
    if calibrator.width:
        expected = np.bincount((values / calibrator.width).astype(np.int64), minlength=num_bins)
        np.testing.assert_array_equal(calibrator.counts.numpy(), expected)
        if values.max() > 1e-20:
            assert np.flatnonzero(expected)[-1] >= num_bins // 2


class HistogramCalibratorOnly(HistogramCalibrator):
    """The histogram without a rule."""

    name = "histogram"

    def _amax(self) -> float:
        return self.largest


def test_counts_do_not_saturate_beyond_what_float32_counts() -> None:
    calibrator = HistogramCalibratorOnly()
    calibrator.collect(torch.ones(1))
    calibrator.counts *= 2**24
    calibrator.collect(torch.ones(3))
    assert int(calibrator.counts.sum()) == 2**24 + 3


@pytest.mark.parametrize("num_bins", [0, 256, 1000])
def test_a_number_of_bins_that_cannot_be_halved_is_refused(num_bins: int) -> None:
    with pytest.raises(CalibrationError, match="power of two"):
        PercentileCalibrator(num_bins=num_bins)


# Max


def test_max_is_the_largest_magnitude() -> None:
    calibrator = collected(MaxCalibrator(), torch.tensor([1.0, -7.25]), torch.tensor([3.0]))
    assert calibrator.compute_amax() == 7.25
    assert (calibrator.low, calibrator.high) == (-7.25, 3.0)
    assert calibrator.clipped_fraction(7.25) == 0.0
    with pytest.raises(CalibrationError, match="use a calibrator with a histogram"):
        calibrator.clipped_fraction(7.0)


# Percentile


@given(seed=st.integers(0, 2**31), percentile=st.sampled_from([50.0, 90.0, 99.0, 99.9, 99.99, 100.0]))
@settings(max_examples=40, deadline=None)
def test_percentile_is_that_of_the_whole_data_within_a_bin(seed: int, percentile: float) -> None:
    values = heavy_tailed(20_000, seed)
    calibrator = PercentileCalibrator(percentile)
    for part in values.tensor_split(7):
        calibrator.collect(part)
    exact = float(np.percentile(values.abs().numpy(), percentile, method="inverted_cdf"))
    assert exact <= calibrator.compute_amax() <= exact + calibrator.width
    clipped = float((values.abs() > calibrator.compute_amax()).double().mean())
    assert clipped <= 1 - percentile / 100 + 1e-12
    assert calibrator.clipped_fraction(calibrator.compute_amax()) == pytest.approx(clipped, abs=1e-12)


def test_percentile_100_is_the_maximum() -> None:
    values = heavy_tailed(3001, 5)
    assert collected(PercentileCalibrator(100.0), values).compute_amax() == float(values.abs().max())


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, math.nan])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(CalibrationError, match="more than 0 and at most 100"):
        PercentileCalibrator(percentile)


# Entropy and MSE against references


def divergence(bins: NDArray[np.float64], keep: int) -> float:
    """Kullback-Leibler divergence after keeping ``keep`` bins, spelled out."""
    reference = bins[:keep].copy()
    reference[-1] += bins[keep:].sum()
    quantized = np.zeros(keep)
    level = np.arange(keep) * 128 // keep
    for index in range(128):
        filled = (level == index) & (bins[:keep] > 0)
        if filled.any():
            quantized[filled] = bins[:keep][filled].mean()
    if quantized.sum() == 0:
        return math.inf
    p, q = reference / reference.sum(), quantized / quantized.sum()
    if ((p > 0) & (q == 0)).any():
        return math.inf
    where = p > 0
    return float((p[where] * np.log(p[where] / q[where])).sum())


@given(seed=st.integers(0, 2**31), count=st.integers(140, 400), sparse=st.booleans())
@settings(max_examples=25, deadline=None)
def test_entropy_keeps_the_bins_of_least_divergence(seed: int, count: int, sparse: bool) -> None:
    random = np.random.default_rng(seed)
    counts = random.poisson(1000 * np.exp(-np.arange(count) / random.uniform(5, 100)))
    if sparse:
        counts[random.random(count) < 0.5] = 0
    counts[-1] = max(counts[-1], 1)
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    candidates = [divergence(bins, keep) for keep in range(128, count + 1)]
    chosen = entropy_edge(counts.astype(np.int64))
    assert candidates[chosen - 128] == pytest.approx(min(candidates), abs=1e-10)


def modelopt_histogram() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("modelopt.torch.quantization.calib.histogram", reason="ModelOpt is the oracle")


def histograms() -> list[NDArray[np.int64]]:
    random = np.random.default_rng(0)
    normal = np.abs(random.normal(size=50_000))
    relu = np.maximum(random.normal(size=50_000), 0)
    tailed = np.abs(random.standard_t(4, size=50_000))
    return [np.histogram(values, bins=600, range=(0, values.max()))[0] for values in (normal, relu, tailed)]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_entropy_chooses_the_edge_that_modelopt_chooses(index: int) -> None:
    counts = histograms()[index]
    edges = np.arange(len(counts) + 1, dtype=np.float32)
    # It writes into its input.
    theirs = modelopt_histogram()._compute_amax_entropy(counts.copy(), edges, 8, False)
    assert entropy_edge(counts.copy()) == int(theirs)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_mse_chooses_the_bin_that_modelopt_chooses(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = modelopt_histogram()
    quantize = module.fake_tensor_quant
    # ModelOpt 0.47 passes the number of bits where its own function expects a bias, and so quantizes to zero bits.
    monkeypatch.setattr(module, "fake_tensor_quant", lambda x, amax, bits, unsigned: quantize(x, amax, None, bits, unsigned))
    counts = histograms()[index]
    edges = np.arange(len(counts) + 1, dtype=np.float32)
    theirs = module._compute_amax_mse(counts.copy(), edges, 8, False)
    assert mse_bin(counts) + 0.5 == float(theirs)


def test_percentile_is_modelopts_next_edge() -> None:
    counts = histograms()[2]
    calibrator = PercentileCalibrator(99.9)
    calibrator.collect(torch.from_numpy(np.repeat(np.arange(600) + 0.5, counts)))
    theirs = modelopt_histogram()._compute_amax_percentile(counts, np.arange(601, dtype=np.float32), 99.9)
    # Its lower edge cuts off the bin that the percentile lies in; ours, the upper edge, keeps it.
    assert abs(calibrator.compute_amax() - float(theirs)) <= 1.0


def same_tensors() -> dict[str, Tensor]:
    """No percentile of theirs falls between two values exactly, where ModelOpt's sum of shares rounds to the next value."""
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(61_234, generator=random)
    return {"normal": normal, "gelu": torch.nn.functional.gelu(2 * normal), "tailed": heavy_tailed(61_234, 0)}


def modelopt_amax(values: Tensor, method: str, parts: int, bins: int) -> tuple[float, float]:
    """What ModelOpt's own calibrator makes of the same tensor in so many batches, and the width of its bins."""
    theirs = modelopt_histogram().HistogramCalibrator(num_bins=bins)
    for part in values.tensor_split(parts):
        theirs.collect(part)
    return float(theirs.compute_amax(method)), float(theirs._calib_bin_edges[1])


def test_max_is_modelopts() -> None:
    modelopt_histogram()
    from modelopt.torch.quantization.calib import MaxCalibrator as Theirs

    for values in same_tensors().values():
        theirs = Theirs()
        for part in values.tensor_split(4):
            theirs.collect(part)
        assert collected(MaxCalibrator(), values).compute_amax() == float(theirs.compute_amax())


@pytest.mark.parametrize("name", ["normal", "gelu", "tailed"])
def test_percentile_is_modelopts_within_a_bin(name: str) -> None:
    values = same_tensors()[name]
    ours = collected(PercentileCalibrator(99.99), values)
    theirs, width = modelopt_amax(values, "percentile", 1, 1024)
    assert abs(ours.compute_amax() - theirs) <= width + ours.width  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["normal", "gelu", "tailed"])
def test_mse_is_modelopts_within_five_percent_and_not_its_released_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is flat near its least: the ranges differ by up to 2.3 %, the errors by less than a tenth of that."""
    values = same_tensors()[name]
    ours = collected(MseCalibrator(), values).compute_amax()
    released, _ = modelopt_amax(values, "mse", 1, 1024)
    module = modelopt_histogram()
    quantize = module.fake_tensor_quant
    monkeypatch.setattr(module, "fake_tensor_quant", lambda x, amax, bits, unsigned: quantize(x, amax, None, bits, unsigned))
    mended, _ = modelopt_amax(values, "mse", 1, 1024)

    exact = values.double().numpy()
    assert ours == pytest.approx(mended, rel=0.05)
    assert squared_error(exact, ours) <= 1.02 * squared_error(exact, mended)
    assert squared_error(exact, released) > 2 * squared_error(exact, ours)


@pytest.mark.parametrize("name", ["normal", "gelu"])
def test_entropy_is_as_near_to_modelopts_as_that_is_to_itself(name: str) -> None:
    """Several ranges are all but equally good, and its histogram depends on the first batch: its range moves by up to 20 %."""
    values = same_tensors()[name]
    ours = collected(EntropyCalibrator(), values).compute_amax()
    theirs = [modelopt_amax(values, "entropy", parts, 512)[0] for parts in (1, 4)]
    assert all(ours == pytest.approx(value, rel=0.2) for value in theirs)


def squared_error(values: NDArray[np.float64], amax: float) -> float:
    step = amax / 127
    return float(((np.clip(np.round(values / step), -127, 127) * step - values) ** 2).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mse_is_near_the_least_error_of_any_range(seed: int) -> None:
    values = heavy_tailed(20_000, seed)
    amax = collected(MseCalibrator(), values).compute_amax()
    exact = values.double().numpy()
    best = min(squared_error(exact, candidate) for candidate in np.linspace(0.05, 1.0, 200) * np.abs(exact).max())
    assert squared_error(exact, amax) <= best * 1.02
    assert squared_error(exact, amax) < squared_error(exact, float(np.abs(exact).max()))


def test_entropy_clips_the_outlier_that_max_keeps() -> None:
    values = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([50.0])])
    assert collected(MaxCalibrator(), values).compute_amax() == 50.0
    entropy = collected(EntropyCalibrator(), values)
    assert 2.0 < entropy.compute_amax() < 8.0
    assert 0 < entropy.clipped_fraction(entropy.compute_amax()) < 0.01
