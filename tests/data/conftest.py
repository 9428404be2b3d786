"""What the tests of the data share: settings, small files, and a split of the drawn data."""

import io
from pathlib import Path

import pytest
from PIL import Image

from fracture.config import SplitConfig
from fracture.data.manifest import Row
from fracture.data.splitting import make_splits, scan_dataset, write_splits
from fracture.settings import parse_settings, settings_parser


def settings(*argv: str) -> SplitConfig:
    return parse_settings(SplitConfig, settings_parser(SplitConfig), [*argv])[0]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def rows(drawn: Path) -> list[Row]:
    """The drawn files, scanned but not yet split."""
    return scan_dataset(drawn)


@pytest.fixture
def split_dir(rows: list[Row], drawn: Path, tmp_path: Path) -> Path:
    """A split of the drawn files."""
    config = settings("--split_dir", f"{tmp_path}/split", "--data_root", str(drawn))
    write_splits(make_splits(rows, config), drawn, config)
    return tmp_path / "split"
