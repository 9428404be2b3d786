"""A split's train, val or test folder as torchvision reads it, with what the manifest adds."""

from copy import copy
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from fracture.cli import InputError
from fracture.config import Config, Fit
from fracture.data.images import load_or_explain
from fracture.data.manifest import FILE_NAME, SPLIT_AGAIN, read_manifest


class SplitFolder(ImageFolder):
    """torchvision's ImageFolder of one split: the same files, in the same order, same classes.

    An item is (image, label, reason): (size, size) uint8 grey, the class index, and "" or why the
    file is unreadable. `rows` holds the manifest's row of each item, with group and digest.

    Args:
        split_dir: made by split_dataset.py.
        name: train, val or test.
        size: pixels a side.
        fit: squash or letterbox.

    Raises:
        InputError: there is no split, or its files are not those of the manifest.
    """

    def __init__(self, split_dir: Path, name: str, size: int, fit: Fit) -> None:
        self.split_dir, self.size, self.fit = split_dir, size, fit
        rows, self.manifest_sha256 = read_manifest(split_dir)
        listed = {row.path: row for row in rows if row.split == name}
        try:
            super().__init__(split_dir / name, is_valid_file=_is_visible)
        except FileNotFoundError as error:
            raise InputError(f"{split_dir / name}: no images; {SPLIT_AGAIN}") from error
        there = [Path(path).relative_to(split_dir).as_posix() for path, _ in self.samples]
        if odd := sorted(listed.keys() ^ set(there)):
            missing = f"is missing; {SPLIT_AGAIN}"
            fault = missing if odd[0] in listed else f"is not in {FILE_NAME}; move it away"
            raise InputError(f"{split_dir / odd[0]} {fault} ({len(odd)} such files)")
        self.rows = [listed[path] for path in there]

    def resized(self, size: int, fit: Fit) -> "SplitFolder":
        """The same images, seen otherwise."""
        other = copy(self)
        other.size, other.fit = size, fit
        return other

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        path, label = self.samples[index]
        image, reason = load_or_explain(path, self.size, self.fit, self.rows[index].sha256)
        return image, label, reason


def open_split(config: Config, *names: str) -> list[SplitFolder]:
    """The named folders of the configured split.

    Raises:
        InputError: as `SplitFolder`, or the positive class is not one of its classes.
    """
    size, fit = config.image_size, config.fit
    folders = [SplitFolder(Path(config.split_dir), name, size, fit) for name in names]
    if config.positive_class not in (classes := folders[0].classes):
        raise InputError(f"positive_class is {config.positive_class!r}; allowed: {classes}")
    return folders


def _is_visible(path: str) -> bool:
    return not Path(path).name.startswith(".")
