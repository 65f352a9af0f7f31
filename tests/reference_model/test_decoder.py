"""Models that return an image: masked image modeling equals SimMIM and transformers where those run, and a definition elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_model.checkpoint import CheckpointError, load_model, load_weights, model_from_weights
from reference_model.checkpoint_formats import huggingface_from_native, native_from_any
from reference_model.config import ConfigError, SwinV2Config, make_config
from reference_model.decoder import MaskError, masked_l1_loss
from reference_model.masking import patch_count, random_mask
from reference_model.model import SwinV2, SwinV2MaskedImageModel, build_model, initialize
from reference_model.variants import VARIANTS

Golden = Callable[[str], tuple[SwinV2Config, dict[str, Tensor], dict[str, Tensor]]]
Randomized = Callable[..., SwinV2]
TOLERANCE = 5e-6
"""Relative to the largest value, see test_parity."""


@pytest.fixture
def masked(tiny_config: SwinV2Config) -> SwinV2Config:
    """Masked image model of two stages: 32 px, patches of 2, one token of 4 px at the end."""
    return replace(tiny_config, task="masked_image_modeling", num_classes=0)


def masks(images: Tensor, patch_size: int) -> Tensor:
    """Another mask (B, P) for every image."""
    height, width = images.shape[-2:]
    return torch.stack([torch.from_numpy(random_mask(height, width, patch_size, seed)) for seed in range(len(images))])


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def published_decoding(theirs: Any, images: Tensor, mask: Tensor | None, stride: int) -> Tensor:
    """transformers' encoder and decoder, with the one thing between them that it does only for squares: the map's shape."""
    height, width = images.shape[-2:]
    tokens = theirs.swinv2(images, bool_masked_pos=mask).last_hidden_state
    return theirs.decoder(tokens.transpose(1, 2).unflatten(2, (-(-height // stride), -(-width // stride))))[
        :, :, :height, :width
    ]


# --- the published implementations ------------------------------------------------------------------------------------


def test_equals_simmim_with_a_mask(golden: Golden) -> None:
    """Microsoft's own pretraining code, another mask for each image. Measured: 2e-6 absolute."""
    config, state, outputs = golden("simmim")
    native = native_from_any(state)
    model = build_model(replace(config, task="masked_image_modeling"))
    model.load_state_dict(native.state_dict | native.extras, strict=True)
    with torch.no_grad():
        found = model.eval()(outputs["32x32.input"], outputs["32x32.mask"].flatten(1))

    close(found, outputs["32x32.reconstruction"])


def test_equals_transformers_on_squares(
    masked: SwinV2Config, randomized: Randomized, published: Callable[..., Any], images_of: Callable[..., Tensor]
) -> None:
    """Hidden patches, none hidden, and everything hidden."""
    model, images = randomized(masked), images_of(32, 32, batch=2)
    theirs = published(model)
    mask = masks(images, 2)
    for hidden in (mask, torch.zeros_like(mask), torch.ones_like(mask), None):
        with torch.no_grad():
            close(model(images, hidden), theirs(images, bool_masked_pos=hidden).reconstruction)


def test_equals_transformers_at_published_widths(
    randomized: Randomized, published: Callable[..., Any], images_of: Callable[..., Tensor]
) -> None:
    """The small SimMIM model at 192 px and its stride of 32, fewer blocks."""
    full = VARIANTS["simmim-small-pretrain-patch4-window12-192"].config
    config = make_config(
        embed_dim=full.embed_dim,
        depths=(1, 2, 1, 1),
        num_heads=[heads[0] for heads in full.num_heads],
        window_size=full.window_size,
        image_size=192,
        task="masked_image_modeling",
    )
    assert config.encoder_stride == 32
    model, images = randomized(config), images_of(192, 192)
    mask = masks(images, 4)
    with torch.no_grad():
        close(model(images, mask), published(model)(images, bool_masked_pos=mask).reconstruction)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (32, 64), (30, 30), (31, 47)])
