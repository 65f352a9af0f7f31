"""Models come back from their files bit for bit, in transformers' names where those can express them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import Lineage, ModelArtifact, WeightsOrigin, read_artifact, write_artifact, write_json
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.modeling import POLICIES, load_model, quantization_sites, write_model_files

Make = Callable[[SwinV2Config], SwinV2]
LINEAGE = Lineage(stage="test", spec={}, weights=WeightsOrigin(kind="file", source="x"))


def pruned(config: SwinV2Config) -> SwinV2Config:
    """Fewer heads in one block, a narrower MLP in another: transformers has no word for that."""
    return replace(config, num_heads=((2, 1), (4, 4)), mlp_hidden=((64, 40), (128, 128)))


def normless(config: SwinV2Config) -> SwinV2Config:
    return replace(config, removed_norms=((0, 1, "norm2"),))


CONFIGS: dict[str, Callable[[SwinV2Config], SwinV2Config]] = {
    "classifier": lambda config: config,
    "encoder": lambda config: replace(config, task="encoder", num_classes=0),
    "backbone": lambda config: replace(config, task="backbone", num_classes=0, out_features=("stem", "stage2")),
    "labels": lambda config: replace(config, labels=("a", "b", "c", "d", "e")),
    "masked": lambda config: replace(config, task="masked_image_modeling", num_classes=0),
    "larger": lambda config: replace(config, task="image_reconstruction", num_classes=0, upscale=4),
    "pruned": pruned,
    "normless": normless,
}


def write(model: SwinV2, path: Path) -> ModelArtifact:
    with write_artifact(path, LINEAGE) as folder:
        write_model_files(folder, model, Preprocessing.published(32))
    return read_artifact(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_models_come_back_bit_for_bit(name: str, tiny_config: SwinV2Config, make_model: Make, tmp_path: Path) -> None:
    """Config and outputs, whether transformers can express the model or not."""
    model = make_model(CONFIGS[name](tiny_config))
    artifact = write(model, tmp_path / "a")
    back = load_model(artifact)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = back(images), model(images)

    assert artifact.config == back.config == model.config
    assert not back.training
    pairs = zip(found.values(), expected.values(), strict=True) if isinstance(found, dict) else [(found, expected)]
    if name == "encoder":
        pairs = [(found.last_hidden_state, expected.last_hidden_state), (found.pooler_output, expected.pooler_output)]
    assert all(torch.equal(one, other) for one, other in pairs)


def test_files_carry_transformers_names_where_they_can(tiny_config: SwinV2Config, make_model: Make, tmp_path: Path) -> None:
    """``from_pretrained`` reads the first folder; the second says that it is ours."""
    common = write(make_model(tiny_config), tmp_path / "common")
    own = write(make_model(pruned(tiny_config)), tmp_path / "own")

    assert "swinv2.embeddings.patch_embeddings.projection.weight" in load_file(common.file("model.safetensors"))
    assert json.loads(common.file("config.json").read_text("utf-8"))["model_type"] == "swinv2"
    assert "patch_embed.proj.weight" in load_file(own.file("model.safetensors"))
    assert json.loads(own.file("config.json").read_text("utf-8"))["model_type"] == "swinv2-deploy"


def test_transformers_reads_the_folder(tiny_config: SwinV2Config, make_model: Make, tmp_path: Path) -> None:
    """With equal logits."""
    transformers = pytest.importorskip("transformers")
    model = make_model(tiny_config)
    write(model, tmp_path / "a")
    theirs = transformers.Swinv2ForImageClassification.from_pretrained(tmp_path / "a").eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(theirs(images).logits, model(images), atol=1e-5)


def test_weights_that_do_not_fit_the_config_are_refused(tiny_config: SwinV2Config, make_model: Make, tmp_path: Path) -> None:
    """Every hash is right, and still the two files belong to different models."""
    with write_artifact(tmp_path / "a", LINEAGE) as folder:
        write_model_files(folder, make_model(tiny_config), Preprocessing.published(32))
        write_json(folder / "config.json", {"swinv2_deploy": replace(tiny_config, num_classes=6).to_dict()})

    with pytest.raises(ArtifactError, match=r"The weights of .* do not load"):
        load_model(read_artifact(tmp_path / "a"))


def test_sites_are_in_the_order_they_run(tiny_model: SwinV2, tiny_config: SwinV2Config) -> None:
    """Every site is a linear layer of the model, and they run as listed."""
    sites = quantization_sites(tiny_config, "linear")
    ran: list[str] = []
    for name, module in tiny_model.named_modules():
        if name in sites:
            assert isinstance(module, torch.nn.Linear)
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        tiny_model(torch.zeros(1, 3, 32, 32))

    assert tuple(ran) == sites


def test_policies_choose_what_they_say(tiny_config: SwinV2Config) -> None:
    """``mlp`` is part of ``linear``; the head, the patch embedding and the position bias are never sites."""
    linear, mlp = quantization_sites(tiny_config, "linear"), quantization_sites(tiny_config, "mlp")

    assert set(POLICIES) == {"attention", "linear", "mlp"}
    assert mlp == tuple(site for site in linear if ".mlp." in site)
    assert len(linear) == 4 * 4 + 1
    assert linear[8] == "layers.0.downsample.reduction"
    assert not [site for site in linear if "head" in site or "patch_embed" in site or "cpb" in site]
