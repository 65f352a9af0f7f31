"""Small random models through the whole way: whatever is not what the reference computes is printed, and ends with exit code 1.

    python benchmarks/bench_random_models.py --first 0 --count 200

A number makes a model of any task: its stages, widths, heads, windows, patches, channels, norms and window policy, the range of its
export or its one size, and sizes and batches inside it. Its FP32 file is compared with the reference in both runtimes, as it is and
pinned, a pruned one with the model whose units are silenced, and the INT8 forms with each other in ONNX Runtime and OpenVINO.
The judge of FP32 is that of ``export --prove``. Weights mean nothing, so how far INT8 is from FP32 is not judged here.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model.config import TASKS, SwinV2Config, make_config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact, WeightsOrigin
from swinv2_deploy.errors import SpecError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.source import Source, untrained_model
from swinv2_deploy.pipeline import plan_pruning, prune_artifact
from swinv2_deploy.prune.cut import masked
from swinv2_deploy.prune.spec import PruneSpec
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import Array, BackEnd, load_runner, prove

BACK_ENDS: tuple[BackEnd, ...] = ("onnxruntime", "openvino")
SIZES = 3
"""Sizes a model is run at."""
SAME_INTEGERS = 0.02
"""Most that the two INT8 forms, or a form and its pinned self, may be apart in ONNX Runtime, as a share of the output's power."""
OTHER_KERNELS = 0.1
"""The same for OpenVINO, whose float arithmetic between the integers rounds other values the other way."""


def random_config(draw: random.Random) -> SwinV2Config:
    """Any architecture of a few thousand parameters."""
    stages = draw.choice([1, 2, 3, 4])
    dim = draw.choice([8, 12, 16, 24])
    heads = [draw.choice([count for count in (1, 2, 3, 4, 6) if dim * 2**stage % count == 0]) for stage in range(stages)]
    window, patch = draw.choice([1, 2, 3, 4, 5, 7, 8, 8, 12, 16, 24]), draw.choice([1, 2, 3, 4, 4, 4, 7, 8])
    square = patch * draw.choice([8, 16, 24])
    task = draw.choice(TASKS)
    others: dict[str, Any] = {}
    if task == "classification":
        others["num_classes"] = draw.choice([1, 2, 7, 100])
    if task == "backbone":
        names = ["stem", *(f"stage{stage + 1}" for stage in range(stages))]
        others["out_features"] = tuple(draw.sample(names, draw.randint(1, len(names))))
    if task == "image_reconstruction":
        others["upscale"] = draw.choice([2, 4])
    if draw.random() < 0.5:
        others["pretrained_window_sizes"] = [draw.choice([0, window, 6, 12]) for _ in range(stages)]
    return make_config(
        task=task,
        embed_dim=dim,
        depths=[draw.choice([1, 2, 2, 3]) for _ in range(stages)],
        num_heads=heads,
        window_size=window,
        patch_size=patch,
        image_size=(patch * draw.randint(4, 24), patch * draw.randint(4, 24)) if draw.random() < 0.4 else (square, square),
        mlp_ratio=draw.choice([1, 2, 4]),
        num_channels=draw.choice([1, 2, 3, 3, 3, 3, 4]),
        qkv_bias=draw.random() < 0.8,
        use_absolute_embeddings=draw.random() < 0.2,
        patch_norm=draw.random() < 0.8,
        extra_norm_period=draw.choice([0, 0, 0, 1, 2]),
        window_policy=draw.choice(["fixed", "fixed", "adaptive"]),
        layer_norm_eps=draw.choice([1e-5, 1e-6, 1e-12]),
        **others,
    )


def random_model(config: SwinV2Config, seed: int) -> SwinV2:
    """Untrained weights, with gains, biases and temperatures away from where they hide an error."""
    model = untrained_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "logit_scale" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def random_spec(draw: random.Random, config: SwinV2Config) -> ExportSpec:
    """One size, or a range that holds the trained one."""
    if draw.random() < 0.3:
        return ExportSpec(static=True)
    height, width = config.image_size
    low = (draw.randint(1, height), draw.randint(1, width)) if draw.random() < 0.6 else None
    return ExportSpec(smallest=low, largest=(draw.randint(height, 2 * height), draw.randint(width, 2 * width)))


