"""Which images are verified on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.errors import CalibrationError
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.verify.compare import verify
from swinv2_deploy.verify.inputs import choose_images
from swinv2_deploy.verify.spec import VerifySpec


@pytest.fixture
def own(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "own"))


def digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_batches_are_preprocessed_in_order(tiny_artifact: ModelArtifact, photos: Path) -> None:
    """Every image once, in the order of names, as the artifact's preprocessing makes it, with its label by name."""
    images = choose_images(tiny_artifact, VerifySpec(data=photos))
    batches = list(images.batches(tiny_artifact.preprocessing, 8))
    names = [name for batch in batches for name in batch.names]

    assert [8, 8, 5] == [len(batch.images) for batch in batches]
    assert names == sorted(names)
    assert len(names) == len(images) == 21
    expected = np.stack([tiny_artifact.preprocessing(read_image(photos / name)) for name in names])
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), expected)
    labels = [label for batch in batches for label in batch.labels if label is not None]
    assert [tiny_artifact.config.labels[label] for label in labels] == [name.split("/")[0] for name in names]


def test_a_limit_is_spread_over_the_classes(tiny_artifact: ModelArtifact, photos: Path) -> None:
    images = choose_images(tiny_artifact, VerifySpec(data=photos, limit=7))

    assert 7 == len({name.split("/")[0] for name in images.folder.names})


def test_labels_follow_the_name_not_the_order(tiny_artifact: ModelArtifact, own: Path) -> None:
    """With a class missing, the others keep their index."""
    shutil.rmtree(own / "cat")

    labels = choose_images(tiny_artifact, VerifySpec(data=own)).labels

    assert labels["cow/0.png"] == tiny_artifact.config.labels.index("cow")


def test_damaged_images_are_skipped_and_counted(tiny_artifact: ModelArtifact, own: Path) -> None:
    (own / "cow" / "1.png").write_bytes((own / "cow" / "1.png").read_bytes()[:60])
    (own / "yak" / "text.jpg").write_text("not an image", "utf-8")
    images = choose_images(tiny_artifact, VerifySpec(data=own))

    count = sum(len(batch.names) for batch in images.batches(tiny_artifact.preprocessing, 4))

    assert 20 == count
    assert ["cow/1.png", "yak/text.jpg"] == [skipped.image for skipped in images.skipped]
    assert "not an image" in images.skipped[1].reason


