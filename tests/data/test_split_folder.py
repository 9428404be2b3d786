"""The split's folders are what torchvision reads, and nothing that the manifest does not know."""

from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fracture.cli import InputError
from fracture.data.images import load_or_explain
from fracture.data.manifest import Row, write_manifest
from fracture.data.split_folder import SplitFolder
from tests.data.conftest import encoded


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A split with files of one name in subfolders."""
    rows = []
    for i, path in enumerate(("F/b/1.png", "F/B/1.png", "F/a 2.PNG", "F/ä.jpg", "N/1.png")):
        content = encoded(Image.new("L", (9, 5), 99 + i), "PNG")
        rows.append(Row(path, path[0], "train", path, "", sha256(content).hexdigest()))
        (tmp_path / rows[-1].path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / rows[-1].path).write_bytes(content)
    write_manifest(tmp_path, rows)
    return tmp_path


@pytest.mark.parametrize(("fixture", "name"), [("split_dir", "val"), ("nested", "train")])
def test_it_is_torchvisions_folder(request: pytest.FixtureRequest, fixture: str, name: str) -> None:
    split_dir = request.getfixturevalue(fixture)
    ours, theirs = SplitFolder(split_dir, name, 32, "letterbox"), ImageFolder(split_dir / name)
    assert (ours.classes, ours.samples) == (theirs.classes, theirs.samples)
    for i, ((path, target), row) in enumerate(zip(theirs.samples, ours.rows, strict=True)):
        image, label, reason = ours[i]
        assert (label, reason, f"{split_dir}/{row.path}") == (target, "", path)
        assert row.label == theirs.classes[label]
        assert image.equal(load_or_explain(Path(path), 32, "letterbox", row.sha256)[0])


def test_other_files_than_the_manifests_are_refused(nested: Path) -> None:
    (nested / "train/F/.DS_Store").touch()  # a hidden file is no image
    (nested / "train/F/ä.jpg").write_bytes(b"other")
    assert SplitFolder(nested, "train", 8, "squash")[1][2] == "changed since the split was made"
    (nested / "train/F/x.png").touch()
    with pytest.raises(InputError, match=r"x\.png is not in manifest\.csv; move it away \(1 such"):
        SplitFolder(nested, "train", 8, "squash")
    (nested / "train/F/a 2.PNG").unlink()
    with pytest.raises(InputError, match=r"a 2\.PNG is missing; split again: .* \(2 such"):
        SplitFolder(nested, "train", 8, "squash")
