"""Which measurement fails which tolerance. Every gate says its value, its limit, and when a number of images is too small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from swinv2_deploy.verify.layers import LayerDrift
from swinv2_deploy.verify.metrics import ClassDrift, OutputDrift
from swinv2_deploy.verify.report import Check, SizeDrift, SlotDrift
from swinv2_deploy.verify.tolerances import Tolerances


def judge(
    tolerances: Tolerances,
    *,
    outputs: Mapping[str, OutputDrift],
    classes: ClassDrift | None,
    nonfinite: Sequence[str],
    sweep: Sequence[SizeDrift],
    slots: SlotDrift,
    noise: Mapping[str, float],
    trained: bool,
    layers: Sequence[LayerDrift] = (),
) -> tuple[Check, ...]:
    """Gates of one candidate, in the order a reader needs them.

    Args:
        tolerances: Limits for its precision.
        outputs: Drift by output.
        classes: Agreement and accuracy, or None.
        nonfinite: Images with NaN or infinity.
        sweep: Drift by size.
        slots: Independence of the batch.
        noise: Noise of the reference by output: what float32 rounding moves or, for photographs, a few pixels by one gray level.
        trained: Whether agreement and accuracy mean anything.
        layers: Drift inside the network, where it was measured.
    """
    checks = [_finite(nonfinite)]
    for name, drift in outputs.items():
        if tolerances.max_abs is not None:
            limit, words = _absolute_limit(tolerances, noise[name])
            checks.append(_most(f"max abs {name}", drift.max_abs, limit, f"{name} differs by {drift.max_abs:.2e}", words))
        if tolerances.cosine is not None:
            words = f"cosine similarity of {name} is {drift.cosine:.7f}"
            checks.append(_least(f"cosine {name}", drift.cosine, tolerances.cosine, words))
    if classes is not None:
        checks += _class_checks(tolerances, classes, trained=trained)
    checks += _sweep_checks(tolerances, sweep, max(noise.values()))
    if tolerances.slot_error is not None:
        checks.append(_slot_check(tolerances, slots, max(noise.values())))
    if tolerances.site_sqnr_db is not None:
        checks += _site_checks(tolerances.site_sqnr_db, layers)
    return tuple(checks)


def tie_margin(tolerances: Tolerances, noise: Mapping[str, float]) -> float:
    """Lead within which two classes are tied: both logits may move by the noise."""
    return 2 * tolerances.noise_factor * noise.get("logits", 0.0)


def _absolute_limit(tolerances: Tolerances, noise: float) -> tuple[float, str]:
    floor = tolerances.noise_factor * noise
    limit = tolerances.max_abs or 0.0
    if floor <= limit:
        return limit, f"{limit:.1e}"
    return floor, f"{floor:.1e} = {tolerances.noise_factor:g} x the noise of the reference"


def _finite(nonfinite: Sequence[str]) -> Check:
    text = f"{len(nonfinite)} images give NaN or infinity" + (f", the first {nonfinite[0]}" if nonfinite else "")
    return Check(name="finite", passed=not nonfinite, value=float(len(nonfinite)), limit=0.0, text=f"{text}; none may")


def _class_checks(tolerances: Tolerances, classes: ClassDrift, *, trained: bool) -> list[Check]:
    checks = []
    exact = tolerances.max_abs is not None
    if tolerances.agreement is not None and (trained or exact):
        checks.append(_agreement_check(tolerances.agreement, classes))
    if trained and classes.swapped is not None:
        first, second = classes.swapped
        text = f"the reference names most images of {first!r} {second!r} and the other way round: their labels look swapped"
        checks.append(Check(name="labels", passed=False, value=None, limit=0.0, text=text))
    if tolerances.top1_drop is not None and trained and classes.drop is not None and classes.drop_interval is not None:
        checks.append(_accuracy_check(tolerances.top1_drop, classes, classes.drop, classes.drop_interval))
    return checks


def _agreement_check(limit: float, classes: ClassDrift) -> Check:
    """Where a limit is below one, images must be so many that chance does not explain what is missing."""
    value, text = classes.judged_agreement, f"top-1 agrees on {classes.judged_agreement:.2%} of the images"
    needed = f"at least {limit:.2%} is needed"
    passed: bool | None = value >= limit
    if not passed and limit < 1 and classes.agreement_interval[1] >= limit:
        low, high = classes.agreement_interval
        passed, text = None, f"{text} (95 %: {low:.1%} to {high:.1%}), too few to tell"
    return Check(name="agreement", passed=passed, value=_number(value), limit=limit, text=f"{text}; {needed}")


def _accuracy_check(limit: float, classes: ClassDrift, drop: float, interval: tuple[float, float]) -> Check:
    """With few images a single one decides, so a pass proves nothing; a failure still can, by its interval.

    Two images must fit into the limit for the difference alone to be judged.
    """
    needed = math.ceil(200 / limit) if limit > 0 else 0
    text = f"top-1 drops by {drop:.2f} points (95 %: {interval[0]:.2f} to {interval[1]:.2f}) on {classes.labeled} images"
    passed: bool | None = drop <= limit
    if classes.labeled < needed:
        passed = False if interval[0] > limit else None
        text += f"; {needed} are needed to judge {limit:g} points, one image is {100 / classes.labeled:.1f}"
    return Check(name="top1 drop", passed=passed, value=drop, limit=limit, text=f"{text}; at most {limit:g} may be lost")


def _sweep_checks(tolerances: Tolerances, sweep: Sequence[SizeDrift], noise: float) -> list[Check]:
    checks = []
    for drift in sweep:
        size = "x".join(map(str, drift.size))
        if tolerances.max_abs is not None:
            limit, words = _absolute_limit(tolerances, noise)
            checks.append(
                _most(f"max abs at {size}", drift.max_abs, limit, f"outputs at {size} px differ by {drift.max_abs:.2e}", words)
            )
        if tolerances.sweep_cosine is not None:
            words = f"cosine similarity at {size} px is {drift.cosine:.7f}"
            checks.append(_least(f"cosine at {size}", drift.cosine, tolerances.sweep_cosine, words))
    return checks


def _slot_check(tolerances: Tolerances, slots: SlotDrift, noise: float) -> Check:
    limit = tolerances.slot_error or 0.0
    small = slots.max_abs <= tolerances.noise_factor * noise
    text = (
        f"an image in row {slots.worst[1]} of a batch of {slots.worst[0]} differs from the same image alone by "
        f"{slots.relative:.2e} of the output's magnitude; at most {limit:.0e} may be"
    )
    return Check(
        name="batch slots", passed=small or slots.relative <= limit, value=_number(slots.relative), limit=limit, text=text
    )


def _site_checks(limit: float, layers: Sequence[LayerDrift]) -> list[Check]:
    """Every part alone, on the reference's own inputs: one that is broken may hide behind outputs that hardly move."""
    rows = [(row.alone_db, row.name) for row in layers if row.kind == "site" and row.alone_db is not None]
    if not rows:
        return []
    checks = []
    for value, name in [row for row in rows if row[0] < limit] or [min(rows)]:
        words = f"{name} alone gives {value:.1f} dB of signal over noise"
        checks.append(_least(f"site {name}", value, limit, words, f"{limit:g} dB"))
    return checks


def _most(name: str, value: float, limit: float, words: str, shown: str) -> Check:
    return Check(name=name, passed=value <= limit, value=_number(value), limit=limit, text=f"{words}; at most {shown} may be")


def _least(name: str, value: float, limit: float, words: str, shown: str | None = None) -> Check:
    return Check(
        name=name,
        passed=value >= limit,
        value=_number(value),
        limit=limit,
        text=f"{words}; at least {shown or limit} is needed",
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
