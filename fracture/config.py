"""Every setting's name, type and range; config.yaml holds the values and the meanings."""

import re
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs")
BOXED = ROOT / "pretrained"  # the bundled model; below the package where it is installed
BOXED = BOXED if BOXED.is_dir() else Path(__file__).parent / BOXED.name
OPERATING_POINTS = ("protocol", "sensitivity90", "youden")  # the first decides at p = 0.5
MACHINE_PATHS = ("data_root", "data_url", "split_dir", "cache_dir")
FOR_SPLITTING = {
    "data_root", "data_url", "data_md5", "split_dir", "fractions", "folds", "groups",
    "positive_class", "negative_class", "seed",
}  # fmt: skip
FOR_TESTING = {
    "split_dir", "cache_dir", "run", "weights", "device", "precision", "workers", "wandb_mode",
    "wandb_project",
}  # fmt: skip

Fit = Literal["squash", "letterbox"]
VIEW = r"(squash|letterbox)-[1-9]\d\d(-mirror)?"
WandbMode = Literal["auto", "online", "offline", "disabled"]
AnyConfig = TypeVar("AnyConfig", bound="Config")


@dataclass(frozen=True)
class Config:
    """The settings that all scripts share.

    Raises:
        ValueError: a value is out of range.
    """

    data_root: str
    data_url: str
    data_md5: str
    split_dir: str
    cache_dir: str
    fractions: tuple[float, float, float]
    folds: int
    groups: str | None
    positive_class: str
    negative_class: str | None
    run: str | None
    backbone: str
    weights: str
    image_size: int
    fit: Fit
    views: list[str]
    average_views: bool
    epochs: int
    batch_size: int
    lr: float
    dropout: float
    select_by: Literal["val_accuracy", "val_loss", "val_roc_auc"]
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    workers: int | Literal["auto"]
    wandb_mode: WandbMode
    wandb_project: str

    script: ClassVar = "train.py"
    files: ClassVar[tuple[Path, ...]] = (ROOT / "config.yaml",)
    # Settings of other scripts; a file may hold them, but as flags they would be ignored.
    unused: ClassVar[set[str]] = FOR_SPLITTING - {"split_dir", "positive_class", "seed"}
    instead: ClassVar = "--help lists what it uses"
    run_name: ClassVar = r"(?!latest$)\w[\w.-]{,99}"

    def __post_init__(self) -> None:
        parts, run, workers = self.fractions, self.run or "any", self.workers
        a_run = re.fullmatch(self.run_name, run)
        good_views = all(re.fullmatch(VIEW, view) for view in self.views)
        a_split = min(parts) > 0 and abs(sum(parts) - 1) < 1e-6
        for name, fits, allowed in (
            ("fractions", a_split, "shares that add up to 1"),
            ("folds", self.folds == 0 or 3 <= self.folds <= 100, "0 (no folds), or 3 to 100"),
            ("run", a_run, "a plain folder name"),
            ("image_size", 32 <= self.image_size <= 2048, "32 to 2048"),
            ("views", good_views, "FIT-SIZE or FIT-SIZE-mirror, of 100 to 999 pixels"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "a number greater than 0"),
            ("dropout", 0 <= self.dropout < 1, "0 or more, less than 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("workers", workers == "auto" or 0 <= workers <= 256, "auto, or 0 to 256"),
            ("wandb_project", re.fullmatch(r"[^/\\#?%:]+", self.wandb_project), r"no / \ # ? % :"),
        ):
            self.check(name, bool(fits), allowed)

    def check(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


@dataclass(frozen=True)
class SplitConfig(Config):
    """The same for split_dataset.py."""

    script = "split_dataset.py"
    unused = {*get_annotations(Config)} - FOR_SPLITTING


@dataclass(frozen=True)
class InferConfig(Config):
    """The same for infer.py, which takes most settings from the run; `run` may be a path."""

    script = "infer.py"
    unused = {*get_annotations(Config)} - FOR_TESTING
    instead = "the run brings its own"
    run_name = ".+"


@dataclass(frozen=True)
class PageConfig(InferConfig):
    """The same for app.py."""

    script = "app.py"
    unused = {*get_annotations(Config)} - {"run", "weights", "device", "precision"}


@dataclass(frozen=True)
class ExportConfig(InferConfig):
    """The same for export.py."""

    script = "export.py"
    unused = {*get_annotations(Config)} - {"run", "weights"}


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """The settings of finetune.py; recipes/finetune.yaml holds what it adds and changes."""

    init: str | None
    frozen: float
    box_weight: float
    cell_weight: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    clip: float
    ema: float
    mirror: bool
    turn: float
    shift: float
    zoom: float
    contrast: float
    brightness: float

    script = "finetune.py"
    unused = Config.unused | {"views", "average_views"}
    files = (*Config.files, ROOT / "recipes" / "finetune.yaml")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("box_weight", "cell_weight", "weight_decay"):
            self.check(name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        for name in ("warmup", "label_smoothing", "ema", "zoom", "contrast"):
            self.check(name, 0 <= getattr(self, name) < 1, "0 or more, less than 1")
        self.check("frozen", 0 <= self.frozen <= 1, "0 to 1")
        for name in ("shift", "brightness"):
            self.check(name, 0 <= getattr(self, name) <= 0.5, "0 to 0.5")
        self.check("turn", 0 <= self.turn <= 180, "0 to 180")
        self.check("clip", self.clip > 0, "a number greater than 0")


def run_folder(name: str) -> Path:
    """The folder of a run, from its name or its path; `pretrained` is the bundled one."""
    folder = Path(name) if "/" in name else RUNS / name
    return BOXED if name == BOXED.name and not folder.is_dir() else folder


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without this machine's paths, for checkpoints, reports and wandb."""
    kept = {name: value for name, value in settings.items() if name not in MACHINE_PATHS}
    weights, fractions = Path(settings["weights"]).name, [*settings["fractions"]]
    return kept | {"weights": weights, "fractions": fractions}
