"""A trained run, as infer.py uses it: its folder, its checkpoint and its classifier."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fracture.cli import InputError, one_line
from fracture.config import Config, FinetuneConfig
from fracture.data.manifest import FILE_NAME, read_manifest
from fracture.distributed import RANK
from fracture.models.classifier import Classifier, load_classifier
from fracture.models.detector import Detector
from fracture.runs.checkpoint import load_best
from fracture.runs.find import find_run
from fracture.settings import read_config

OTHER_SPLIT = "the run starts from one on another split, which may have trained on its test films"
PACKAGES = ("torch", "efficientnet-pytorch", "pillow", "numpy", "scikit-learn")


@dataclass(frozen=True)
class TrainedRun:
    """A run with a best epoch.

    Attributes:
        folder: runs/NAME/.
        checkpoint: content of best.pt.
        settings: of the training, with the paths of the machine that it ran on.
        classifier: ready to use.
    """

    folder: Path
    checkpoint: dict[str, Any]
    settings: Config
    classifier: Classifier

    def find_split(self, config: Config) -> Path:
        """The split that the run was trained on: the configured one, or where it was then.

        Raises:
            InputError: neither is that split; test images of another may have trained the run.
        """
        configured, then = Path(config.split_dir), Path(self.settings.split_dir)
        for folder in (configured, then):
            found = (folder / FILE_NAME).is_file() and read_manifest(folder)[1]
            if found == self.checkpoint["manifest_sha256"]:
                if folder != configured:
                    print(f"{configured} is not the run's split: testing on its own, {folder}")
                return folder
        hint = "make that split again with its seed and data, or pass --split_dir"
        raise InputError(f"{configured} and {then} are not the split of this run; {hint}")

    def wandb_mode(self, config: Config) -> str:
        """The mode of the test; a training that sent nothing is tested without sending anything."""
        from fracture.runs.tracking import pick_mode  # a second, which a film need not wait

        private = self.settings.wandb_mode in ("offline", "disabled")
        follow = config.wandb_mode == "auto" and private
        return pick_mode(self.settings.wandb_mode if follow else config.wandb_mode)

    def metadata(self) -> dict[str, Any]:
        """What the results belong to and depend on: names, hashes and versions."""
        recipe, split = self.checkpoint["recipe"], self.checkpoint["manifest_sha256"]
        return {
            "run": self.folder.name,
            "backbone": recipe["backbone"],
            "weights": self.checkpoint["weights"],
            "best_epoch": self.checkpoint["epoch"],
            "positive_class": self.checkpoint["positive_class"],
            "manifest_sha256": split,
            "provenance": {
                "split (sha256 of its manifest)": split,
                "backbone's weights": recipe["weights"],
                "preprocessing": f"version {recipe['preprocessing']}",
                "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
                **({"caution": OTHER_SPLIT} if saw_another_split(self.checkpoint) else {}),
            },
        }


def load_trained(config: Config, precision: str) -> TrainedRun:
    """Load the configured run, by default the latest, and print what it is.

    Its best epoch suffices if the paths are configured: then `config` stands in for its settings.

    Raises:
        InputError: there is no such run, or it is damaged.
    """
    folder = find_run(config.run)
    checkpoint, file = load_best(folder), folder / "config.yaml"
    settings = read_config(file) if file.is_file() else config
    weights_file = settings.weights if Path(settings.weights).is_file() else config.weights
    classifier = load_classifier(checkpoint, weights_file, precision)
    weights = "RANDOM" if checkpoint["weights"] == "none" else checkpoint["weights"]
    name = f"{classifier.spec.backbone}, {weights} weights"
    print(f"run {folder.name}, epoch {checkpoint['epoch']}: {name}")
    return TrainedRun(folder, checkpoint, settings, classifier)


def start_from(name: str, network: Detector, origin: dict[str, Any]) -> None:
    """Give a network the weights of a run: all of them, or the head's if it trained no others.

    Args:
        name: of the run.
        network: of the new run.
        origin: the new run's provenance, to which the splits of those before it are added.

    Raises:
        InputError: there is no such run, or its network is another.
    """
    folder = find_run(name)
    checkpoint = load_best(folder)
    part = network if checkpoint.get("script") == FinetuneConfig.script else network.head
    try:
        then, now = checkpoint["recipe"], network.spec.cache_key()
        for key in ("backbone", "normalisation"):
            if then[key] != now[key]:
                raise ValueError(f"its {key} is {then[key]}")
        part.load_state_dict(checkpoint["head"])
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 120)
        raise InputError(f"--init: {folder} holds another network: {reason}") from error
    before = checkpoint.get("earlier_splits", [])
    origin["earlier_splits"] = [*before, checkpoint["manifest_sha256"]]
    if saw_another_split(origin) and RANK == 0:
        print(f"caution: {OTHER_SPLIT}")


def saw_another_split(checkpoint: dict[str, Any]) -> bool:
    """Did any of the runs that the weights went through train on another split?"""
    return not {*checkpoint.get("earlier_splits", [])} <= {checkpoint["manifest_sha256"]}
