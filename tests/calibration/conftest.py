"""What the tests of calibration share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def denormals() -> None:
    """Compute with denormal numbers, which a session of ONNX Runtime before these tests may have turned off for this thread."""
    torch.set_flush_denormal(False)
