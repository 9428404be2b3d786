"""The scripts as processes of their own, that start in a tenth of a second instead of four.

They are forked from one that has imported the libraries, and nothing of the project. All else is as
in a process that a person starts; the tests of kills and of the machine start such ones.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
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
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(
    cwd: Path, script: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run(..., stdin=DEVNULL, capture_output=True, text=True), within two minutes."""
    with TemporaryDirectory() as output:
        request = json.dumps([str(cwd), [str(script), *arguments], env, output])
        pipe = server().stdin
        assert pipe
        pipe.write(request.encode() + b"\n")
        pipe.flush()
        while not Path(output, "status").exists():
            assert server().poll() is None
            time.sleep(0.005)
        status = int(Path(output, "status").read_text())
        said = [Path(output, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([str(script), *arguments], status, *said)


def serve() -> None:
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # or each child would copy all of it, looking for garbage
    while request := sys.stdin.readline():
        if os.fork():
            continue  # with the next one, while a child waits for this one's end
        cwd, argv, env, output = json.loads(request)
        if script := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(script, 0)[1])
            Path(output, "new").write_text(str(status))
            Path(output, "new").rename(f"{output}/status")
            os._exit(0)
        signal.alarm(120)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number, file in enumerate((os.devnull, f"{output}/stdout", f"{output}/stderr")):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
        os._exit(become(argv[0]))
    os._exit(0)


def become(script: str) -> int:
    """Run a script, and end it but for the last second: the taking apart of all libraries."""
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve()
