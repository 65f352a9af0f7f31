"""TensorRT 11: networks are always strongly typed, and what TensorRT 10 called weak typing is gone."""

from __future__ import annotations

from swinv2_deploy.runtime.tensorrt.tensorrt10 import TensorRt10


class TensorRt11(TensorRt10):
    """TensorRT 11."""

    def network_flags(self) -> int:
        """The same flag where it is still there, else none."""
        # The flag stayed for a while after it stopped to mean anything.
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)
