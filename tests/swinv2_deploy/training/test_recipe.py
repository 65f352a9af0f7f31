"""The parts of a recipe: what is accepted, the schedule, the parameter groups, the augmentation and the split."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from reference_model.model import SwinV2
from reference_model.preprocessing import ImageError, Preprocessing
from swinv2_deploy.errors import SpecError
from swinv2_deploy.training import Phase, TrainSpec
from swinv2_deploy.training.augment import erase_boxes, jitter_colors, mix, random_crop_flip
from swinv2_deploy.training.data import TrainingImages, split_tuning
from swinv2_deploy.training.schedule import learning_rate, number_layers, parameter_groups
from swinv2_deploy.training.spec import parse_phases

PHASES = (Phase(resolution=32, share=1.0),)
NAN = float("nan")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- what is accepted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"phases": ()}, "add up to 1"),
        ({"phases": (Phase(resolution=32, share=0.5),)}, "add up to 1"),
        ({"phases": (Phase(resolution=32, share=NAN),)}, "add up to 1"),
        ({"phases": (Phase(resolution=32, share=1.5), Phase(resolution=32, share=-0.5))}, "positive share"),
        ({"phases": (Phase(resolution=4, share=1.0),)}, "at least 8 px"),
        ({"mixup": 1.0}, "mixup is 1.0"),
        ({"mixup": 0.6, "cutmix": 0.6}, "their sum is above 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"ema_decay": NAN}, "ema_decay is nan"),
        ({"tune_share": 1.0}, "tune_share is 1.0"),
        ({"crop_scale": 0.0}, "crop_scale is 0.0"),
        ({"learning_rate": 0.0, "final_learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": NAN}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"learning_rate": 1e-6}, "not below final_learning_rate"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"weight_decay": NAN}, "weight_decay is nan"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"accumulate": 3}, "equal parts of a batch of 64"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"rollback_factor": NAN}, "rollback_factor is nan"),
        ({"max_rollbacks": -1}, "max_rollbacks is -1"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"window_chunk": -1}, "window_chunk is -1"),
        ({"distill_weight": 1.1}, "distill_weight is 1.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"feature_weight": NAN}, "feature_weight is nan"),
        ({"precision": "fp16"}, "expected 'fp32' or 'bf16'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_recipes_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    """The message holds the value."""
    with pytest.raises(SpecError, match=words):
        TrainSpec(**({"phases": PHASES} | values))


def test_every_recipe_without_surprises_is_accepted() -> None:
    """A single epoch with the default warm-up, which is longer, too."""
    assert TrainSpec(phases=PHASES, epochs=1).to_dict()["warmup_epochs"] == 5.0


def test_recipes_of_older_artifacts_are_read() -> None:
    """That of the bundled model knows nothing of what came later, and means that none of it is done."""
    lineage = json.loads((files("swinv2_deploy") / "default_model/lineage.json").read_text("utf-8"))
    spec = TrainSpec.from_dict(lineage["spec"])

    assert spec.phases == (Phase(resolution=128, share=1.0),)
    assert spec.learning_rate == 5e-4
    assert (spec.layer_decay, spec.accumulate, spec.distills, spec.checkpoint_blocks, spec.window_chunk) == (
        1,
        1,
        False,
        False,
        0,
    )
    assert TrainSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_recipes_of_newer_versions_are_refused() -> None:
    """A setting that is not known cannot be heeded."""
    with pytest.raises(SpecError, match=r"settings \['magic'\] that this version does not know"):
        TrainSpec.from_dict(TrainSpec(phases=PHASES).to_dict() | {"magic": 1})


def test_phases_are_read() -> None:
    """A list with shares, or one resolution."""
    assert parse_phases("96:0.7,128:0.3") == (Phase(resolution=96, share=0.7), Phase(resolution=128, share=0.3))
    assert parse_phases("128") == (Phase(resolution=128, share=1.0),)


@pytest.mark.parametrize("text", ["", "a", "96:b", "96;128", "96:0.5,", "12.5"])
def test_other_texts_are_no_phases(text: str) -> None:
    """The message shows the form."""
    with pytest.raises(SpecError, match=r"expected for example 96:0\.7,128:0\.3"):
        parse_phases(text)


def test_resolution_changes_where_the_phases_say() -> None:
    """7 of 10 epochs at the first, the last one at the second."""
    spec = TrainSpec(epochs=10, phases=parse_phases("96:0.7,128:0.3"))
    assert [spec.resolution_at(epoch) for epoch in range(10)] == [96] * 7 + [128] * 3


# --- schedule and groups -----------------------------------------------------------------------------------------------


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    """Peak at the end of the warm-up, half way down in the middle, the final rate at the end and after."""
    rates = [learning_rate(step, steps=110, warmup=10, peak=1.0, final=0.2) for step in range(112)]

    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert rates[60] == pytest.approx(0.6)
    assert rates[110] == rates[111] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_learning_rate_needs_no_warm_up() -> None:
    """The first step is at the peak."""
    assert learning_rate(0, steps=10, warmup=0, peak=1.0, final=0.0) == 1.0


def test_only_matrices_decay(tiny_model: SwinV2) -> None:
    """Every parameter is in exactly one group."""
    decayed, kept = parameter_groups(tiny_model, 0.05)
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, kept)]  # type: ignore[attr-defined]

    assert [decayed["weight_decay"], kept["weight_decay"]] == [0.05, 0.0]
    assert groups[0] | groups[1] == set(names.values())
    assert not groups[0] & groups[1]
    assert all(name.endswith("weight") and "norm" not in name and "cpb" not in name for name in groups[0])
    assert {"head.weight", "patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"} <= groups[0]
    assert {"layers.0.blocks.0.attn.logit_scale", "head.bias"} <= groups[1]


def test_frozen_parameters_are_in_no_group(tiny_model: SwinV2) -> None:
    """Nothing decays what does not learn."""
    tiny_model.patch_embed.requires_grad_(False)
    grouped = {id(parameter) for group in parameter_groups(tiny_model, 0.05) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in tiny_model.parameters() if parameter.requires_grad}


def test_single_numbers_do_not_decay() -> None:
    """Such as the learned scale of a quantizer."""
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.tensor(1.0))
    decayed, kept = parameter_groups(module, 0.05)
    assert decayed["params"] == [module.weight]
    assert kept["params"] == [module.bias, module.scale]


def test_layers_are_numbered_from_the_image_up(tiny_model: SwinV2) -> None:
    """Two stages of two blocks: embedding 0, blocks 1 to 4, merging with the block below it, norm and classifier 5."""
    numbers = number_layers(tiny_model)

    assert numbers.keys() == dict(tiny_model.named_parameters()).keys()
    assert numbers["patch_embed.proj.weight"] == 0
    assert [numbers[f"layers.{s}.blocks.{b}.attn.cpb_mlp.0.weight"] for s in (0, 1) for b in (0, 1)] == [1, 2, 3, 4]
    assert numbers["layers.0.downsample.reduction.weight"] == numbers["layers.0.downsample.norm.bias"] == 2
    assert numbers["norm.weight"] == numbers["head.bias"] == 5


def test_deeper_layers_learn_faster(tiny_model: SwinV2) -> None:
    """By the factor a layer; the classifier at the full rate; every parameter is in exactly one group."""
    groups = parameter_groups(tiny_model, 0.05, 0.5)
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    scales = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    numbers = number_layers(tiny_model)

    assert scales == {name: 0.5 ** (5 - number) for name, number in numbers.items()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0}
    whole = {names[id(parameter)] for parameter in parameter_groups(tiny_model, 0.05)[0]["params"]}
    assert {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]} == whole


def test_wrapped_models_have_layers_too(tiny_model: SwinV2) -> None:
    """A prefix changes nothing."""
    wrapped = nn.Sequential(tiny_model)
    assert list(number_layers(wrapped).values()) == list(number_layers(tiny_model).values())


def test_layers_that_cannot_be_told_are_refused() -> None:
    """A decay that nothing heeds would be believed; without one, any module will do."""
    assert len(parameter_groups(nn.Linear(2, 2), 0.05)) == 2
    with pytest.raises(SpecError, match=r"Linear has no parameter named layers\.<stage>"):
        parameter_groups(nn.Linear(2, 2), 0.05, 0.9)


# --- augmentation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """Every column another brightness, so that a crop and a flip can be seen."""
    return np.broadcast_to(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (40, 60, 3)).copy()


def test_crops_depend_on_the_generator_alone(picture: NDArray[np.uint8]) -> None:
    """The same seed is the same crop, another seed another."""
    crops = [random_crop_flip(picture, 16, scale=0.4, generator=generator(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])
    assert (crops[0].shape, crops[0].dtype) == ((16, 16, 3), np.uint8)


def test_crops_keep_at_least_the_share_they_say(picture: NDArray[np.uint8]) -> None:
    """And flip half of the time."""
    spans, flips = [], 0
    for seed in range(200):
        crop = random_crop_flip(picture, 32, scale=0.25, generator=generator(seed)).astype(int)
        flips += int(crop[0, 0, 0] > crop[0, -1, 0])
        spans.append(abs(crop[0, -1, 0] - crop[0, 0, 0]) / 255)
    # A crop of a quarter of the area, 4:3 taller than the picture, is at least sqrt(0.25 * 3/4) = 0.43 of its width.
    assert min(spans) > 0.40
    assert max(spans) > 0.95
    assert 70 < flips < 130


def test_whole_pictures_are_only_squashed(picture: NDArray[np.uint8]) -> None:
    """A scale of 1 leaves almost the whole picture."""
    crop = random_crop_flip(picture, 40, scale=1.0, generator=generator()).astype(int)
    assert abs(int(crop[0, -1, 0]) - int(crop[0, 0, 0])) > 200


def test_jitter_stays_in_range_and_off_is_off() -> None:
    """Images stay in [0, 1]; strength 0 changes nothing."""
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = jitter_colors(images.clone(), 0.9, generator())

    assert jitter_colors(images, 0, generator()) is images
    assert not torch.equal(changed, images)
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert torch.equal(changed, jitter_colors(images.clone(), 0.9, generator()))


def test_erased_boxes_have_the_size_they_say() -> None:
    """One box an image, at most a quarter of the area; probability 0 erases nothing."""
    images = torch.ones(64, 3, 32, 32)
    erased = erase_boxes(images.clone(), 0.999, generator())
    shares = (erased == 0).float().mean(dim=(1, 2, 3))

    assert torch.equal(erase_boxes(images.clone(), 0.0, generator()), images)
    assert 0 < float(shares[shares > 0].min())
    assert float(shares.max()) <= 0.30
    assert int((shares > 0).sum()) > 60


def targets(count: int, classes: int = 4) -> Tensor:
    return torch.eye(classes)[torch.arange(count) % classes]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_targets_say_how_much_of_each_image_is_there(kind: str) -> None:
    """Image i is filled with the value i: what is seen must be what the target says."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    shares = {"mixup": 0.0, "cutmix": 0.0} | {kind: 0.999}
    for seed in range(20):
        mixed, found = mix(images, targets(4), generator=generator(seed), **shares)
        seen = mixed.mean(dim=(1, 2, 3))
        assert torch.allclose(found.sum(dim=1), torch.ones(4))
        assert torch.allclose(found @ torch.arange(4.0), seen, atol=1e-4)


