"""What several tests share: drawn radiographs, random weights, a trained project."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from filelock import FileLock

os.environ["WANDB_MODE"] = "disabled"  # where the settings say "auto"

import finetune
import infer
import split_dataset
import train
from fracture.cli import InputError, run_script
from fracture.data.synthetic import draw_data_set
from fracture.models.backbone import architecture

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("FRACATLAS", ROOT.parent / "shared" / "FracAtlas"))
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
LITE = ("--backbone", "efficientnet-lite0")
MAINS = {f"{script.__name__}.py": script.main for script in (split_dataset, train, finetune, infer)}

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.conftest"])

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# How often the tests of kills and bit flips repeat; with more than one, all slow tests run too.
REPEATS = int(os.environ.get("KILLS", 1))
slow = pytest.mark.skipif(REPEATS == 1, reason="make soak runs it")

# One thread a process whatever the machine has: sums are then taken in one order everywhere, and
# the tests' processes do not fight over its cores.
torch.set_num_threads(1)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


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


@pytest.fixture(scope="module")
def trained_project(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the drawn data was split and the run "first" trained and tested.

    Each file of tests has its own copy. A test that runs the scripts there changes into it.
    """

    def work(folder: Path) -> None:
        with inside(folder):
            split_dataset.main(["--data_root", str(drawn)])
            train.main([*LITE, "--run", "first"])
            infer.main([])

    own = tmp_path_factory.mktemp("own") / "project"
    shutil.copytree(made_once(tmp_path_factory, "project", work), own, symlinks=True)
    return own


@pytest.fixture
def project(trained_project: Path, monkeypatch: Patch) -> Path:
    """The trained project as the current folder."""
    monkeypatch.chdir(trained_project)
    return trained_project


def run_expecting_error(main: Callable[[list[str]], object], *argv: str) -> str:
    """The one line that a script's main ends in for wrong input."""
    with pytest.raises(InputError) as error:
        main([*argv])
    line = str(error.value)
    assert "\n" not in line
    return line


def run_process(
    cwd: Path, script: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as a newcomer would: no terminal, no home, no wandb account."""
    hidden = ("WANDB_", "NETRC", "HOME", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env = {**kept, "HOME": str(cwd), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def fork(cwd: Path, work: Callable[..., object], *given: object) -> BaseProcess:
    """Begin a module's function in a copy of a process that has only imported, which takes long.

    What it prints goes to output.txt and errors.txt. This process itself is not copied: the copy
    could wait forever for a lock that one of its threads had.
    """
    for name in ("output.txt", "errors.txt"):
        (cwd / name).write_text("")
    process = SERVER.Process(target=_begin, args=(cwd, work, given))
    process.start()
    return process


def _begin(cwd: Path, work: Callable[..., object], given: Sequence[object]) -> None:
    os.chdir(cwd)
    with Path("output.txt").open("w", 1) as sys.stdout, Path("errors.txt").open("w", 1) as errors:
        sys.stderr = errors
        work(*given)


def fork_script(cwd: Path, script: str, *arguments: str) -> BaseProcess:
    """Begin a script with its arguments, as `fork` does."""
    return fork(cwd, run_main, script, arguments)


def run_main(script: str, arguments: Sequence[str]) -> None:
    sys.argv = [script]
    run_script(lambda: MAINS[script]([*arguments]))


def forget_the_project() -> None:
    """Let a copy of this process import it anew, from another folder or as another rank."""
    for name in [name for name in sys.modules if re.match("train|finetune|infer|fracture", name)]:
        del sys.modules[name]


def wait_until(is_true: Callable[[], object], process: BaseProcess) -> None:
    """Or until the process has ended."""
    deadline = time.monotonic() + 60
    while process.is_alive() and not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(
    cwd: Path, delay: float, has_begun: Callable[[], bool], script: str, *arguments: str
) -> bool:
    """Start a script and SIGKILL it some seconds after its work has begun; False if it ended."""
    process = fork_script(cwd, script, *arguments)
    wait_until(has_begun, process)
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), (cwd / "errors.txt").read_text()
    return process.exitcode == -9


def files_in(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@torch.no_grad()
def random_network(name: str, pixels: torch.Tensor, path: Path) -> Any:
    """A network of the library's with random weights, which are saved too.

    Its BatchNorm statistics come from one train-mode pass of the pixels: with their initial values
    the activations of a random network die out on the way.
    """
    torch.manual_seed(0)
    network: Any = architecture(name).build(pixels.shape[-1])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of the pass, not a moving average
    network.train().extract_features(pixels)
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.fixture(scope="session")
def b6_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-B6 with RANDOM weights, as a file that the setting `weights` takes."""
    path = tmp_path_factory.mktemp("weights") / "random-b6.pth"
    random_network("efficientnet-b6", torch.randn(8, 3, 224, 224), path)
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests of faults counted with `record_property`."""
    totals: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        totals.update(dict(report.user_properties))
    for what, count in totals.items():
        terminalreporter.write_line(f"{what}: {count:,}")
