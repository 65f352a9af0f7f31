"""Write the golden files beside this script: weights, inputs and outputs of the published implementations, at toy sizes.

The tests only read the files; neither timm nor Microsoft's code is a dependency of this project. To write them again:

    python -m venv upstream && upstream/bin/pip install torch torchvision timm safetensors
    git clone https://github.com/microsoft/Swin-Transformer
    upstream/bin/python tests/golden/make_goldens.py --microsoft Swin-Transformer

Every weight is random, the post-norm gains too: as published they start at zero, and then every block is the identity and any
two implementations agree. The values depend on the version of PyTorch in the last bits, so a rewrite changes the files.

Content of a file: ``state.<name>`` as the implementation saves it; for every input size ``<height>x<width>.input``, ``.logits``
(of SimMIM ``.encoded``, and ``.mask`` with ``.reconstruction``), ``.stage1`` and ``.stage2`` (feature maps before patch merging,
(B, C, H, W)); in the metadata ``config`` and ``source``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
ARCHITECTURE: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
CLASSES = 5


def randomize(model: nn.Module, seed: int) -> None:
    """Give every parameter values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("logit_scale"):
                parameter.copy_(2.5 + 1.5 * noise)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)


def make_timm() -> None:
    """timm: a divisible square, a rectangle whose short side is one window, and a padded square, with the same weights."""
    timm = importlib.import_module("timm")
    swin = importlib.import_module("timm.models.swin_transformer_v2")
    tensors: dict[str, Tensor] = {}
    for batch, height, width in ((2, 32, 32), (1, 16, 64), (1, 40, 40)):
        # Built anew for every size: a timm model keeps the windows of the size it was built for.
        model = swin.SwinTransformerV2(img_size=(height, width), num_classes=CLASSES, **ARCHITECTURE).eval()
        randomize(model, seed=1)
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            features = model.forward_intermediates(images, intermediates_only=True)
            outputs = {"input": images, "logits": model(images)} | {f"stage{i + 1}": map_ for i, map_ in enumerate(features)}
        tensors |= {f"{height}x{width}.{name}": tensor.contiguous() for name, tensor in outputs.items()}
        tensors |= {f"state.{name}": tensor for name, tensor in model.state_dict().items()}
    write("timm", tensors, {"pretrained_window_sizes": (0, 0)}, f"timm {timm.__version__}")


def make_microsoft(models: ModuleType) -> None:
    """Microsoft's classifier, with the derived buffers that its files store and a pretrained window unlike the one in use."""
    swin = importlib.import_module(f"{models.__name__}.swin_transformer_v2")
    pretrained = (3, 2)
    model = swin.SwinTransformerV2(img_size=64, num_classes=CLASSES, pretrained_window_sizes=pretrained, **ARCHITECTURE).eval()
    randomize(model, seed=2)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(64))
    features, logits = microsoft_features(model, lambda: model(images))
    outputs = {"input": images, "logits": logits} | features
    tensors = {f"64x64.{name}": tensor.contiguous() for name, tensor in outputs.items()}
    tensors |= {f"state.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    write("microsoft", tensors, {"pretrained_window_sizes": pretrained}, "microsoft/Swin-Transformer f82860b")


def make_simmim(models: ModuleType) -> None:
    """SimMIM pretraining, under the names of its older files (``rpe_mlp``).

    Features and tokens are those of whole images, the reconstruction that of images with a mask of its own each.
    """
    simmim = importlib.import_module(f"{models.__name__}.simmim")
    encoder = simmim.SwinTransformerV2ForSimMIM(img_size=32, num_classes=0, **ARCHITECTURE)
    model = simmim.SimMIM(config=None, encoder=encoder, encoder_stride=8, in_chans=3, patch_size=4).eval()
    randomize(model, seed=3)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(32))
    features, tokens = microsoft_features(encoder, lambda: encoder(images, torch.zeros(2, 8, 8)))
    outputs = {"input": images, "encoded": tokens} | features
    outputs["mask"] = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(33)) < 0.6
    with torch.no_grad():
        outputs["reconstruction"] = model.decoder(encoder(images, outputs["mask"]))
    tensors = {f"32x32.{name}": tensor.contiguous() for name, tensor in outputs.items()}
    tensors |= {f"state.{k.replace('cpb_mlp', 'rpe_mlp')}": v.contiguous() for k, v in model.state_dict().items()}
    write("simmim", tensors, {"pretrained_window_sizes": (0, 0)}, "microsoft/Swin-Transformer f82860b, SimMIM names")


def microsoft_features(model: Any, run: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Output of the last block of every stage as (B, C, H, W), and what ``run`` returns."""
    features: dict[str, Tensor] = {}

    def keep(name: str, resolution: tuple[int, int]) -> Any:
        def hook(_: nn.Module, __: Any, tokens: Tensor) -> None:
            features[name] = tokens.transpose(1, 2).reshape(len(tokens), -1, *resolution)

        return hook

    for stage, layer in enumerate(model.layers):
        layer.blocks[-1].register_forward_hook(keep(f"stage{stage + 1}", layer.input_resolution))
    with torch.no_grad():
        return features, run()


def write(name: str, tensors: dict[str, Tensor], extra: dict[str, Any], source: str) -> None:
    """Write one golden file."""
    metadata = {"config": json.dumps(ARCHITECTURE | extra), "source": f"{source}, torch {torch.__version__}"}
    save_file(tensors, HERE / f"{name}.safetensors", metadata=metadata)


def import_models(repository: Path) -> ModuleType:
    """Microsoft's ``models`` folder as a package, without its ``__init__`` and what that needs."""
    package = ModuleType("upstream_models")
    package.__path__ = [str(repository / "models")]
    sys.modules[package.__name__] = package
    return package


def main() -> None:
    """Write all golden files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--microsoft", type=Path, required=True, help="clone of microsoft/Swin-Transformer")
    warnings.simplefilter("ignore")
    models = import_models(parser.parse_args().microsoft)
    make_timm()
    make_microsoft(models)
    make_simmim(models)


if __name__ == "__main__":
    main()