def test_mixing_can_be_off() -> None:
    """Both probabilities zero: the very same tensors."""
    images, wanted = torch.rand(4, 3, 8, 8), targets(4)
    assert mix(images, wanted, mixup=0, cutmix=0, generator=generator()) == (images, wanted)


# --- images ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(photos: Path) -> TrainingImages:
    """The 21 photographs of 7 classes."""
    files = sorted(photos.glob("*/*.png"))
    return TrainingImages(files, [index // 3 for index in range(len(files))], 40)


def test_batches_depend_on_seed_and_epoch_alone(images: TrainingImages) -> None:
    """Asked for twice they are the same; another epoch or seed is another order."""
    recipe = Preprocessing.published(32)

    def first(seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        return next(images.batches(TrainSpec(phases=PHASES, batch_size=8, seed=seed), epoch, recipe, 7))

    assert all(torch.equal(one, other) for one, other in zip(first(0, 3), first(0, 3), strict=True))
    assert not torch.equal(first(0, 3)[0], first(0, 4)[0])
    assert not torch.equal(first(0, 3)[0], first(1, 3)[0])


@pytest.mark.parametrize("mixing", [{"mixup": 0.5, "cutmix": 0.4}, {"mixup": 0.0, "cutmix": 0.0}], ids=["mixed", "plain"])
def test_rows_of_a_batch_are_what_they_are_in_the_whole(images: TrainingImages, mixing: dict[str, float]) -> None:
    """Any rows, from any step on: what one process of several, or a resumed run, sees."""
    spec = TrainSpec(phases=PHASES, batch_size=6, erase=0.5, **mixing)
    recipe = Preprocessing.published(32)
    whole = list(images.batches(spec, 1, recipe, 7))
    for rows in (range(2), range(2, 6)):
        part = list(images.batches(spec, 1, recipe, 7, first=1, rows=rows))
        assert len(part) == len(whole) - 1
        for (pixels, wanted), (all_pixels, all_wanted) in zip(part, whole[1:], strict=True):
            assert torch.equal(pixels, all_pixels[rows.start : rows.stop])
            assert torch.equal(wanted, all_wanted[rows.start : rows.stop])


def test_an_epoch_is_whole_batches_of_different_images(images: TrainingImages) -> None:
    """21 images make two batches of 8; targets are smoothed probabilities."""
    spec = TrainSpec(phases=PHASES, batch_size=8, mixup=0, cutmix=0, label_smoothing=0.1)
    batches = list(images.batches(spec, 0, Preprocessing.published(32), 7))

    assert [tuple(batch.shape) for batch, _ in batches] == [(8, 3, 32, 32)] * 2
    for _, wanted in batches:
        assert torch.allclose(wanted.sum(dim=1), torch.ones(8))
        assert float(wanted.max()) == pytest.approx(0.9 + 0.1 / 7)


def test_large_images_are_kept_small(photos: Path, tmp_path: Path) -> None:
    """The short side is bounded, the shape stays; small ones are left alone."""
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    kept = TrainingImages([tmp_path / "large.png", photos / "cat/0.png"], [0, 1], 100).images
    assert [image.shape for image in kept] == [(100, 150, 3), (40, 48, 3)]


def test_a_damaged_training_image_is_named(photos: Path, tmp_path: Path) -> None:
    """Training on a part of the data unnoticed would be worse."""
    (tmp_path / "torn.png").write_bytes((photos / "cat/0.png").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"torn\.png"):
        TrainingImages([tmp_path / "torn.png"], [0], 40)


def test_the_hash_of_training_images_follows_pixels_and_classes(photos: Path) -> None:
    """Names do not matter, what is learned from does."""
    files = sorted(photos.glob("*/*.png"))[:4]
    hashes = [
        TrainingImages(chosen, classes, 40).sha256
        for chosen, classes in (
            (files, [0, 0, 1, 1]),
            (files, [0, 0, 1, 1]),
            (files, [0, 0, 1, 0]),
            (files[::-1], [0, 0, 1, 1]),
        )
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_the_split_follows_content_not_names(tmp_path: Path) -> None:
    """A renamed or moved file stays on its side, in about the asked share, and a smaller share is part of a larger."""
    files = []
    for index in range(400):
        files.append(tmp_path / f"{index}.bin")
        files[-1].write_bytes(str(index).encode())
    sides = split_tuning(files, 0.2)
    moved = tmp_path / "moved.bin"
    files[7].rename(moved)

    assert 50 < sum(sides) < 110
    assert split_tuning([moved], 0.2) == [sides[7]]
    assert not any(split_tuning([moved, *files[8:]], 0.0))
    smaller = split_tuning(files[8:], 0.1)
    assert all(large for small, large in zip(smaller, sides[8:], strict=True) if small)