def check(seed: int, folder: Path) -> tuple[SwinV2Config, list[str]]:
    """What is wrong with the model of a number; nothing is kept in the folder but its artifacts."""
    draw = random.Random(seed)
    config = random_config(draw)
    spec = random_spec(draw, config)
    shortest = None if draw.random() < 0.5 else max(config.image_size) + draw.randint(0, 9)
    source = Source(
        model=random_model(config, seed),
        preprocessing=Preprocessing(size=config.image_size, resize_shortest=shortest).with_channels(config.num_channels),
        origin=WeightsOrigin(kind="trained", source="random"),
        name="random",
    )
    artifact = export(source, spec, folder / f"{seed}")
    sizes = spec.resolutions(config)
    places = [
        (draw.choice([1, 1, 2, 3, 5]), draw.randint(sizes.min[0], sizes.max[0]), draw.randint(sizes.min[1], sizes.max[1]))
        for _ in range(SIZES)
    ]
    wrong = list(_float(artifact, source.model, places))
    photographs = ImageFolder.open(sample_folder("calibrate")).select(8) if config.num_channels in (1, 3) else None
    if config.running_stages:
        wrong += _pruned(artifact, draw, photographs, places[0], folder / f"{seed}-pruned")
        if photographs is not None:
            wrong += _integers(artifact, draw, photographs, places[0], folder / f"{seed}-int8")
    return config, wrong


def _float(artifact: ModelArtifact, model: SwinV2, places: list[tuple[int, int, int]]) -> Iterator[str]:
    for back_end in BACK_ENDS:
        free = load_runner(artifact, "model", back_end=back_end, threads=1)
        for batch, height, width in places:
            pinned = load_runner(artifact, "model", back_end=back_end, threads=1, pinned=(batch, height, width))
            for name, runner in (("", free), (" pinned", pinned)):
                for failure in prove(runner, model, {(height, width): (batch,)}).failures:
                    yield f"FP32 in {back_end}{name}, batch {batch}: {failure}"


def _pruned(
    artifact: ModelArtifact, draw: random.Random, photographs: ImageFolder | None, place: tuple[int, int, int], path: Path
) -> Iterator[str]:
    criteria = ["magnitude"] if photographs is None else ["taylor", "activation", "magnitude", "random"]
    spec = PruneSpec(
        measure=draw.choice(["params", "macs", "heads"]),
        share=draw.choice([0.05, 0.1, 0.2]),
        criterion=draw.choice(criteria),  # type: ignore[arg-type]  # one of them
        multiple=draw.choice([1, 4, 8]),
    )
    try:
        planned = plan_pruning(artifact, spec, photographs)
    except SpecError:
        return  # models as small as these have no such share to give
    cut = prune_artifact(artifact, spec, planned, path).artifact
    batch, height, width = place
    model = load_model(artifact)
    with masked(model, planned.plan):
        for failure in prove(load_runner(cut, "model", threads=1), model, {(height, width): (batch,)}).failures:
            yield f"pruned: {failure}"


def _integers(
    artifact: ModelArtifact, draw: random.Random, photographs: ImageFolder, place: tuple[int, int, int], path: Path
) -> Iterator[str]:
    spec = QuantizeSpec(
        calibrator=draw.choice(["max", "percentile", "entropy", "mse"]),
        policy=draw.choice(["linear", "mlp", "attention"]),
        unsigned="always",
    )
    made = quantize(artifact, spec, photographs, path).artifact
    shape = (place[0], artifact.config.num_channels, *place[1:])
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    signed = load_runner(made, "model_int8", threads=1).run(images)
    others = {
        "model_uint8": (load_runner(made, "model_uint8", threads=1), SAME_INTEGERS),
        "model_int8 pinned": (load_runner(made, "model_int8", threads=1, pinned=place), SAME_INTEGERS),
        "model_uint8 pinned": (load_runner(made, "model_uint8", threads=1, pinned=place), SAME_INTEGERS),
        "model_int8 in OpenVINO": (load_runner(made, "model_int8", threads=1, back_end="openvino"), OTHER_KERNELS),
        "model_int8 in OpenVINO, pinned": (
            load_runner(made, "model_int8", threads=1, back_end="openvino", pinned=place),
            OTHER_KERNELS,
        ),
    }
    for name, (runner, limit) in others.items():
        for output, value in runner.run(images).items():
            apart = _apart(value, signed[output])
            if not apart <= limit:
                yield f"{name} is {apart:.2g} from model_int8 in {output} ({spec.policy}, {spec.calibrator})"


def _apart(found: Array, expected: Array) -> float:
    """Root mean square of the difference over that of what was expected; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    power = max(float(np.square(expected, dtype=np.float64).mean()), 1e-24)
    return float(np.sqrt(np.square(found.astype(np.float64) - expected).mean() / power))


def main() -> int:
    """Check the models that were asked for; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first model")
    parser.add_argument("--count", type=int, default=40, help="how many models (default 40)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = 0
    for seed in range(arguments.first, arguments.first + arguments.count):
        with tempfile.TemporaryDirectory() as folder:
            config, wrong = check(seed, Path(folder))
        found += bool(wrong)
        print(f"{seed}: {config.task}: {'right' if not wrong else f'WRONG, {config}'}", flush=True)
        for line in wrong:
            print(f"  {line}", flush=True)
    print(f"{arguments.count} models, {found} of them wrong somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
