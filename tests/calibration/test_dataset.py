"""The listing, the choice and the manifest depend on names and bytes, and on nothing else."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.dataset import ImageFolder, Manifest, overlap
from calibration.errors import CalibrationError

TREE = ["coat/a.jpg", "coat/b.PNG", "coat/deep/c.webp", "hat/d.jpeg", "hat/e.TIF", "shoe/f.bmp"]


def make_tree(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_images_are_found_in_class_folders_whatever_their_case(tmp_path: Path) -> None:
    folder = ImageFolder.open(make_tree(tmp_path, [*TREE, "hat/notes.txt", "README.md"]))
    assert list(folder.names) == TREE
    assert folder.classes == ("coat", "hat", "shoe")
    assert folder.labels == {name: ["coat", "hat", "shoe"].index(name.split("/")[0]) for name in TREE}
    assert folder.paths[0] == tmp_path / "coat" / "a.jpg"
    assert len(folder) == 6


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    folder = ImageFolder.open(make_tree(tmp_path, ["b.jpg", "a.jpg"]))
    assert (folder.names, folder.classes, folder.labels) == (("a.jpg", "b.jpg"), (), {})


def test_one_image_beside_the_class_folders_takes_the_labels_from_all(tmp_path: Path) -> None:
    assert ImageFolder.open(make_tree(tmp_path, [*TREE, "stray.jpg"])).classes == ()


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    assert ImageFolder.open(make_tree(tmp_path, ["a/x.jpg", "a/.y.jpg", ".git/z.jpg", "._w.jpg"])).names == ("a/x.jpg",)


def test_odd_names_are_kept(tmp_path: Path) -> None:
    names = ["a/\N{PARTY POPPER}.jpg", "a/line\nbreak.jpg", "a/sp ace.jpg"]
    folder = ImageFolder.open(make_tree(tmp_path, names))
    assert sorted(folder.names) == sorted(names)
    assert len(folder.manifest().files) == 3


def test_circles_of_links_end_and_broken_links_are_skipped(tmp_path: Path) -> None:
    make_tree(tmp_path, ["a/x.jpg", "b/y.jpg"])
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "across").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self.jpg").symlink_to(tmp_path / "a" / "self.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "again.jpg").symlink_to(tmp_path / "b" / "y.jpg")
    assert ImageFolder.open(tmp_path).names == ("a/again.jpg", "a/x.jpg", "b/y.jpg")


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    make_tree(tmp_path / "elsewhere", ["x.jpg"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "coat").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder.open(tmp_path / "set").names == ("coat/x.jpg",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_not_read(tmp_path: Path) -> None:
    make_tree(tmp_path, ["a.jpg"])
    os.mkfifo(tmp_path / "b.jpg")
    assert ImageFolder.open(tmp_path).names == ("a.jpg",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist; expected a folder"),
        ("file.jpg", "is a file; expected the folder"),
        ("empty", "holds no image"),
    ],
)
def test_what_is_no_folder_of_images_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file.jpg").write_bytes(b"")
    make_tree(tmp_path / "empty", ["notes.txt"])
    with pytest.raises(CalibrationError, match=message):
        ImageFolder.open(tmp_path / name)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, TREE)
    scandir = os.scandir

    def refuse_hats(path: Path) -> object:
        if Path(path).name == "hat":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_hats)
    with pytest.raises(CalibrationError, match=r"hat.* cannot be listed \(Permission denied\)"):
        ImageFolder.open(tmp_path)


# Choice


def folder_of(names: list[str]) -> ImageFolder:
    classes = sorted({name.split("/")[0] for name in names}) if all("/" in name for name in names) else []
    return ImageFolder(Path("/nowhere"), tuple(sorted(names)), tuple(classes))


SIZES = {"a": 50, "b": 3, "c": 20}
UNEVEN = [f"{group}/{index:03}.jpg" for group, size in SIZES.items() for index in range(size)]


@given(count=st.integers(1, len(UNEVEN)), seed=st.integers())
def test_the_choice_is_even_over_the_classes_and_nested(count: int, seed: int) -> None:
    chosen = folder_of(UNEVEN).select(count, seed)
    assert len(set(chosen.names)) == count
    assert list(chosen.names) == sorted(chosen.names)
    assert chosen.classes == ("a", "b", "c")
    taken = Counter(name[0] for name in chosen.names)
    unfinished = [taken[group] for group, size in SIZES.items() if taken[group] < size]
    assert max(taken.values()) - min(unfinished, default=max(taken.values())) <= 1
    if count > 1:
        assert set(folder_of(UNEVEN).select(count - 1, seed).names) < set(chosen.names)


@given(order=st.permutations(UNEVEN))
def test_the_choice_does_not_depend_on_the_order_of_the_listing(order: list[str]) -> None:
    shuffled = ImageFolder(Path("/elsewhere"), tuple(order), ("a", "b", "c"))
    assert shuffled.select(10, 3).names == folder_of(UNEVEN).select(10, 3).names


def test_the_choice_is_the_same_on_every_machine_and_day() -> None:
    assert folder_of(UNEVEN).select(4, 0).names == ("a/012.jpg", "b/002.jpg", "c/001.jpg", "c/003.jpg")


def test_another_seed_is_another_choice() -> None:
    assert len({folder_of(UNEVEN).select(10, seed).names for seed in range(20)}) == 20


def test_the_choice_does_not_depend_on_the_file_system_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_tree(tmp_path / "first", TREE), make_tree(tmp_path / "second", TREE[::-1])
    monkeypatch.chdir(tmp_path)
    relative = ImageFolder.open("second").select(3, 1)
    monkeypatch.chdir(first)
    assert relative.names == ImageFolder.open(first).select(3, 1).names
    assert relative.manifest() == ImageFolder.open(second).select(3, 1).manifest()


def test_an_unlabeled_folder_is_chosen_from_as_a_whole() -> None:
    names = [f"{index:02}.jpg" for index in range(30)]
    assert len(folder_of(names).select(7, 5).names) == 7


@pytest.mark.parametrize("count", [0, -1, 74])
def test_more_images_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match="has 73"):
        folder_of(UNEVEN).select(count)


# Manifest


def test_the_manifest_hash_changes_when_anything_changes(tmp_path: Path) -> None:
    folder = ImageFolder.open(make_tree(tmp_path, TREE))
    before = folder.manifest()
    hashes = {before.sha256, folder.select(5).manifest().sha256}
    (tmp_path / "hat" / "d.jpeg").write_bytes(b"hat/d.jpeG")
    hashes.add(ImageFolder.open(tmp_path).manifest().sha256)
    (tmp_path / "hat" / "d.jpeg").rename(tmp_path / "hat" / "g.jpeg")
    hashes.add(ImageFolder.open(tmp_path).manifest().sha256)
    (tmp_path / "coat" / "extra.jpg").write_bytes(b"")
    hashes.add(ImageFolder.open(tmp_path).manifest().sha256)
    assert len(hashes) == 5


def test_the_manifest_hash_does_not_depend_on_the_order_given() -> None:
    files = {"a": "0" * 64, "b": "1" * 64}
    assert Manifest(files).sha256 == Manifest(dict(reversed(files.items()))).sha256
    assert Manifest(files).sha256 != Manifest({"a": "1" * 64, "b": "0" * 64}).sha256


def test_overlap_is_found_by_content_not_by_name(tmp_path: Path) -> None:
    make_tree(tmp_path / "first", ["x.jpg", "same.jpg"])
    make_tree(tmp_path / "second", ["y.jpg"])
    (tmp_path / "second" / "x.jpg").write_bytes(b"other")
    (tmp_path / "second" / "copy.jpg").write_bytes(b"same.jpg")
    first, second = (ImageFolder.open(tmp_path / name).manifest() for name in ("first", "second"))
    assert overlap(first, second) == (("same.jpg", "copy.jpg"),)
    assert overlap(second, first) == (("copy.jpg", "same.jpg"),)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    folder = ImageFolder.open(make_tree(tmp_path, TREE))
    (tmp_path / "shoe" / "f.bmp").unlink()
    with pytest.raises(CalibrationError, match=r"f\.bmp cannot be read"):
        folder.manifest()


@pytest.mark.parametrize("files", [{}, {"a": "0" * 63}, {"a": "G" * 64}, {"a": 5}])
def test_a_manifest_without_proper_hashes_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(CalibrationError, match="manifest"):
        Manifest(files)
