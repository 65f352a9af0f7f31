"""The small photographs that come with the package: enough to calibrate and verify with when there are no others."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from calibration.errors import CalibrationError

SampleSet = Literal["calibrate", "verify"]
SAMPLE_SETS: tuple[SampleSet, ...] = ("calibrate", "verify")


def sample_folder(name: SampleSet) -> Path:
    """Folder of bundled images in class folders; the two sets share no image.

    Raises:
        CalibrationError: On another name, or when the images are not installed as files.
    """
    if name not in SAMPLE_SETS:
        raise CalibrationError(f"There is no sample set {name!r}; expected one of {list(SAMPLE_SETS)}.")
    folder = Path(str(files("calibration") / "sample_images" / name))
    if not folder.is_dir():
        raise CalibrationError(f"The sample images are missing at {folder}; reinstall the package as files, not as a zip.")
    return folder