def test_equals_transformers_encoder_and_decoder_on_other_sizes(
    height: int,
    width: int,
    masked: SwinV2Config,
    randomized: Randomized,
    published: Callable[..., Any],
    images_of: Callable[..., Tensor],
) -> None:
    """Rectangles and sizes that end within a token, where its windows are right; what lies beyond the image is cut off."""
    model, images = randomized(masked), images_of(height, width, batch=2)
    theirs, mask = published(model, (height, width)), masks(images, 2)
    with torch.no_grad():
        close(model(images, mask), published_decoding(theirs, images, mask, 4))


def test_rectangle_of_whole_windows_is_that_part_of_transformers_square(
    masked: SwinV2Config, randomized: Randomized, published: Callable[..., Any], images_of: Callable[..., Tensor]
) -> None:
    """Without shifted blocks no window sees another one, so a rectangle of windows is a part of the square that holds it."""
    config = replace(masked, depths=(1, 1), num_heads=((2,), (4,)), mlp_hidden=((64,), (128,)), image_size=(48, 48))
    model, square = randomized(config), images_of(48, 48, batch=2)
    mask = masks(square, 2)
    with torch.no_grad():
        expected = published(model)(square, bool_masked_pos=mask).reconstruction
        part = mask.view(2, 24, 24)[:, :8, :16].reshape(2, -1)
        close(model(square[:, :, :16, :32], part), expected[:, :, :16, :32])


def test_loss_is_that_of_transformers(
    masked: SwinV2Config, randomized: Randomized, published: Callable[..., Any], images_of: Callable[..., Tensor]
) -> None:
    model, images = randomized(masked), images_of(32, 32, batch=2)
    mask = masks(images, 2)
    with torch.no_grad():
        expected = published(model)(images, bool_masked_pos=mask).loss
        found = masked_l1_loss(images, model(images, mask), mask, 2)

    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# --- what holds at any size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 50), (5, 3), (1, 1)])
def test_hidden_pixels_have_no_influence(
    height: int, width: int, masked: SwinV2Config, randomized: Randomized, images_of: Callable[..., Tensor]
) -> None:
    """Whatever stands in hidden patches, the image is the same to the bit; shown pixels do matter."""
    model, images = randomized(masked), images_of(height, width, batch=2)
    mask = masks(images, 2)
    pixels = mask.view(2, 1, -(-height // 2), -(-width // 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    pixels = pixels[:, :, :height, :width]
    other = torch.where(pixels, torch.full_like(images, 9.0), images)
    with torch.no_grad():
        found = model(images, mask)
        assert found.shape == images.shape
        assert torch.equal(found, model(other, mask))
        if not mask.all():
            assert not torch.equal(found, model(torch.where(pixels, images, 9.0 + images), mask))


def test_no_mask_is_a_mask_that_hides_nothing_over_the_plain_encoder(
    masked: SwinV2Config, randomized: Randomized, images_of: Callable[..., Tensor]
) -> None:
    model, images = randomized(masked), images_of(27, 44)
    encoder = build_model(replace(masked, task="encoder")).eval()
    encoder.load_state_dict({name: value for name, value in model.state_dict().items() if name in encoder.state_dict()})
    with torch.no_grad():
        found = model(images)
        assert torch.equal(found, model(images, torch.zeros(1, patch_count(27, 44, 2), dtype=torch.bool)))
        assert torch.equal(found, model.decoder(encoder(images).last_hidden_state, (27, 44)))


@pytest.mark.parametrize(
    ("task", "upscale"), [("masked_image_modeling", 1), ("image_reconstruction", 2), ("image_reconstruction", 4)]
)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (13, 30)])
def test_pixel_is_a_product_of_the_token_over_it(
    task: Any,
    upscale: int,
    height: int,
    width: int,
    masked: SwinV2Config,
    randomized: Randomized,
    images_of: Callable[..., Tensor],
) -> None:
    """The definition, pixel by pixel: token under the pixel times the weights for its place inside the token's square."""
    model, images = randomized(replace(masked, task=task, upscale=upscale)), images_of(height, width)
    side = 4 * upscale
    with torch.no_grad():
        found = model(images)[0]
        tokens = model.encode(images).last_hidden_state[0].view(-(-height // 4), -(-width // 4), -1)
        weight = model.state_dict()["decoder.0.weight"].view(3, side, side, -1)
        bias = model.state_dict()["decoder.0.bias"].view(3, side, side)
    assert found.shape == (3, upscale * height, upscale * width)
    for row, column in [(0, 0), (1, 2), (side, 3), (upscale * height - 1, upscale * width - 1)]:
        inside = (slice(None), row % side, column % side)
        expected = weight[inside] @ tokens[row // side, column // side] + bias[inside]
        close(found[:, row, column], expected)


def test_every_parameter_gets_a_gradient(
    masked: SwinV2Config, randomized: Randomized, images_of: Callable[..., Tensor]
) -> None:
    model, images = randomized(masked), images_of(30, 20, batch=2)
    mask = masks(images, 2)

    masked_l1_loss(images, model(images, mask), mask, 2).backward()

    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(2, 256), r"torch\.float32 of shape \(2, 256\); expected torch\.bool of shape \(2, 256\)"),
        (torch.zeros(1, 256, dtype=torch.bool), r"of shape \(1, 256\); expected .* \(2, 256\): 16 rows of 16 patches"),
        (torch.zeros(2, 255, dtype=torch.bool), r"of shape \(2, 255\); expected"),
        (torch.zeros(2, 16, 16, dtype=torch.bool), r"of shape \(2, 16, 16\); expected"),
    ],
)
def test_mask_that_does_not_fit_is_refused(mask: Tensor, words: str, masked: SwinV2Config, randomized: Randomized) -> None:
    with pytest.raises(MaskError, match=words):
        randomized(masked)(torch.zeros(2, 3, 32, 32), mask)


