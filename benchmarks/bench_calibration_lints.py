"""Faults put into calibration images, which lint names each, what INT8 comes of it; and how often healthy images are blamed.

    python benchmarks/bench_calibration_lints.py --train clothing10/train --val clothing10/val

The bundled model is calibrated on 64 images of ``--train`` with each fault and judged on 300 of ``--val``. Healthy sets are
drawn at random, 32 to 512 images each, from ``--train`` and from any folder of photographs given with ``--other``. Without
folders the bundled photographs serve. The numbers of the documents are in ``benchmarks/results/calibration-lints.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from calibration.answers import answer_findings
from calibration.dataset import ImageFolder
from calibration.pixels import PixelStatistics, pixel_findings
from calibration.samples import sample_folder
from calibration.statistics import wilson_interval
from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.quantize.calibrate import ASKED, NORMALIZATIONS
from swinv2_deploy.verify import VerifySpec, verify

Picture = NDArray[np.uint8]
SIZES = (32, 64, 128, 256, 512)
DRAWS = 100
"""Healthy sets of each size."""


def patches(side: int) -> Callable[[Picture, np.random.Generator], Picture]:
    """Function that shuffles squares of an image."""

    def shuffle(image: Picture, random: np.random.Generator) -> Picture:
        rows, columns = image.shape[0] // side, image.shape[1] // side
        squares = (
            image[: rows * side, : columns * side]
            .reshape(rows, side, columns, side, 3)
            .swapaxes(1, 2)
            .reshape(-1, side, side, 3)
        )
        mixed = squares[random.permutation(len(squares))].reshape(rows, columns, side, side, 3)
        return np.ascontiguousarray(mixed.swapaxes(1, 2).reshape(rows * side, columns * side, 3))

    return shuffle


FAULTS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "none": lambda image, _: image,
    "pixels shuffled": lambda image, random: random.permutation(image.reshape(-1, 3)).reshape(image.shape),
    "rows shuffled": lambda image, random: random.permutation(image),
    "patches of 4 px shuffled": patches(4),
    "patches of 16 px shuffled": patches(16),
    "patches of 32 px shuffled": patches(32),
    "noise": lambda image, random: random.integers(0, 256, image.shape, np.uint8),
    "one gray": lambda image, _: np.full_like(image, 128),
    "red and blue swapped": lambda image, _: np.ascontiguousarray(image[..., ::-1]),
    "much too dark": lambda image, _: image // 16,
}
RECIPES: dict[str, Any] = {
    "no normalization": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "normalized to -1 to 1": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "scaled to 0 to 1 twice": {"std": (0.229 * 255, 0.224 * 255, 0.225 * 255)},
    "bilinear for bicubic": {"interpolation": "bilinear"},
}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=sample_folder("calibrate"), help="images to calibrate on")
    parser.add_argument("--val", type=Path, default=sample_folder("verify"), help="images to judge on")
    parser.add_argument("--other", type=Path, action="append", default=[], help="more healthy photographs; repeatable")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "faulty": faulty(arguments.train, arguments.val, Path(folder)),
            "healthy": [healthy(path) for path in (arguments.train, *arguments.other)],
        }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def statistics(pixels: PixelStatistics) -> dict[str, float]:
    """What the lints compare."""
    return {
        "unlike_neighbors": pixels.unlike_neighbors,
        "unlike_far": pixels.unlike_far,
        "seam": pixels.seam,
        "flat": pixels.flat,
        "raw_mean_low": min(pixels.raw_mean),
        "raw_mean_high": max(pixels.raw_mean),
        "raw_deviation_low": min(pixels.raw_deviation),
        "raw_deviation_high": max(pixels.raw_deviation),
        "negative_share": pixels.negative_share,
    }


def healthy(root: Path) -> dict[str, Any]:
    """Extremes of every statistic over random sets, and the findings."""
    artifact = bundled_artifact()
    recipe, model = artifact.preprocessing, load_model(artifact)
    folder = ImageFolder.open(root)
    folder = folder.select(min(1024, len(folder)), 7)
    resized = [recipe.resize(read_image(path)) for path in folder.paths]
    images = np.stack([recipe.normalize(image) for image in resized])
    index = {label: position for position, label in enumerate(model.config.labels)}
    labels = [index.get(name.split("/")[0]) for name in folder.names]
    recipes = [replace(recipe, mean=mean, std=std) for mean, std in NORMALIZATIONS if (mean, std) != (recipe.mean, recipe.std)]
    forms: dict[str, tuple[str, Any]] = {
        f"{other.mean}": ("wrong-normalization", logits(model, np.stack([other.normalize(image) for image in resized])))
        for other in recipes
    }
    forms["swapped"] = ("swapped-channels", logits(model, np.stack([recipe.normalize(image[..., ::-1]) for image in resized])))
    own = logits(model, images)
    random = np.random.default_rng(0)
    rows = []
    for size in (size for size in SIZES if size <= len(folder)):
        found: Counter[str] = Counter()
        seen: list[dict[str, float]] = []
        for _ in range(DRAWS):
            chosen = random.choice(len(folder), size, replace=False)
            pixels = PixelStatistics(recipe.mean, recipe.std)
            pixels.collect(images[chosen])
            asked = chosen[:ASKED]
            others = {words: (code, answers[asked]) for words, (code, answers) in forms.items()}
            findings = [*pixel_findings(pixels), *answer_findings(own[asked], [labels[index] for index in asked], others)]
            found.update(finding.code for finding in findings)
            seen.append(statistics(pixels))
        extremes = {key: [min(row[key] for row in seen), max(row[key] for row in seen)] for key in seen[0]}
        rows.append({"images": size, "sets": DRAWS, "findings": dict(found), "extremes": extremes})
    return {"folder": root.name, "photographs": len(folder), "rows": rows}


def logits(model: torch.nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answers (n, K) to images (n, 3, H, W)."""
    with torch.inference_mode():
        return np.concatenate([model(part).numpy() for part in torch.from_numpy(images).split(16)])


