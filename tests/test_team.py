"""Several processes that torchrun starts make what one process makes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from tests.conftest import LITE, ROOT, run_script, soak

# One thread a process, as run_script has it: with more, sums may be taken in another order.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--")


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, str(ROOT / "train.py"), *LITE, *arguments],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def cached(folder: Path) -> bytes:
    (file,) = folder.rglob("features.bin")
    return file.read_bytes()


def test_two_processes_make_the_cache_and_the_head_of_one(workplace: Path) -> None:
    alone = ("--run", "alone", "--cache_dir", "cache-alone")
    assert run_script(workplace, "train.py", *LITE, *alone, **ENVIRONMENT).returncode == 0
    job = start(workplace, "--run", "together", "--cache_dir", "cache-together")
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert said.count("next: python infer.py") == said.count("features: ") == 1
    assert cached(workplace / "cache-together") == cached(workplace / "cache-alone")
    runs = [workplace / "runs" / name for name in ("alone", "together")]
    histories = [(run / "history.jsonl").read_text() for run in runs]
    assert histories[0] == histories[1]
    one, two = (torch.load(run / "best.pt", weights_only=True) for run in runs)
    assert torch.equal(one["head"]["linear.weight"], two["head"]["linear.weight"])
    assert (one["temperature"], one["thresholds"]) == (two["temperature"], two["thresholds"])

    # Less to do than there are processes: one record is lost.
    (file,) = (workplace / "cache-together").rglob("features.bin")
    file.write_bytes(file.read_bytes()[:-1])
    job = start(workplace, "--cache_dir", "cache-together", "--epochs", "1")
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert ", 1 not in cache-together" in said


@soak
def test_a_process_that_dies_ends_the_job_and_what_is_finished_is_kept(workplace: Path) -> None:
    cache = "cache-died"
    arguments = ("--image_size", "256", "--cache_dir", cache, "--epochs", "1")
    job = start(workplace, "--run", "died", *arguments)
    deadline = time.monotonic() + 60
    while not (files := [*(workplace / cache).rglob("features.bin")]):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = psutil.Process(job.pid).children()
    process = next(p for p in processes if p.environ().get("RANK") == "1")
    process.send_signal(signal.SIGKILL)
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "SIGKILL" in said
    assert "another process of this job has ended" in said or "train.py: terminated" in said
    kept = files[0].stat().st_size // (4 + 32 + 4 * 1280)
    assert kept > 0
    again = run_script(workplace, "train.py", *LITE, *arguments, **ENVIRONMENT)
    assert again.returncode == 0, again.stderr
    counts = re.search(r"features: (\d+) different images, (\d+) not in", again.stdout)
    assert counts
    assert int(counts[2]) == int(counts[1]) - kept > 0


def test_each_process_of_a_job_ends_in_one_line_when_the_input_is_wrong(workplace: Path) -> None:
    job = start(workplace, "--weights", "nowhere.pth")
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "train.py: weights: nowhere.pth is no file" in said
