"""Other preprocessings against the artifact's own, on the reference alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SpecError
from swinv2_deploy.verify import VerifySpec, verify
from swinv2_deploy.verify.other_pixels import other_preprocessings, preprocessing_drift

OWN = Preprocessing(size=(32, 32), resize_shortest=36)
CLASSES = ("dark", "light")


class MeanColor:
    """Two logits: the mean of the red channel, and its opposite."""

    name = "mean"

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        red = images[:, 0].mean(axis=(1, 2))
        return {"logits": np.stack([-red, red], axis=1)}


def photo(size: tuple[int, int] = (90, 120)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


def drift(photographs: list[Any], own: Preprocessing = OWN) -> dict[str, Any]:
    return {row.name: row for row in preprocessing_drift(MeanColor(), own, photographs, CLASSES, 2)}  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [OWN, replace(OWN, resize_shortest=None), replace(OWN, interpolation="bilinear")])
def test_every_other_makes_pixels_of_the_size(own: Preprocessing) -> None:
    """Each of them other ones than the artifact's."""
    others = other_preprocessings(own)

    assert len(others) == 5
    for name, other in others.items():
        pixels = other(photo())
        assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.float32), name
        assert np.abs(pixels - own(photo())).max() > 0.05, name


def test_without_antialiasing_is_what_opencv_computes() -> None:
    """A pixel is the mean of its four neighbors at its own point: on a squashed image, by hand."""
    own = Preprocessing(size=(8, 8), resize_shortest=None, mean=(0, 0, 0), std=(1, 1, 1))
    image = photo((64, 64))
    pixels = 255 * other_preprocessings(own)["bilinear without antialiasing"](image)

    # Point 0 of 8 lies at 3.5 of 64: halfway between rows, and columns, 3 and 4.
    by_hand = image[3:5, 3:5].astype(float).mean(axis=(0, 1))
    assert pixels[:, 0, 0] == pytest.approx(by_hand, abs=0.51)


def test_a_smooth_photograph_hardly_minds_and_colors_do() -> None:
    """Gray levels apart are of the pixels before mean and std."""
    ramp = np.broadcast_to(np.linspace(0, 255, 200).astype(np.uint8)[:, None, None], (200, 200, 3)).copy()
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    rows = drift([("ramp", None, ramp)])
    colors = drift([("red", 1, red)])

    assert rows["bilinear for bicubic"].gray_levels < 1
    assert rows["bilinear for bicubic"].cosine > 0.999
    assert colors["BGR for RGB"].gray_levels == pytest.approx(2 * 255 / 3)
    assert colors["bilinear for bicubic"].gray_levels == 0
    assert colors["BGR for RGB"].classes.agreement == 0
    assert colors["BGR for RGB"].classes.drop == 100


def test_no_photograph_no_row() -> None:
    assert drift([]) == {}


def test_the_report_has_them(tiny_artifact: ModelArtifact, photos: Path) -> None:
    """On so many photographs as were asked for, evenly over the classes; none unless asked."""
    spec = VerifySpec(data=photos, threads=1, latency_seconds=0.0, layer_images=0, sizes=((32, 32),), batch_sizes=(1,))
    rows = verify(tiny_artifact, replace(spec, preprocessing_images=7)).preprocessing

    assert [row.name for row in rows] == list(other_preprocessings(tiny_artifact.preprocessing))
    assert [row.classes.labeled for row in rows if row.classes] == [7] * 5
    assert verify(tiny_artifact, spec).preprocessing == ()
    with pytest.raises(SpecError, match="preprocessing_images is -1"):
        replace(spec, preprocessing_images=-1)


def test_a_damaged_photograph_is_left_out(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(photo()).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    spec = VerifySpec(
        data=tmp_path,
        labels="ignore",
        threads=1,
        latency_seconds=0.0,
        layer_images=0,
        sizes=((32, 32),),
        batch_sizes=(1,),
        preprocessing_images=2,
    )
    report = verify(tiny_artifact, spec)

    assert len(report.preprocessing) == 5
    assert len(report.skipped) == 1
