"""Bad images are left out for a reason, by both scripts alike, and change no other number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import infer
import split_dataset
from fracture.data.manifest import read_manifest
from tests.faults.bad_images import damaged, refused, same


def predict(folder: Path) -> dict[str, dict]:
    """The lines of infer.py's table by the name of the file."""
    infer.main(["--run", "first", "--out", "table.json", str(folder)])
    return {Path(line["file"]).name: line for line in json.loads(Path("table.json").read_text())}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF files
@pytest.mark.usefixtures("place")
def test_bad_images_are_left_out_alike(drawn: Path, record_property: Callable) -> None:
    folder = Path(shutil.copytree(drawn / "images", "films")) / "Fractured"
    with Image.open(min(folder.glob("*"))) as image:
        film = image.convert("L").reduce(2)
    film.putpixel((0, 0), 0)
    film.putpixel((1, 0), 255)  # all of the range, as DICOM's is stretched to it
    good, bad = dict(same(film)), dict(refused(film))
    files = good | bad | dict(damaged(list(good.values()), 60, seed=1))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / ".hidden.jpg").write_bytes(good["film.PNG"])
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    split_dataset.main(["--data_root", "films", "--split_dir", "split"])
    reasons = {Path(row.image).name: row.reason for row in read_manifest(Path("split"))[0]}
    lines, alone = predict(Path("films")), predict(drawn / "images/Fractured")

    assert reasons.pop(".hidden.jpg") == "undecodable: hidden file"
    assert reasons["nowhere.jpg"] == "undecodable: No such file or directory"
    assert reasons.keys() == lines.keys()
    for name, line in lines.items():
        note, p = line["note"], line["p_fractured"]
        assert bool(note) == (p is None) == reasons[name].startswith("undecodable: "), name
        assert note.isprintable()
        assert note.removeprefix("unreadable: ") in reasons[name]
        if name in good:
            assert p == pytest.approx(lines["film.PNG"]["p_fractured"], abs=0.02), name
        elif name in alone and p is not None:
            assert p == pytest.approx(alone[name]["p_fractured"], abs=1e-5)
        assert p is None or name not in bad, name
    record_property("bad images tried", len(files))
