"""Labels come from where the published rule says, and any two class folders will do."""

from pathlib import Path

import pytest

from fracture.cli import InputError
from fracture.data.fracatlas import find_radiographs, resolve_labels
from tests.conftest import Capture

HURT, SOUND = "images/Fractured/1.jpg", "images/Non_fractured/1.jpg"


def lay_out(root: Path, *names: str, table: str = "") -> Path:
    """Write empty files, and rows of dataset.csv, below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    table = f"image_id,leg,fractured,fracture_count\n{table}\n"
    (root / "dataset.csv").write_bytes(table.encode("latin-1"))
    return root


@pytest.mark.parametrize("classes", ["Fractured Non_fractured", "fractured NON_FRACTURED"])
@pytest.mark.parametrize("prefix", ["images/", "Images/", ""])
def test_published_classes_are_found(tmp_path: Path, prefix: str, classes: str) -> None:
    hurt, sound = (f"{prefix}{name}/deep/1.jpg" for name in classes.split())
    lay_out(tmp_path, hurt, sound, f"{prefix}.cache/3.jpg", f"{prefix}Unsure/4.jpg")
    found = find_radiographs(tmp_path)
    assert {item.image: item.label for item in found} == {hurt: "Fractured", sound: "Non_fractured"}


def test_any_other_two_folders_are_classes_of_their_names(tmp_path: Path) -> None:
    """Every file in them is listed: hidden ones, and a link to a folder, which is not followed."""
    lay_out(tmp_path, "benign/1.png", "a tumour/.2.png", ".cache/4.png", "notes.txt")
    (tmp_path / "benign" / "circle").symlink_to(tmp_path)
    found = [row.image for row in find_radiographs(tmp_path)]
    assert found == ["a tumour/.2.png", "benign/1.png", "benign/circle"]


@pytest.mark.parametrize("folders", ["", "a", "abc", "a-"])
def test_other_than_two_classes_are_refused(tmp_path: Path, folders: str) -> None:
    lay_out(tmp_path, *(f"{name}/1.png" for name in folders))
    (tmp_path / "-/1.png").unlink(missing_ok=True)  # that class is empty
    with pytest.raises(
        InputError, match=r"two class folders are needed, found: |only class .* two"
    ):
        find_radiographs(tmp_path)


def test_one_class_stands_against_the_rest(tmp_path: Path, capsys: Capture) -> None:
    lay_out(tmp_path, "healthy/1.png", "cyst/1.png", "crack/1.png")
    found = find_radiographs(tmp_path, "ill", "healthy")
    assert [item.label for item in found] == ["ill", "ill", "healthy"]
    assert {row.name for row in found} == {"ill/crack/1.png", "ill/cyst/1.png", "healthy/1.png"}
    assert "healthy against crack, cyst, as ill" in capsys.readouterr().out
    with pytest.raises(InputError, match="negative_class is 'sound'; allowed: crack, cyst, health"):
        find_radiographs(tmp_path, "ill", "sound")


def test_a_published_split_is_kept(tmp_path: Path) -> None:
    names = [f"{part}/{label}/1.png" for part in ("Test", "train", "valid") for label in "ab"]
    found = find_radiographs(lay_out(tmp_path, *names))
    assert [item.split for item in found] == ["test", "test", "train", "train", "val", "val"]
    assert [item.label for item in found] == ["a", "b"] * 3
    assert len({row.name for row in found}) == 6


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("count", [0, 2])  # folder Fractured, 0, 1: IMG0003298 of release 1
@pytest.mark.parametrize("image", [HURT, SOUND])
def test_two_of_three_sources_decide(tmp_path: Path, image: str, flag: int, count: int) -> None:
    lay_out(tmp_path, image, "images/Fractured/2.jpg", "images/Non_fractured/3.jpg")
    lay_out(tmp_path, table=f"1.jpg,1,{flag},{count}\n2.jpg,0,1,1")
    rows = resolve_labels(find_radiographs(tmp_path), tmp_path)
    one, two, three = sorted(rows, key=lambda row: row.image[-5:])
    votes = (image == HURT) + flag + (count > 0)
    note = f"label: folder {image[7:-6]}, fractured {flag}, fracture_count {count}; the majority's"
    assert one.label == ("Fractured" if votes >= 2 else "Non_fractured")
    assert (one.reason, one.traits) == ("" if votes in (0, 3) else note, "leg")
    assert (two.reason, two.traits) == ("", "")
    assert three.reason == "label: the folder's, not in dataset.csv"


@pytest.mark.parametrize(("flag", "right"), [(0, SOUND), (1, HURT)])
def test_an_id_in_both_folders_counts_once(tmp_path: Path, flag: int, right: str) -> None:
    """As IMG0003375 and IMG0003376 of v7: where dataset.csv agrees."""
    found = find_radiographs(lay_out(tmp_path, HURT, SOUND, table=f"1.jpg,0,{flag},{flag}"))
    rows = resolve_labels(found, tmp_path)
    assert {row.label for row in rows} == {right.split("/")[1]}
    assert [row.image for row in rows if not row.split] == [right]
    (wrong,) = (row for row in rows if row.split == "excluded")
    assert wrong.reason.startswith(f"copy of {right}, the same id in the other class folder")