def test_a_seed_gives_every_task_the_same_encoder(masked: SwinV2Config) -> None:
    """And the published start: a mask token of small numbers."""
    configs = [masked, replace(masked, task="encoder"), replace(masked, task="image_reconstruction", upscale=2)]
    models = [initialize(build_model(config), torch.Generator().manual_seed(0)) for config in configs]

    for name, value in models[1].state_dict().items():
        assert all(torch.equal(value, model.state_dict()[name]) for model in models), name
    assert isinstance(models[0], SwinV2MaskedImageModel)
    assert 0.01 < float(models[0].mask_token.detach().std()) < 0.03


# --- configs and checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "upscale", "words"),
    [
        ("image_reconstruction", 1, r"upscale is 1; a model for image_reconstruction has one of \(2, 4\)"),
        ("image_reconstruction", 3, "upscale is 3"),
        ("masked_image_modeling", 2, r"upscale is 2; a model for masked_image_modeling has one of \(1,\)"),
        ("encoder", 4, "upscale is 4"),
    ],
)
def test_upscale_belongs_to_image_reconstruction(task: Any, upscale: int, words: str, masked: SwinV2Config) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(masked, task=task, upscale=upscale)


@pytest.mark.parametrize("layout", ["native", "simmim", "huggingface"])
def test_decoder_loads_from_every_layout(
    layout: str, masked: SwinV2Config, randomized: Randomized, images_of: Callable[..., Tensor], tmp_path: Path
) -> None:
    model, images = randomized(masked), images_of(32, 32)
    state = dict(model.state_dict())
    if layout == "simmim":
        state = {name if "decoder" in name else f"encoder.{name}": value for name, value in state.items()}
        state = {name.replace("cpb_mlp", "rpe_mlp"): value for name, value in state.items()}
    elif layout == "huggingface":
        state = huggingface_from_native(state, "swinv2.")
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights")
    loaded = load_model(tmp_path / "weights", config=masked)

    assert load_weights(tmp_path / "weights").format == layout
    with torch.no_grad():
        assert torch.equal(loaded(images, masks(images, 2)), model(images, masks(images, 2)))


