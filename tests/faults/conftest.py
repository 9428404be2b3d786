"""What the tests of faults share: a project to damage, a machine with other disks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Patch


@pytest.fixture
def place(trained_project: Path, drawn: Path, tmp_path: Path, monkeypatch: Patch) -> Path:
    """The current folder, to be damaged: drawn data, its split, a warm cache, the run "first"."""
    (tmp_path / "drawn").symlink_to(drawn)
    for name in ("data", "cache", "runs"):
        shutil.copytree(trained_project / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_another_machine(
    setup: str, *command: str, after: str = "true", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments where shell commands, as root, have mounted other file systems.

    Those of `after` find what lies there. The test is skipped where the kernel does not let us.
    """
    shell = ["unshare", "--mount", "--uts", "--map-root-user", "sh", "-ec"]
    if subprocess.run([*shell, "mount -t tmpfs none /mnt"], capture_output=True).returncode:
        pytest.skip("needs user and mount namespaces")
    script = [*shell, f'{setup}; s=0; "$@" || s=$?; {after}; exit $s', "sh", sys.executable]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([*script, *command], env=env, capture_output=True, text=True)


def results(project: Path) -> list[bytes]:
    """What infer.py found for the run "first"."""
    test = project / "runs/first/test"
    return [(test / name).read_bytes() for name in ("metrics.json", "predictions.csv")]
