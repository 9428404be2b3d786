"""Bad images are left out for a reason, by both scripts alike, and change no other number."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import infer
import split_dataset
from fracture.data.images import read_grey, scan_image
from fracture.data.manifest import read_manifest
from tests.conftest import REPEATS
from tests.data import test_dicom, test_images
from tests.data.conftest import encoded

FORMATS = [("L", "PNG"), ("I;16", "TIFF"), ("RGB", "BMP"), ("P", "GIF"), ("CMYK", "JPEG")]
ODD_NAMES = ("a,b\"c'.PNG", "caf\udce9\n.PNG")


def damaged(films: list[Path], count: int) -> Iterator[tuple[Path, bytes]]:
    """Copies of many films, saved anew, with a few bytes changed near their beginning or cut short.

    Each lies beside its film. Many copies of one film would be one group, which no split divides.
    """
    rng = random.Random(1)
    for number in range(count):
        film, (mode, kind) = films[number % len(films)], rng.choice(FORMATS)
        small = read_grey(film.read_bytes()).reduce(2)
        content = bytearray(encoded(small.convert(mode), kind))
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(400)] = rng.randrange(256)
        end = rng.choice((None, rng.randrange(len(content))))
        yield film.with_name(f"{number}.{kind}"), bytes(content[:end])


def predict(folder: Path) -> dict[str, dict]:
    """The lines of infer.py's table by the name of the file."""
    infer.main(["--run", "first", "--out", "table.json", str(folder)])
    return {Path(line["file"]).name: line for line in json.loads(Path("table.json").read_text())}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF files
@pytest.mark.usefixtures("place")
def test_bad_images_are_left_out_alike(drawn: Path, record_property: Callable) -> None:
    folder = Path(shutil.copytree(drawn / "images", "films")) / "Fractured"
    films = [film for film in sorted(Path("films").glob("*/*")) if not scan_image(film).error]
    good = {f"{name}.png": content for name, content in test_images.SAME.items()}
    good |= dict.fromkeys(ODD_NAMES, test_images.PNG)
    unusable = [*test_images.BAD.values(), *test_dicom.REFUSED.values(), b""]
    bad = {f"bad {number}.dcm": content for number, content in enumerate(unusable)}
    files = {folder / name: content for name, content in (good | bad).items()}
    files |= damaged(films, 60 * REPEATS)
    for path, content in files.items():
        path.write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / ".hidden.jpg").write_bytes(test_images.PNG)
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
            assert p == pytest.approx(lines["L.png"]["p_fractured"], abs=0.02), name
        elif name in alone and p is not None:
            assert p == pytest.approx(alone[name]["p_fractured"], abs=1e-5)
        assert p is None or name not in bad, name
    record_property("bad images tried", len(files))
