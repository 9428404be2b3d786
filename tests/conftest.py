"""What several tests share: drawn radiographs, random weights, scripts as a person runs them."""

from __future__ import annotations

import gc
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fracture.data.synthetic import draw_data_set
from fracture.models.backbone import Backbone
from tests import forked

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("FRACATLAS", ROOT.parent / "shared" / "FracAtlas"))

Refusal = Callable[..., str]

LITE = ("--backbone", "efficientnet-lite0")
QUIET = ("--wandb_mode", "disabled")

# Of each stage, and of whatever else is tried often. More than one: all slow tests run too.
REPEATS = int(os.environ.get("KILLS", 1))
soak = pytest.mark.skipif(REPEATS == 1, reason="make soak runs it")

# One thread a process whatever the machine has: sums are then taken in one order everywhere, and
# the tests' processes do not fight over its cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real() -> Path:
    """FracAtlas itself, where it lies beside the project or where FRACATLAS says."""
    if not (REAL / "images").is_dir():
        pytest.skip("needs the real FracAtlas: set FRACATLAS to its folder")
    return REAL


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the tests' processes to need it makes, for all of them."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.with_suffix(".made").exists():
            folder.mkdir()
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of drawn radiographs in FracAtlas' layout."""

    def draw(folder: Path) -> None:
        draw_data_set(folder / "FracAtlas", count=80, seed=1)

    return made_once(tmp_path_factory, "drawn", draw) / "FracAtlas"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests of faults counted."""
    totals: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        totals.update(dict(report.user_properties))
    for what, count in totals.items():
        terminalreporter.write_line(f"{what}: {count:,}")


def files_in(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run_script(
    cwd: Path, name: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a newcomer would: no terminal, no home, no wandb account."""
    hidden = ("WANDB_", "NETRC", "HOME", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env = {**kept, "HOME": str(cwd), "OMP_NUM_THREADS": "1", **variables}
    return forked.run(cwd, ROOT / name, arguments, env)


def kill(
    cwd: Path,
    delay: float,
    begun: Callable[[], bool],
    script: str,
    *arguments: str,
    **variables: str,
) -> bool:
    """Start a script, kill it some seconds after it has begun its work; False if it ended before.

    `begun` is asked again and again; what it asks for is the script's work.
    """
    with (cwd / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / script), *arguments],
            cwd=cwd, stdout=output, stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while process.poll() is None and not begun():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        status = process.wait()
    assert status in (0, -9), (cwd / "output.txt").read_text()
    return status == -9


def on_another_machine(
    cwd: Path, setup: str, name: str, *arguments: str, after: str = "true", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script where other file systems are mounted, by shell commands as root before it.

    Those after it find what lies on these file systems; "$@" runs the script again. The test is
    skipped where the kernel does not let us.
    """
    command = ["unshare", "--mount", "--uts", "--map-root-user", "sh", "-ec"]
    if subprocess.run([*command, "mount -t tmpfs none /mnt"], capture_output=True).returncode:
        pytest.skip("needs user and mount namespaces")
    script = [sys.executable, str(ROOT / name), *arguments]
    return subprocess.run(
        [*command, f'{setup}; s=0; "$@" || s=$?; {after}; exit $s', "sh", *script],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Iterator[Refusal]:
    """Runs a script in this process, which has done its imports; gives the line it ends in."""
    handlers = {sent: signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)}

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(ROOT / name), *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        status = end.value.code
        del end
        if name == "train.py":
            gc.collect()  # the lock on a run, which ends with a process, ends here as garbage
        line = capfd.readouterr().err
        assert (status, line.count("\n"), line.startswith(f"{name}: ")) == (2, 1, True), line
        assert line[:-1].isprintable()
        return line

    yield run
    for sent, handler in handlers.items():
        signal.signal(sent, handler)


@pytest.fixture(scope="session")
def b6_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-B6 with RANDOM weights, as a file that the setting `weights` takes.

    Its BatchNorm statistics come from one train-mode pass: with their initial values the
    activations of a random network die out on the way.
    """
    torch.manual_seed(0)
    net = Backbone("efficientnet-b6", 224, "imagenet").net
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of the passes seen, not a moving average
    torch.nn.Module.train(net)
    with torch.no_grad():
        net.extract_features(torch.randn(8, 3, 224, 224))
    path = tmp_path_factory.mktemp("weights") / "random-b6.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def workplace(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the drawn data was split, a run trained with defaults, and tested.

    Each file of tests has a copy of its own.
    """

    def work(folder: Path) -> None:
        for name, *arguments in (
            ("split_dataset.py", "--data_root", str(drawn)),
            ("train.py", *LITE, "--run", "first"),
            ("infer.py",),
        ):
            done = run_script(folder, name, *arguments)
            assert done.returncode == 0, done.stderr
            (folder / f"{name}.txt").write_text(done.stdout)

    own = tmp_path_factory.mktemp("own") / "workplace"
    shutil.copytree(made_once(tmp_path_factory, "workplace", work), own, symlinks=True)
    return own
