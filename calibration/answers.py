"""What a classifier's own answers on the calibration images say about the images and about what was done to them.

Pixels alone cannot tell that red and blue were swapped, or which mean the model was trained with. The model can, where the right
answers are known: it answers best to what it was trained on. Without right answers it cannot: on things it was not trained to name,
a model may well be more certain of pixels it never saw.

Shape letters: n images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.lints import Finding
from calibration.statistics import wilson_interval

Logits = NDArray[np.float32]

FEWEST = 16
"""Images below which answers are not judged."""
ADVANTAGE = 2.5
"""Standard errors by which another form of the images must be answered better; a right form never was answered worse by 1.5."""
ONE_CLASS = 0.5
"""Share that one class has at most, of four or more."""
ACCURACY = 0.5
"""Top-1 accuracy that a model fit for use has at least on its calibration images."""


def answer_findings(
    logits: Logits, labels: Sequence[int | None], others: Mapping[str, tuple[str, Logits]]
) -> tuple[Finding, ...]:
    """What a classifier's answers speak against.

    Args:
        logits: Answers to the images as they are, (n, K).
        labels: Right class of each image, or None where it is not known.
        others: What was done to the images, to the code of the finding when the answers (n, K) to these are better.
    """
    count, classes = logits.shape
    known = np.array([label is not None for label in labels])
    right = np.array([label or 0 for label in labels])
    findings = []
    if count >= FEWEST and classes >= 4:
        findings += _few_classes(right if known.all() else logits.argmax(axis=1), folders=bool(known.all()))
    if known.sum() >= FEWEST:
        findings += _low_accuracy(logits[known].argmax(axis=1) == right[known])
        for words, (code, theirs) in others.items():
            better = losses(theirs[known], right[known])
            # A form that is answered worse than by guessing is not how the images should be: the labels are wrong, then.
            if better.mean() < math.log(classes):
                findings += _better(losses(logits[known], right[known]), better, code, words)
    return tuple({finding.code: finding for finding in reversed(findings)}.values())[::-1]


def losses(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each image, (n,), from logits (n, K) and right classes (n,)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels])


def advantage(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """By how many standard errors the paired losses (n,) of the others are lower."""
    difference = ours - theirs
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(difference.mean()) / error if error > 0 else 0.0


def _few_classes(classes: NDArray[np.int64], *, folders: bool) -> list[Finding]:
    most = int(np.bincount(classes).max())
    if wilson_interval(most, len(classes))[0] <= ONE_CLASS:
        return []
    share = most / len(classes)
    whose = "lie in the folder of one class" if folders else "are of one class to the model"
    text = (
        f"{share:.0%} of {len(classes)} images {whose}; expected no class to have more than half. "
        "Calibrate on images of all classes, in equal parts."
    )
    return [Finding(code="few-classes", text=text, value=share, limit=ONE_CLASS)]


def _low_accuracy(hits: NDArray[np.bool_]) -> list[Finding]:
    if wilson_interval(int(hits.sum()), len(hits))[1] >= ACCURACY:
        return []
    share = float(hits.mean())
    text = (
        f"The FP32 model names {share:.0%} of {len(hits)} calibration images rightly; expected half of them or more. Check the "
        "names of the folders, the images, and the preprocessing; if the task is that hard, this may stay."
    )
    return [Finding(code="low-accuracy", text=text, value=share, limit=ACCURACY)]


def _better(ours: NDArray[np.float64], theirs: NDArray[np.float64], code: str, words: str) -> list[Finding]:
    found = advantage(ours, theirs)
    if found <= ADVANTAGE:
        return []
    text = (
        f"The FP32 model answers better {words} (loss {theirs.mean():.2f} instead of {ours.mean():.2f}, {found:.1f} standard "
        f"errors on {len(ours)} images); expected it to answer best to the images as they are. Check how the images were "
        "written, and image_mean and image_std in preprocessor_config.json."
    )
    return [Finding(code=code, text=text, value=found, limit=ADVANTAGE)]
