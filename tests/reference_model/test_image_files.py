"""Image files of every kind become (H, W, 3) uint8 RGB, or an ImageError."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reference_model.preprocessing import ImageError, read_image


def random_image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = random_image(8, 12)
    for orientation, expected in {
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        6: np.rot90(image, -1),
        8: np.rot90(image),
    }.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(image).save(path, exif=exif)
        np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(random_image(9, 7)).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture.save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((9, 7, 3), np.dtype(np.uint8))
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").reshape(-1, 3).tolist() == [[10, 20, 30]] * 6


def test_a_palette_with_transparency_keeps_its_colors(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    assert read_image(tmp_path / "palette.png").tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_images_with_nan_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, np.nan, 1.0]], np.float32)).save(tmp_path / "float.tif")
    assert read_image(tmp_path / "float.tif")[0, :, 0].tolist() == [0, 128, 0, 255]


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]


def write_png_of_declared_size(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [8_001, 9_500, 14_000])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    write_png_of_declared_size(tmp_path / "bomb.png", side, side)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_files_that_are_no_whole_image_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(random_image(64, 64)).save(good)
    contents = {"truncated.jpg": good.read_bytes()[:-600], "empty.jpg": b"", "text.jpg": b"not an image\n" * 20}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    for name in [*contents, "folder.jpg", "missing.jpg"]:
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".gif", ".bmp"])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {} if suffix in (".gif", ".bmp") else {"exif": exif}
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(random_image(20, 30)).save(path, **options)
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(good)
        for position in random.integers(0, min(len(good), 500), 3):
            damaged[position] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            image = read_image(path)
        except ImageError:
            continue
        assert image.ndim == 3
        assert image.shape[2] == 3
