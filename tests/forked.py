"""The scripts as processes of their own, that start in a tenth of a second instead of four.

They are forked from one that has imported the libraries, and nothing of the project. All else is as
in a process that a person starts; the fixture `workplace` and the tests of kills start such ones.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

LIBRARIES = (
    *("torch", "torch.utils.data", "torch._dynamo", "wandb", "matplotlib.figure", "jinja2"),
    *("efficientnet_pytorch", "efficientnet_lite_pytorch", "yaml", "jsonargparse", "PIL.Image"),
    *("scipy.stats", "scipy.spatial", "sklearn.linear_model", "sklearn.metrics"),
)


@cache
def server() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(
    cwd: Path, script: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run(..., stdin=DEVNULL, capture_output=True, text=True), within two minutes."""
    with TemporaryDirectory() as output:
        request = json.dumps([str(cwd), [str(script), *arguments], env, output])
        pipes = server()
        assert pipes.stdin
        assert pipes.stdout
        pipes.stdin.write(request.encode() + b"\n")
        pipes.stdin.flush()
        status = int(pipes.stdout.readline())
        said = [(Path(output) / name).read_text() for name in ("1", "2")]
    return subprocess.CompletedProcess([str(script), *arguments], status, *said)


def serve() -> None:
    for name in LIBRARIES:
        import_module(name)
    while request := sys.stdin.readline():
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        signal.alarm(120)
        cwd, argv, env, output = json.loads(request)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number, file in enumerate((os.devnull, f"{output}/1", f"{output}/2")):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
        return


if __name__ == "__main__":
    serve()
