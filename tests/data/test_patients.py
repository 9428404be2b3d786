"""Films of one patient share a split, and no patient's name is written."""

from pathlib import Path

import pytest

from fracture.data.manifest import Row
from fracture.data.patients import join_patients
from fracture.data.splitting import assign_splits
from tests.conftest import Capture, run_expecting_error


def film(name: str, label: str = "Fractured", split: str = "") -> Row:
    return Row(f"{label}/{name}", label, split, f"{label}/{name}", "", name)


ROWS = [film(f"{i}.jpg", "Fractured" if i % 2 else "Sound") for i in range(40)]


def joined(table: Path, text: str) -> list[Row]:
    table.write_text(f"image,group\n{text}")
    return join_patients(ROWS, str(table), table.parent)


def test_films_of_a_patient_share_a_split_whatever_their_class(
    tmp_path: Path, capsys: Capture
) -> None:
    lines = "".join(f"{row.image.split('/')[1]},Doe{i // 4}\n" for i, row in enumerate(ROWS[:36]))
    rows = joined(tmp_path / "patients.csv", f"{lines}gone.jpg,Doe1\n")
    out = capsys.readouterr().out
    assert "1 images are not here, such as gone.jpg" in out
    assert "groups: 13 from 40 films; 9 with films of both classes" in out
    assert "films without a group, each on its own: 4, such as Sound/36.jpg" in out
    assert "Doe" not in str(rows)
    for seed in range(5):
        splits = [row.split for row in assign_splits(rows, (0.6, 0.2, 0.2), seed)]
        assert all(len({*splits[i : i + 4]}) == 1 for i in range(0, 36, 4))
        assert {*splits} == {"train", "val", "test"}


def test_copies_of_two_patients_films_join_these(tmp_path: Path) -> None:
    """A chain: 0 and 2 are one patient's, 4 is a copy of 2, 4 and 6 another's."""
    pair = [row if row.sha256 != "4.jpg" else film("4.jpg", "Sound") for row in ROWS]
    pair[4] = Row("Sound/4.jpg", "Sound", "", "Sound/2.jpg", "", "4.jpg")
    (table := tmp_path / "t.csv").write_text("image,group\n0.jpg,a\n2.jpg,a\n4.jpg,b\n6.jpg,b\n")
    rows = join_patients(pair, str(table), tmp_path)
    assert [rows[i].group for i in (0, 2, 4, 6)] == ["Sound/0.jpg"] * 4
    assert rows[1] == pair[1]


def test_a_name_that_two_films_have_is_refused_and_their_paths_are_not(tmp_path: Path) -> None:
    rows = [film("1.jpg"), film("1.jpg", "Sound"), film("2.jpg")]
    (table := tmp_path / "t.csv").write_text("image,group\n1.jpg,a\n2.jpg,a\n")
    line = run_expecting_error(lambda _: join_patients(rows, str(table), tmp_path))
    assert line.endswith(
        "1.jpg fits 2 films, such as Fractured/1.jpg and Sound/1.jpg; write these paths"
    )
    table.write_text("image,group\nFractured/1.jpg,a\nSound/1.jpg,b\n2.jpg,b\n")
    groups = [row.group for row in join_patients(rows, str(table), tmp_path)]
    assert groups == ["Fractured/1.jpg", "Fractured/2.jpg", "Fractured/2.jpg"]


def test_one_folder_a_patient(tmp_path: Path) -> None:
    rows = [film(f"{patient}/{i}.png") for patient in "ab" for i in range(2)]
    groups = [row.group for row in join_patients(rows, "folder", tmp_path)]
    assert groups == ["Fractured/a/0.png"] * 2 + ["Fractured/b/0.png"] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,patient\n1.jpg,a\n", "needs the columns image and group"),
        ("image,group\nother.jpg,a\n", "it gives none of the 40 films a group"),
        (None, "No such file or directory; allowed: a table, folder or patient_id"),
    ],
)
def test_a_wrong_table_is_told_in_a_line(tmp_path: Path, text: str | None, said: str) -> None:
    table = tmp_path / "t.csv"
    if text:
        table.write_text(text)
    line = run_expecting_error(lambda _: join_patients(ROWS, str(table), tmp_path))
    assert said in line
