"""The split: every file accounted for, copies together, the same everywhere, never overwritten."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from fracture.cli import InputError
from fracture.data.fracatlas import BODY_PARTS, body_part, find_radiographs
from fracture.data.images import read_grey
from fracture.data.manifest import (
    SPLITS,
    Row,
    check_splits,
    read_manifest,
    read_split,
    write_manifest,
)
from split_dataset import assign_splits, link_or_copy, read_rows, write_splits
from tests.conftest import run_script

FRACTIONS = (0.8, 0.1, 0.1)


@pytest.fixture(scope="session")
def rows(drawn: Path) -> list[Row]:
    return assign_splits(read_rows(drawn), FRACTIONS, seed=42)


@pytest.fixture
def split_dir(rows: list[Row], drawn: Path, tmp_path: Path) -> Path:
    write_splits({".": rows}, drawn, tmp_path / "split", "seed: 42\n")
    return tmp_path / "split"


def some_rows(groups: list[tuple[str, int, bool]]) -> list[Row]:
    """Rows of groups of (label, size, excluded)."""
    return [
        Row(f"images/{label}/{i}-{k}.jpg", label, "excluded" if excluded else "", f"g{i}", "", "")
        for i, (label, size, excluded) in enumerate(groups)
        for k in range(size)
    ]


GROUPS = st.lists(
    st.tuples(st.sampled_from(["Fractured", "Non_fractured"]), st.integers(1, 5), st.booleans()),
    min_size=1,
    max_size=120,
)


@given(GROUPS, st.integers(0, 1000))
@settings(deadline=None)
def test_whole_groups_go_to_one_split_and_every_row_goes_somewhere(
    groups: list[tuple[str, int, bool]], seed: int
) -> None:
    before = some_rows(groups)
    after = assign_splits(before, FRACTIONS, seed)
    assert [row.image for row in after] == [row.image for row in before]
    assert {row.split for row in after} <= {*SPLITS, "excluded"}
    homes: dict[str, set[str]] = {}
    for row in after:
        homes.setdefault(row.group, set()).add(row.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert [row.split == "excluded" for row in after] == [row.split == "excluded" for row in before]


@given(GROUPS, st.integers(0, 1000), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_files_does_not_matter(
    groups: list[tuple[str, int, bool]], seed: int, shuffler: random.Random
) -> None:
    before = some_rows(groups)
    shuffled = shuffler.sample(before, len(before))
    assert set(assign_splits(before, FRACTIONS, seed)) == set(
        assign_splits(shuffled, FRACTIONS, seed)
    )


@given(GROUPS, st.integers(0, 1000))
@settings(deadline=None)
def test_each_class_is_cut_at_its_fractions_to_within_a_group(
    groups: list[tuple[str, int, bool]], seed: int
) -> None:
    after = [r for r in assign_splits(some_rows(groups), FRACTIONS, seed) if r.split != "excluded"]
    for label in {row.label for row in after}:
        counts = Counter(row.split for row in after if row.label == label)
        for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
            assert abs(counts[split] - fraction * counts.total()) <= 5


@given(GROUPS, st.integers(0, 1000), st.integers(3, 7))
@settings(deadline=None)
def test_folds_test_every_image_once_and_keep_groups_whole(
    groups: list[tuple[str, int, bool]], seed: int, k: int
) -> None:
    before = some_rows(groups)
    shares = Fraction(k - 2, k), Fraction(1, k), Fraction(1, k)
    folds = [assign_splits(before, shares, seed, Fraction(i, k)) for i in range(k)]
    tested = Counter(row.image for rows in folds for row in rows if row.split == "test")
    validated = Counter(row.image for rows in folds for row in rows if row.split == "val")
    kept = Counter(row.image for row in before if row.split != "excluded")
    assert tested == validated == kept
    for rows in folds:
        assert len({(row.group, row.split) for row in rows}) == len({row.group for row in rows})


def test_every_body_part_is_cut_at_the_fractions() -> None:
    rows = [
        Row(f"{i}.jpg", "FN"[i % 2], "", f"g{i}", "", "", ("hand", "leg frontal", "")[i % 3])
        for i in range(600)
    ]
    after = assign_splits(rows, FRACTIONS, seed=42)
    counts = Counter((row.label, row.traits, row.split) for row in after)
    assert sorted(counts.values()) == [10] * 12 + [80] * 6


def test_single_images_are_stratified_exactly() -> None:
    after = assign_splits(some_rows([("F", 1, False), ("N", 1, False)] * 200), FRACTIONS, seed=42)
    counts = Counter((row.label, row.split) for row in after)
    assert [counts[label, split] for label in "FN" for split in SPLITS] == [160, 20, 20] * 2


def test_another_seed_gives_another_split(rows: list[Row], drawn: Path) -> None:
    kept = read_rows(drawn)
    assert assign_splits(kept, FRACTIONS, seed=42) == rows
    assert assign_splits(kept, FRACTIONS, seed=43) != rows


def test_the_folders_hold_what_the_manifest_says(split_dir: Path, drawn: Path) -> None:
    with (split_dir / "manifest.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [row["image"] for row in listed] == [r.image for r in find_radiographs(drawn)]
    kept = {row["image"] for row in listed if row["split"] != "excluded"}
    linked = [path for path in split_dir.glob("*/*/*") if path.is_file()]
    assert {f"images/{path.parent.name}/{path.name}" for path in linked} == kept
    assert all(path.samefile(drawn / "images" / path.parent.name / path.name) for path in linked)


def test_truncated_files_are_excluded_and_named(rows: list[Row]) -> None:
    undecodable = [row for row in rows if row.reason.startswith("undecodable")]
    assert len(undecodable) == 2
    assert all(row.split == "excluded" and "truncated" in row.reason for row in undecodable)


def test_no_two_kept_images_have_the_same_pixels(rows: list[Row], drawn: Path) -> None:
    """Two pairs of the drawn images share their bytes, and one its pixels only."""
    kept = [row for row in rows if row.split != "excluded"]
    pixels = [read_grey((drawn / row.image).read_bytes()).tobytes() for row in kept]
    assert len(set(pixels)) == len(kept)
    copies = [row for row in rows if row.reason.startswith("copy of ")]
    assert len(copies) == 3
    for copy in copies:
        original = next(row for row in kept if row.image == copy.reason.removeprefix("copy of "))
        assert (original.group, original.label) == (copy.group, copy.label)
    assert len({copy.sha256 for copy in copies} - {row.sha256 for row in kept}) == 1


def test_torchvision_reads_the_folders_with_the_same_classes_and_files(split_dir: Path) -> None:
    for name in SPLITS:
        split, folder = read_split(split_dir, name), ImageFolder(split_dir / name)
        assert folder.classes == split.classes
        assert [
            (str(split_dir / row.place), split.classes.index(row.label)) for row in split.rows
        ] == folder.samples


def test_a_missing_extra_or_moved_file_is_noticed(split_dir: Path) -> None:
    victim = next((split_dir / "val" / "Fractured").iterdir())
    moved = victim.rename(split_dir / "val" / "Non_fractured" / victim.name)
    with pytest.raises(InputError, match="2"):
        read_split(split_dir, "val")
    moved.unlink()
    with pytest.raises(InputError, match="is missing"):
        read_split(split_dir, "val")
    read_split(split_dir, "train")


def test_check_passes_a_split_and_finds_a_changed_file(split_dir: Path) -> None:
    arguments = ("split_dataset.py", "--check", "--split_dir", split_dir.name)
    good = run_script(split_dir.parent, *arguments)
    assert (good.returncode, good.stderr) == (0, "")
    assert "no group in two splits" in good.stdout
    victim = next((split_dir / "test" / "Fractured").iterdir())
    content = victim.read_bytes()
    victim.unlink()  # a hard link: the source stays as it is
    victim.write_bytes(content[:-1] + b"!")
    bad = run_script(split_dir.parent, *arguments)
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert f"{victim.name} has changed" in bad.stderr


def test_check_finds_a_copy_in_two_splits(rows: list[Row], drawn: Path, tmp_path: Path) -> None:
    train, test = (next(row for row in rows if row.split == name) for name in ("train", "test"))
    leaky = [replace(row, group=train.group) if row == test else row for row in rows]
    write_splits({".": leaky}, drawn, tmp_path / "leaky", "")
    with pytest.raises(InputError, match="a copy of it is in"):
        check_splits(tmp_path / "leaky")


def test_a_copy_serves_where_links_do_not_reach(drawn: Path, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on a file system of its own")
    source = find_radiographs(drawn)[0].path
    target = elsewhere / f"link-or-copy-{os.getpid()}.jpg"
    try:
        link_or_copy(source, target)
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_ino != source.stat().st_ino
    finally:
        target.unlink(missing_ok=True)


def test_an_existing_split_is_replaced_only_with_force(drawn: Path, tmp_path: Path) -> None:
    assert run_script(tmp_path, "split_dataset.py", "--data_root", str(drawn)).returncode == 0
    manifest = tmp_path / "data" / "split" / "manifest.csv"
    first = manifest.read_text()
    again = ["split_dataset.py", "--data_root", str(drawn), "--seed", "1"]
    refused = run_script(tmp_path, *again)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert manifest.read_text() == first
    assert run_script(tmp_path, *again, "--force").returncode == 0
    assert manifest.read_text() != first
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["split"]


def test_a_folder_that_is_no_split_is_never_replaced(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    (tmp_path / "precious" / "manifest.csv").write_text("of other things")
    arguments = ("--data_root", str(drawn), "--split_dir", "precious", "--force")
    refused = run_script(tmp_path, "split_dataset.py", *arguments)
    assert refused.returncode == 2
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "x"


def test_mirrors_letter_case_gives_the_published_classes(drawn: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    shutil.copytree(drawn, mirror)
    (mirror / "images" / "Non_fractured").rename(mirror / "images" / "non_fractured")
    assert {r.label for r in find_radiographs(mirror)} == {"Fractured", "Non_fractured"}


def test_a_link_never_writes_into_the_source(drawn: Path, tmp_path: Path) -> None:
    first, second = (radiograph.path for radiograph in find_radiographs(drawn)[:2])
    content = first.read_bytes()
    link_or_copy(first, tmp_path / "film.jpg")
    with pytest.raises(FileExistsError):
        link_or_copy(second, tmp_path / "film.jpg")
    assert first.read_bytes() == content


def test_files_of_one_name_in_subfolders_keep_their_places(drawn: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(drawn, source)
    for folder in (source / "images").iterdir():
        for i, film in enumerate(sorted(folder.iterdir())):
            (folder / f"patient {i}").mkdir()
            film.rename(folder / f"patient {i}" / "film.jpg")
    (source / "dataset.csv").unlink()
    rows = assign_splits(read_rows(source), FRACTIONS, seed=42)
    write_splits({".": rows}, source, tmp_path / "split", "")
    split = read_split(tmp_path / "split", *SPLITS)
    assert len(split.rows) == sum(row.split != "excluded" for row in rows) > 60
    assert split.rows[0].place.endswith("/film.jpg")
    check_splits(tmp_path / "split")


def test_what_is_not_of_a_split_is_never_deleted(split_dir: Path, drawn: Path) -> None:
    """--force replaces a split only if the manifest knows every file in it."""
    again = ("split_dataset.py", "--data_root", str(drawn), "--split_dir", "split", "--force")
    notes = split_dir / "train" / "Fractured" / "notes" / "boxes.json"
    notes.parent.mkdir()
    notes.write_text("mine")
    refused = run_script(split_dir.parent, *again)
    assert (refused.returncode, "other things" in refused.stderr) == (2, True)
    assert notes.read_text() == "mine"
    notes.unlink()
    inside = ("--data_root", str(split_dir / "train"), "--split_dir", "split", "--force")
    refused = run_script(split_dir.parent, "split_dataset.py", *inside)
    assert (refused.returncode, "lies in" in refused.stderr) == (2, True)
    assert run_script(split_dir.parent, *again).returncode == 0


def test_check_finds_a_fold_that_is_not_of_the_others(drawn: Path, tmp_path: Path) -> None:
    made = ("split_dataset.py", "--data_root", str(drawn), "--folds", "3", "--split_dir")
    for seed, name in (("1", "folds"), ("2", "other")):
        assert run_script(tmp_path, *made, name, "--seed", seed).returncode == 0
    check_splits(tmp_path / "folds")
    (tmp_path / "folds" / "fold-3").rename(tmp_path / "third")
    with pytest.raises(InputError, match="once"):
        check_splits(tmp_path / "folds")
    (tmp_path / "other" / "fold-3").rename(tmp_path / "folds" / "fold-3")
    with pytest.raises(InputError, match="once"):
        check_splits(tmp_path / "folds")
    shutil.rmtree(tmp_path / "folds" / "fold-3")
    (tmp_path / "third").rename(tmp_path / "folds" / "fold-3")
    (tmp_path / "folds" / "stray.png").touch()
    with pytest.raises(InputError, match="other files"):
        check_splits(tmp_path / "folds")


def test_a_data_set_too_small_to_split_is_refused(tmp_path: Path) -> None:
    for label in ("Fractured", "Non_fractured"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            film = tmp_path / "images" / label / f"{label}{i}.png"
            Image.new("L", (8, 8), i + 9 * len(label)).save(film)
    refused = run_script(tmp_path, "split_dataset.py", "--data_root", ".")
    assert refused.returncode == 2
    assert "test would have no Fractured" in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", ["", "image,class\n", "\x00\x01", "twice", "tset"])
def test_a_damaged_manifest_is_refused(split_dir: Path, damage: str) -> None:
    text = (split_dir / "manifest.csv").read_text()
    if damage == "twice":
        damage = text + text.splitlines()[-1] + "\n"
    elif damage == "tset":
        damage = text.replace(",test,", ",tset,")
    (split_dir / "manifest.csv").write_text(damage)
    digest = hashlib.sha256(damage.encode()).hexdigest()
    (split_dir / "manifest.csv.sha256").write_text(f"{digest}  manifest.csv\n")
    with pytest.raises(InputError, match="damaged"):
        read_split(split_dir, "val")


def test_a_flipped_bit_in_the_manifest_is_noticed(
    split_dir: Path, record_property: Callable[[str, object], None]
) -> None:
    """And the checksum beside it is one that sha256sum reads."""
    manifest, rng = split_dir / "manifest.csv", random.Random(0)
    subprocess.run(["sha256sum", "--check", f"{manifest.name}.sha256"], cwd=split_dir, check=True)
    content = manifest.read_bytes()
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        manifest.write_bytes(flipped)
        with pytest.raises(InputError, match="damaged"):
            read_manifest(split_dir)
    record_property("bits flipped in manifests", 100)


def test_any_file_name_survives_the_manifest(tmp_path: Path) -> None:
    names = ["a,b.jpg", 'q"q.jpg', "line\u2028break.jpg", "caf\udce9.jpg", "röntgen 1.jpg"]
    rows = [Row(f"images/F/{name}", "F", "excluded", "g", "r", "") for name in names]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path)[0] == rows


def test_a_folder_without_the_data_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data_root"):
        find_radiographs(tmp_path)
    (tmp_path / "images" / "Fractured").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "Fractured" / "a.png")
    with pytest.raises(InputError, match="here are: Fractured;"):
        find_radiographs(tmp_path)


def test_real_data_is_counted_as_published(real: Path) -> None:
    """78 groups of the same pixels hold 83 spare files; 3 of the groups are contradictory.

    Of the 25 pairs of near-copies one is contradictory too: IMG0002952 and IMG0004262.
    """
    rows = assign_splits(read_rows(real), FRACTIONS, seed=42)
    reasons = Counter(row.reason.split()[0] for row in rows if row.split == "excluded")
    assert len(rows) == 4083
    assert reasons == {"undecodable:": 59, "copy": 79, "contradictory:": 9}
    undecodable = [Path(row.image) for row in rows if row.reason.startswith("undecodable")]
    assert {path.parent.name for path in undecodable} == {"Non_fractured"}
    assert (min(undecodable).name, max(undecodable).name) == ("IMG0004028.jpg", "IMG0004347.jpg")
    contradictory = {Path(r.image).stem[-4:] for r in rows if r.reason.startswith("contradictory")}
    exact = {"2886", "4243", "2998", "4280", "3034", "4314", "4341"}
    assert contradictory == exact | {"2952", "4262"}
    decided = [row for row in rows if "label:" in row.reason]
    assert [(Path(row.image).stem, row.label) for row in decided] == [("IMG0003298", "Fractured")]

    kept = [row for row in rows if row.split != "excluded"]
    of_group: dict[str, list[str]] = {}
    for row in kept:
        of_group.setdefault(row.group, []).append(Path(row.image).stem[-4:])
    assert {"/".join(group) for group in of_group.values() if len(group) > 1} == NEAR_COPIES
    sizes = Counter((row.split, row.label) for row in kept)
    for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
        assert sizes[split, "Fractured"] / 698 == pytest.approx(fraction, abs=0.01)
        assert sizes[split, "Non_fractured"] / 3238 == pytest.approx(fraction, abs=0.01)
        for part in BODY_PARTS:
            of_part = [row for row in kept if body_part(row.traits) == part]
            here = [row for row in of_part if row.split == split]
            assert len(here) == pytest.approx(fraction * len(of_part), abs=2)


# Each pair was opened side by side. The last line's are one limb of one patient, exposed or
# processed twice; all others are one film saved twice.
NEAR_COPIES = {
    f"{i:04}/{j:04}"
    for i, j in (
        *((0, 1370), (1, 1508), (2, 1295), (3, 1378), (4, 1414), (6, 1998), (2298, 2467)),
        *((2646, 4072), (2647, 4071), (2652, 4067), (2746, 4117), (2749, 4113), (2791, 4150)),
        *((2834, 4187), (2848, 4206), (2904, 4232), (2653, 4068), (2668, 4061), (2846, 4209)),
        *((2935, 4217), (2945, 4266)),
        *((239, 240), (2337, 2340), (2516, 2518)),
    )
}