def test_published_simmim_name_brings_the_decoder_where_the_weights_have_one(
    masked: SwinV2Config, randomized: Randomized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is asked for comes first."""
    variant = replace(VARIANTS["simmim-small-pretrain-patch4-window12-192"], config=replace(masked, task="encoder"))
    monkeypatch.setitem(VARIANTS, "mini", variant)
    state = randomized(masked).state_dict()
    save_file(dict(state), tmp_path / "whole")
    save_file({name: value for name, value in state.items() if "decoder" not in name}, tmp_path / "bare")

    assert load_model(tmp_path / "whole", variant="mini").config.task == "masked_image_modeling"
    assert load_model(tmp_path / "whole", variant="mini", task="encoder").config.task == "encoder"
    assert load_model(tmp_path / "bare", variant="mini").config.task == "encoder"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("decoder.0.weight", r"holds no decoder \(decoder\.0\.weight is missing\); load it with task 'encoder'"),
        ("decoder.0.bias", r"1 missing: decoder\.0\.bias"),
        ("mask_token", "1 missing: mask_token"),
    ],
)
def test_incomplete_decoder_is_refused(
    missing: str, words: str, masked: SwinV2Config, randomized: Randomized, tmp_path: Path
) -> None:
    state = dict(randomized(masked).state_dict())
    del state[missing]
    save_file(state, tmp_path / "weights")

    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "weights", config=masked)


@pytest.mark.parametrize("upscale", [2, 4])
def test_image_reconstruction_reads_its_upscale_from_the_weights(
    upscale: int, masked: SwinV2Config, randomized: Randomized, tmp_path: Path
) -> None:
    config = replace(masked, task="image_reconstruction", upscale=upscale)
    save_file(dict(randomized(config).state_dict()), tmp_path / "weights")
    weights = load_weights(tmp_path / "weights")
    encoder = replace(config, task="encoder", upscale=1)

    assert model_from_weights(weights, config=encoder, task="image_reconstruction").config == config
    assert model_from_weights(weights, config=config, task="encoder").config == encoder
    with pytest.raises(CheckpointError, match=r"of another shape: decoder\.0\.bias is \(\d+,\) instead of \(48,\), decoder"):
        model_from_weights(weights, config=masked)


def test_decoder_of_masked_image_modeling_is_none_of_image_reconstruction(
    masked: SwinV2Config, randomized: Randomized, tmp_path: Path
) -> None:
    save_file(dict(randomized(masked).state_dict()), tmp_path / "weights")

    with pytest.raises(CheckpointError, match=r"decoder with 48 outputs; expected one of \{192: 2, 768: 4\}"):
        load_model(tmp_path / "weights", config=masked, task="image_reconstruction")


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "patch"), [(192, 192, 4), (224, 160, 4), (250, 131, 4), (96, 96, 3), (64, 64, 40)])
def test_random_mask_hides_six_tenths_of_whole_squares(height: int, width: int, patch: int) -> None:
    """As SimMIM: squares of 32 px, or of one patch where that is larger; 60 % of them, rounded up."""
    mask = random_mask(height, width, patch, seed=0)
    rows, columns = -(-height // patch), -(-width // patch)
    step = max(1, 32 // patch)
    grid = mask.reshape(rows, columns)
    squares = [grid[top : top + step, left : left + step] for top in range(0, rows, step) for left in range(0, columns, step)]

    assert mask.shape == (patch_count(height, width, patch),)
    assert all(square.all() or not square.any() for square in squares)
    assert sum(square.all() for square in squares) == int(np.ceil(0.6 * len(squares)))


def test_random_mask_is_its_seed() -> None:
    assert np.array_equal(random_mask(192, 96, 4, 1), random_mask(192, 96, 4, 1))
    assert not np.array_equal(random_mask(192, 96, 4, 1), random_mask(192, 96, 4, 2))


@pytest.mark.parametrize("side", [8, 16, 32, 40])
def test_random_mask_of_a_small_image_leaves_a_part_visible(side: int) -> None:
    mask = random_mask(side, side, 4, 0)

    assert mask.any()
    assert not mask.all()
