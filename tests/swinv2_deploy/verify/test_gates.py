"""Every gate passes at its limit and fails beyond it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from swinv2_deploy.verify.gates import judge
from swinv2_deploy.verify.layers import LayerDrift
from swinv2_deploy.verify.metrics import ClassDrift, OutputDrift
from swinv2_deploy.verify.report import Check, SizeDrift, SlotDrift
from swinv2_deploy.verify.tolerances import Tolerances

LIMITS = Tolerances(
    max_abs=1e-4, cosine=0.99, agreement=0.95, top1_drop=1.0, sweep_cosine=0.98, slot_error=1e-3, site_sqnr_db=15.0
)
SITE = LayerDrift(name="a", kind="site", carried_db=20.0, alone_db=15.0)
OUTPUT = OutputDrift(max_abs=1e-4, mean_abs=0, cosine=0.99, worst_cosine=0, sqnr_db=math.inf, peak=1)
CLASSES = ClassDrift(
    agreement=0.9,
    judged_agreement=0.95,
    agreement_interval=(0.92, 0.94),
    kl=0,
    flips=(),
    labeled=500,
    top1=(0.8, 0.79),
    drop=1.0,
    drop_interval=(-1.0, 3.0),
)
SWEEP = SizeDrift(size=(8, 9), max_abs=1e-4, cosine=0.98)
SLOTS = SlotDrift(size=(8, 8), batch_sizes=(1, 17), max_abs=1e-2, relative=1e-3, worst=(17, 4))


def failed(**changes: Any) -> list[Check]:
    values: dict[str, Any] = {
        "outputs": {"logits": OUTPUT},
        "classes": CLASSES,
        "nonfinite": [],
        "sweep": [SWEEP],
        "slots": SLOTS,
        "noise": {"logits": 1e-6},
        "trained": True,
    }
    return [check for check in judge(LIMITS, **values | changes) if check.passed is False]


def test_limits_themselves_pass() -> None:
    assert [] == failed()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"nonfinite": ["a.png"]}, "1 images give NaN or infinity, the first a.png"),
        ({"outputs": {"logits": replace(OUTPUT, max_abs=1.1e-4)}}, "logits differs by 1.10e-04; at most 1.0e-04 may be"),
        ({"outputs": {"logits": replace(OUTPUT, max_abs=math.nan)}}, "logits differs by nan"),
        (
            {"outputs": {"logits": replace(OUTPUT, cosine=0.98)}},
            "cosine similarity of logits is 0.9800000; at least 0.99 is needed",
        ),
        ({"classes": replace(CLASSES, judged_agreement=0.9)}, "top-1 agrees on 90.00% of the images; at least 95.00%"),
        ({"classes": replace(CLASSES, swapped=("cat", "dog"))}, "names most images of 'cat' 'dog' and the other way round"),
        (
            {"layers": [SITE, replace(SITE, name="b", alone_db=14.0)]},
            "b alone gives 14.0 dB of signal over noise; at least 15 dB",
        ),
        ({"layers": [replace(SITE, alone_db=-math.inf)]}, "a alone gives -inf dB"),
        ({"classes": replace(CLASSES, drop=1.2)}, "top-1 drops by 1.20 points (95 %: -1.00 to 3.00) on 500 images"),
        ({"sweep": [SWEEP, replace(SWEEP, max_abs=1.0)]}, "outputs at 8x9 px differ by 1.00e+00"),
        ({"sweep": [replace(SWEEP, cosine=-1.0)]}, "cosine similarity at 8x9 px is -1.0000000"),
        ({"slots": replace(SLOTS, relative=1.1e-3)}, "row 4 of a batch of 17 differs"),
        ({"slots": replace(SLOTS, relative=math.inf)}, "row 4 of a batch of 17 differs"),
    ],
)
def test_each_gate_can_fail_alone(changes: dict[str, Any], text: str) -> None:
    (check,) = failed(**changes)

    assert text in check.text


def test_noise_of_the_reference_raises_the_limit() -> None:
    """What float32 itself does to the reference is no drift; the text says which limit held."""
    loud = {"logits": 5e-5}
    drift = replace(OUTPUT, max_abs=4e-4)

    assert [] == failed(outputs={"logits": drift}, noise=loud)
    (check,) = failed(outputs={"logits": replace(drift, max_abs=6e-4)}, noise=loud)
    assert "5.0e-04 = 10 x the noise of the reference" in check.text


@pytest.mark.parametrize(
    ("drop", "interval", "passed"), [(0.0, (-2.0, 2.0), None), (4.0, (-1.0, 9.0), None), (9.0, (1.5, 15.0), False)]
)
def test_few_images_cannot_pass_accuracy(drop: float, interval: tuple[float, float], passed: bool | None) -> None:
    """Below 200 images one point is not resolved: undecided, unless even the interval's good end is too bad."""
    classes = replace(CLASSES, labeled=40, drop=drop, drop_interval=interval)
    checks = judge(
        LIMITS,
        outputs={"logits": OUTPUT},
        classes=classes,
        nonfinite=[],
        sweep=[],
        slots=SLOTS,
        noise={"logits": 0.0},
        trained=True,
    )
    (check,) = (check for check in checks if check.name == "top1 drop")

    assert check.passed is passed
    assert "200 are needed to judge 1 points, one image is 2.5" in check.text


def test_untrained_weights_have_no_accuracy() -> None:
    assert [] == failed(classes=replace(CLASSES, drop=50.0), trained=False)


@pytest.mark.parametrize(("interval", "passed"), [((0.8, 0.96), None), ((0.8, 0.94), False)])
def test_few_images_cannot_fail_agreement(interval: tuple[float, float], passed: bool | None) -> None:
    """Where chance explains what is missing it is undecided; in FP32 every image counts."""
    classes = replace(CLASSES, judged_agreement=0.9, agreement_interval=interval)
    arguments: dict[str, Any] = {
        "outputs": {"logits": OUTPUT},
        "nonfinite": [],
        "sweep": [],
        "slots": SLOTS,
        "noise": {"logits": 0.0},
    }
    checks = judge(LIMITS, classes=classes, trained=True, **arguments)
    (check,) = (check for check in checks if check.name == "agreement")
    assert check.passed is passed
    exact = judge(replace(LIMITS, agreement=1.0), classes=classes, trained=True, **arguments)
    assert next(check for check in exact if check.name == "agreement").passed is False