def faulty(train: Path, val: Path, folder: Path) -> list[dict[str, Any]]:
    """Findings and INT8 drift of every fault."""
    artifact = export(source_from_artifact(bundled_artifact()), ExportSpec(), folder / "fp32")
    source = ImageFolder.open(train)
    source = source.select(min(64, len(source)), 1)
    one = next(name for name in ImageFolder.open(train).classes)
    same = ImageFolder(
        Path(train).absolute(), tuple(name for name in ImageFolder.open(train).names if name.startswith(f"{one}/")), (one,)
    )
    rows = []
    for name, fault in FAULTS.items():
        random = np.random.default_rng(0)
        root = folder / name.replace(" ", "-")
        for image, path in zip(source.names, source.paths, strict=True):
            target = (root / image).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(fault(artifact.preprocessing.resize(read_image(path)), random)).save(target)
        rows.append(row(name, artifact, ImageFolder.open(root), val, folder))
    bare = folder / "unlabeled"
    bare.mkdir()
    for number, path in enumerate((folder / "red-and-blue-swapped").rglob("*.png")):
        (bare / f"{number}.png").write_bytes(path.read_bytes())
    rows.append(row("red and blue swapped, no class folders", artifact, ImageFolder.open(bare), val, folder))
    rows.append(row("images of one class", artifact, same.select(min(64, len(same)), 1), val, folder))
    flat = folder / "one-class-unlabeled"
    flat.mkdir()
    for number, path in enumerate(same.select(min(64, len(same)), 1).paths):
        (flat / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    rows.append(row("images of one class, no class folders", artifact, ImageFolder.open(flat), val, folder))
    for name, changes in RECIPES.items():
        rows.append(row(name, artifact, source, val, folder, replace(artifact.preprocessing, **changes)))
    return rows


def row(
    name: str, artifact: ModelArtifact, images: ImageFolder, val: Path, folder: Path, recipe: Preprocessing | None = None
) -> dict[str, Any]:
    """Quantize with one fault and verify with the right recipe."""
    wrong = replace(artifact, preprocessing=recipe) if recipe else artifact
    spec = QuantizeSpec(unsigned="never", images=len(images))
    result = quantize(wrong, spec, images, folder / f"q-{name.replace(' ', '-')}")
    spec_verify = VerifySpec(
        data=val, candidates=("model_int8",), limit=min(300, len(ImageFolder.open(val))), latency_seconds=0
    )
    report = verify(result.artifact, spec_verify)
    (candidate,) = (entry for entry in report.candidates if entry.name == "model_int8")
    used = wrong.preprocessing
    pixels = PixelStatistics(used.mean, used.std)
    pixels.collect(np.stack([used(read_image(path)) for path in images.paths]))
    classes = candidate.classes
    made = {
        "fault": name,
        "images": len(images),
        "lints": {finding.code: finding.value for finding in result.findings},
        "statistics": statistics(pixels),
        "verify_passed": candidate.passed,
        "failed_gates": [check.name for check in candidate.checks if check.passed is False],
        "cosine": candidate.outputs["logits"].cosine,
        "agreement": classes.agreement if classes else None,
        "agreement_95": wilson_interval(round(classes.agreement * report.images), report.images) if classes else None,
        "points_lost": classes.drop if classes else None,
    }
    print(json.dumps(made), flush=True)
    return made


if __name__ == "__main__":
    main()
