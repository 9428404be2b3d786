"""The split: every file accounted for, copies together, the same everywhere, never overwritten."""

import re
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

import split_dataset
from fracture.cli import InputError
from fracture.data.fracatlas import CLASSES
from fracture.data.manifest import SPLITS, Row, read_manifest
from fracture.data.splitting import assign_splits, make_splits, scan_dataset, write_splits
from tests.conftest import Capture, Patch, files_in, run_expecting_error, slow
from tests.data.conftest import settings

FRACTIONS = [Fraction(n, 10) for n in (8, 1, 1)]


def some_rows(count: int) -> list[Row]:
    """Rows of groups of 1 to 5 images, of two classes and body parts; some are excluded."""
    files = [(i, k) for i in range(count) for k in range(1 + i * i % 5)]
    traits, splits = ("", "leg", "hand frontal"), ("excluded", *[""] * 6)
    return [
        Row(f"{i}-{k}", "FN"[i % 2], splits[i % 7], f"g{i}", "", "", traits[i % 3])
        for i, k in files
    ]


@pytest.mark.parametrize("folds", [0, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 20, 300])
def test_groups_stay_whole_and_strata_are_cut_at_the_fractions(count: int, folds: int) -> None:
    rows, k = some_rows(count), folds or 1
    shares = [Fraction(n, k) for n in (k - 2, 1, 1)] if folds else FRACTIONS
    splits = [assign_splits(rows, shares, 42, Fraction(i, k)) for i in range(k)]
    for split in splits:
        assert [row.image for row in split] == [row.image for row in rows]
        assert [row.split == "excluded" for row in split] == [bool(row.split) for row in rows]
        assert len({(row.group, row.split) for row in split}) == count
        sizes = Counter((row.label, row.traits, row.split) for row in split)
        for label, part, _ in [*sizes]:
            found = [sizes[label, part, name] for name in SPLITS]
            assert all(abs(n - f * sum(found)) <= 5 for n, f in zip(found, shares, strict=True))
    assert {*assign_splits(rows[::-1], shares, 42)} == {*splits[0]}
    for name in ("val", "test") if folds else ():
        there = sorted(row.image for split in splits for row in split if row.split == name)
        assert there == sorted(row.image for row in rows if not row.split)


def test_a_split_stays_the_same_for_ever() -> None:
    """A letter for each group: tRain, vAl, tEst or eXcluded."""
    splits = [assign_splits(some_rows(24), FRACTIONS, seed) for seed in (42, 43)]
    letters = ["".join({row.group: row.split[1] for row in rows}.values()) for rows in splits]
    assert letters == ["xarrerexrarrrrxrrrrrrxra", "xrrrrrrxrrrrrrxerrrarxra"]


@pytest.mark.parametrize("positive", ["F", "x"])
def test_a_split_without_both_classes_is_refused(positive: str) -> None:
    with pytest.raises(InputError, match=r"^too few images: test would have no F|'x'; allowed: "):
        make_splits(some_rows(6), settings("--positive_class", positive))


def test_links_cost_no_disk_and_copies_serve_elsewhere(
    split_dir: Path, rows: list[Row], drawn: Path, monkeypatch: Patch
) -> None:
    kept = [row for row in read_manifest(split_dir)[0] if row.split != "excluded"]
    assert {path for path in files_in(split_dir) if "/" in path} == {row.path for row in kept}
    assert all((split_dir / row.path).samefile(drawn / row.image) for row in kept)
    config = settings("--split_dir", str(split_dir))
    with pytest.raises(InputError, match="is not replaced"):
        write_splits(make_splits(rows, config), drawn, config)
    # An OSError, as between two file systems.
    monkeypatch.setattr("os.link", lambda source, _: Path(source).rmdir())
    write_splits(make_splits(rows, config), drawn, config, overwrite=True)
    for source, copy in ((drawn / row.image, split_dir / row.path) for row in kept):
        assert (source.read_bytes() == copy.read_bytes(), source.samefile(copy)) == (True, False)