def test_nothing_but_damage_is_an_error(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")

    with pytest.raises(ArtifactError, match=r"None of the 1 images .* the first: .*intact"):
        verify(tiny_artifact, VerifySpec(data=tmp_path))


def test_an_empty_folder_is_an_error(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="holds no image"):
        choose_images(tiny_artifact, VerifySpec(data=tmp_path))


class TestLabels:
    """Accuracy is only told where folder and model use the same names."""

    @pytest.fixture
    def renamed(self, own: Path) -> Path:
        for folder in list(own.iterdir()):
            folder.rename(own / f"x-{folder.name}")
        return own

    def test_no_common_name_is_an_error_with_both_lists(self, tiny_artifact: ModelArtifact, renamed: Path) -> None:
        with pytest.raises(SpecError, match=r"Folders: x-cat, .*Labels: cat, .*--ignore-labels"):
            choose_images(tiny_artifact, VerifySpec(data=renamed))

    def test_auto_goes_on_with_agreement(self, tiny_artifact: ModelArtifact, renamed: Path) -> None:
        images = choose_images(tiny_artifact, VerifySpec(data=renamed, labels="auto"))

        assert {} == images.labels
        assert "accuracy is not" in images.notices[0]

    def test_ignore_says_nothing(self, tiny_artifact: ModelArtifact, photos: Path) -> None:
        images = choose_images(tiny_artifact, VerifySpec(data=photos, labels="ignore"))

        assert ({}, []) == (images.labels, images.notices)

    def test_some_common_names_leave_the_rest_out(self, tiny_artifact: ModelArtifact, own: Path) -> None:
        (own / "cat").rename(own / "lynx")
        images = choose_images(tiny_artifact, VerifySpec(data=own))

        assert 18 == len(images.labels)
        assert "no labels of the model: lynx" in images.notices[0]

    def test_images_without_folders_have_no_labels(self, tiny_artifact: ModelArtifact, photos: Path) -> None:
        images = choose_images(tiny_artifact, VerifySpec(data=photos / "cow"))

        assert "no labels (no class folders)" in images.notices[0]

    def test_a_model_without_names_has_no_labels(self, tiny_artifact: ModelArtifact, photos: Path) -> None:
        nameless = replace(tiny_artifact, config=replace(tiny_artifact.config, labels=()))

        assert "no label names" in choose_images(nameless, VerifySpec(data=photos)).notices[0]


class TestOverlap:
    """Images that the artifact has seen prove nothing."""

    @pytest.fixture
    def trained_on(self, tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact]) -> Callable[..., ModelArtifact]:
        """Function from names and hashes to an artifact trained on them."""

        def make(files: dict[str, str]) -> ModelArtifact:
            return changed(tiny_artifact, files={"training_manifest.json": {"files": files}})

        return make

    def test_seen_images_are_refused(self, trained_on: Callable[..., ModelArtifact], photos: Path) -> None:
        """They are recognized by content, whatever they are called."""
        seen = digests(photos, "cow/1.png", "owl/2.png")
        artifact = trained_on({"renamed.png": seen["cow/1.png"], "owl/2.png": seen["owl/2.png"]})

        with pytest.raises(ArtifactError, match=r"trained on 2 of the 21 images \(cow/1.png, owl/2.png\).*--exclude-overlap"):
            choose_images(artifact, VerifySpec(data=photos))

    def test_seen_images_are_left_out_on_demand(self, trained_on: Callable[..., ModelArtifact], photos: Path) -> None:
        images = choose_images(trained_on(digests(photos, "cow/1.png")), VerifySpec(data=photos, exclude_overlap=True))

        assert ("cow/1.png",) == images.excluded
        assert 20 == len(images)
        assert "cow/1.png" not in images.folder.names

    def test_only_seen_images_are_refused(self, trained_on: Callable[..., ModelArtifact], photos: Path) -> None:
        names = [f"cow/{index}.png" for index in range(3)]
        artifact = trained_on(digests(photos, *names))

        with pytest.raises(ArtifactError, match="on all 3 images"):
            choose_images(artifact, VerifySpec(data=photos / "cow", exclude_overlap=True))

    def test_calibration_images_count_as_seen(
        self, tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path, tmp_path: Path
    ) -> None:
        from calibration.dataset import Manifest
        from calibration.table import CalibrationTable, SiteRange

        table = CalibrationTable(
            calibrator="max",
            options={},
            sites={"a": SiteRange(amax=1.0, low=-1.0, high=1.0)},
            images=1,
            manifest=Manifest(digests(photos, "hen/0.png")),
            model_sha256="0" * 64,
            seed=0,
        )
        table.save(tmp_path / "table.json")
        import json

        content = json.loads((tmp_path / "table.json").read_text("utf-8"))
        artifact = changed(tiny_artifact, files={"calibration_table.json": content})

        with pytest.raises(ArtifactError, match=r"on 1 of the 21 images \(hen/0.png\)"):
            choose_images(artifact, VerifySpec(data=photos))

    @pytest.mark.parametrize("content", [[], {"files": {"a": "short"}}, {"files": None}, {}])
    def test_damaged_evidence_is_an_error(
        self, content: Any, tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path
    ) -> None:
        artifact = changed(tiny_artifact, files={"training_manifest.json": content})

        with pytest.raises(ArtifactError, match="does not say which images were used"):
            choose_images(artifact, VerifySpec(data=photos))