def test_the_script_accounts_for_every_file(
    split_dir: Path, drawn: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The same from a zip as from a folder."""
    shutil.make_archive(f"{tmp_path}/films", "zip", drawn.parent, drawn.name)
    argv = ["--data_root", f"{tmp_path}/films.zip", "--split_dir", f"{tmp_path}/new"]
    split_dataset.main(argv)
    assert (tmp_path / "new/manifest.csv").read_bytes() == (split_dir / "manifest.csv").read_bytes()
    found = re.findall(r"^ *(?:files )?(\w+) +(\d+)", capsys.readouterr().out, re.MULTILINE)
    total, *excluded, kept, _, train, val, test = (int(count) for _, count in found)
    assert total == 80 == sum(excluded) + kept == sum(excluded) + train + val + test
    assert "exists; replace it" in run_expecting_error(split_dataset.main, *argv)


def test_of_an_id_in_both_folders_one_file_stays(drawn: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(drawn, tmp_path / "FracAtlas"))
    films = sorted((root / "images/Fractured").iterdir())[3:5]
    spares = [Path(shutil.copy(film, root / "images/Non_fractured")) for film in films]
    films[1].write_bytes(b"damaged")
    rows = {root / row.image: row for row in scan_dataset(root)}
    assert [rows[path].split == "" for path in (*films, *spares)] == [True, False, False, True]
    assert "the same id in the other class folder" in rows[spares[0]].reason


def test_a_published_split_gets_a_val_part_and_no_copy_in_train(
    drawn: Path, tmp_path: Path, capsys: Capture
) -> None:
    films = {name: sorted((drawn / "images" / name).iterdir()) for name in CLASSES}
    for name, paths in films.items():
        for i, path in enumerate(paths[3:]):
            part = tmp_path / ("test" if i % 4 == 0 else "train") / name
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, part)
    film = next((tmp_path / "test/Non_fractured").iterdir())
    grey = Image.open(film)
    grey.resize((grey.width - 9, grey.height)).save(tmp_path / "train/Non_fractured/again.jpg")
    rows = scan_dataset(tmp_path)
    (again,) = (row for row in rows if row.image.endswith("again.jpg"))
    assert (again.split, again.reason) == ("excluded", f"copy of test/Non_fractured/{film.name}")
    split = make_splits(rows, settings())["."]
    assert "no val folder: 11% of train becomes val" in capsys.readouterr().out
    for row in split:
        was_test = row.image.startswith("test/")
        assert row.split in ("excluded", *(["test"] if was_test else ["train", "val"]))
    groups = {(row.group, row.split) for row in split if row.split != "excluded"}
    assert len(groups) == len({group for group, _ in groups})
    with pytest.raises(InputError, match="already; leave out --folds"):
        make_splits(rows, settings("--folds", "3"))


def test_the_split_does_not_depend_on_the_bytes_of_the_files(
    rows: list[Row], drawn: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(drawn, tmp_path / "FracAtlas"))
    groups = Counter(row.group for row in rows)
    for row in [row for row in rows if groups[row.group] == 1 and not row.reason][::3]:
        Image.open(drawn / row.image).save(root / row.image, quality=92)
    before, after = (make_splits(found, settings())["."] for found in (rows, scan_dataset(root)))
    assert {row.sha256 for row in before} != {row.sha256 for row in after}
    assert [(row.image, row.split) for row in before] == [(row.image, row.split) for row in after]


@slow
def test_real_data_is_counted_as_published(real: Path) -> None:
    """78 groups of the same pixels hold 83 spare files; 3 of the groups are contradictory.

    24 pairs of near-copies stay; one is contradictory too: IMG0002952 and IMG0004262.
    """
    rows = scan_dataset(real)
    counts = Counter(row.reason.split()[0] if row.split else "kept" for row in rows)
    assert counts == {"kept": 3936, "undecodable:": 59, "copy": 79, "contradictory:": 9}
    assert len({row.group for row in rows if not row.split}) == 3936 - 24
