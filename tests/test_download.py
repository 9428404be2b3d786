"""Getting the data: whole and checked, or not at all and one line that says what to do."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fracture.cli import InputError
from fracture.data.download import download, obtain, unpack
from tests.conftest import REPEATS, ROOT, files_in, kill, run_script

Count = Callable[[str, object], None]

NOWHERE = "http://127.0.0.1:9/FracAtlas.zip"  # nothing listens on the discard port


@pytest.fixture(scope="module")
def archive(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn data set as figshare gives FracAtlas: a zip with one folder in it."""
    path = tmp_path_factory.mktemp("archive") / "FracAtlas.zip"
    shutil.make_archive(str(path.with_suffix("")), "zip", drawn.parent, drawn.name)
    return path


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[str]:
    """A server of the archive on this machine; other paths misbehave as real servers did."""
    content = archive.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = {"/missing": 404, "/empty": 202, "/broken": 500}.get(self.path, 200)
            body = {"/good": content, "/wrong": content[:-1] + b"!", "/cut": content}
            body["/slow"] = content
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.get(self.path, b""))))
            self.end_headers()
            sent = body.get(self.path, b"")
            if self.path == "/slow":
                with suppress(BrokenPipeError, ConnectionResetError):
                    for begin in range(0, len(sent), len(sent) // 10):
                        self.wfile.write(sent[begin : begin + len(sent) // 10])
                        time.sleep(0.01)
            else:
                self.wfile.write(sent[: len(sent) // 2] if self.path == "/cut" else sent)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_download_is_unpacked_into_the_data_root_and_split(
    server: str, archive: Path, drawn: Path, tmp_path: Path
) -> None:
    address = ("--data_url", f"{server}/good", "--data_md5", md5(archive))
    done = run_script(tmp_path, "split_dataset.py", *address)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(tmp_path / "data" / "FracAtlas") == files_in(drawn)
    from_folder = run_script(
        tmp_path, "split_dataset.py", "--data_root", str(drawn), "--split_dir", "other"
    )
    assert from_folder.returncode == 0
    first, second = (tmp_path / name / "manifest.csv" for name in ("data/split", "other"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/wrong", "another md5"),
        ("/cut", "ChunkedEncodingError"),
        ("/missing", "status 404"),
        ("/empty", "another md5"),
        ("/broken", "status 500"),
    ],
)
def test_what_is_not_the_file_is_not_kept(
    server: str, archive: Path, tmp_path: Path, path: str, reason: str
) -> None:
    address = ("--data_url", f"{server}{path}", "--data_md5", md5(archive))
    refused = run_script(tmp_path, "split_dataset.py", *address)
    *bars, line = refused.stderr.strip().split("\n")
    assert (refused.returncode, bars) == (2, [])
    assert reason in line
    assert f"{server}{path}" in line
    assert md5(archive) in line
    assert "data/FracAtlas.zip" in line
    assert files_in(tmp_path) == {}


def test_after_a_broken_download_the_next_one_succeeds(
    server: str, archive: Path, tmp_path: Path
) -> None:
    target = tmp_path / "FracAtlas.zip"
    with pytest.raises(InputError, match="ChunkedEncodingError"):
        download(f"{server}/cut", md5(archive), target)
    assert list(tmp_path.iterdir()) == []
    download(f"{server}/good", md5(archive), target)
    assert target.read_bytes() == archive.read_bytes()


def test_a_killed_download_or_unpacking_is_not_taken_for_a_whole_one(
    server: str, archive: Path, drawn: Path, tmp_path: Path, record_property: Count
) -> None:
    """Nor does anything stay of it, once the next one has ended."""
    rng, survived, data = random.Random(5), 0, tmp_path / "data"
    address = ("--data_url", f"{server}/slow", "--data_md5", md5(archive))
    for _ in range(REPEATS):
        survived += kill(tmp_path, rng.uniform(0, 0.4), data.exists, "split_dataset.py", *address)
        if (data / "FracAtlas.zip").exists():
            assert md5(data / "FracAtlas.zip") == md5(archive)
        if (data / "FracAtlas").exists():
            assert files_in(data / "FracAtlas") == files_in(drawn)
            done = run_script(tmp_path, "split_dataset.py", *address, "--force")
            assert done.returncode == 0, done.stderr
            assert {path.name for path in data.iterdir()} <= {"FracAtlas", "FracAtlas.zip", "split"}
            shutil.rmtree(data)
    done = run_script(tmp_path, "split_dataset.py", *address, "--force")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in data.iterdir()} == {"FracAtlas", "FracAtlas.zip", "split"}
    assert files_in(data / "FracAtlas") == files_in(drawn)
    record_property("kills survived in the download", survived)


def test_a_download_leads_nowhere_without_https(archive: Path, tmp_path: Path) -> None:
    """By a redirection to an address that is not this machine's own."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Host"])
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{httpd.server_port}/films.zip")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        own = f"127.0.0.1:{httpd.server_port}"
        with pytest.raises(InputError, match=r"leads to http://127\.0\.0\.2.*not https"):
            download(f"http://{own}/", md5(archive), tmp_path / "FracAtlas.zip")
        httpd.shutdown()
    assert asked == [own]
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_one_line_says_what_to_put_where(tmp_path: Path) -> None:
    refused = run_script(tmp_path, "split_dataset.py", "--data_url", NOWHERE)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    for told in (NOWHERE, "fe9da2c7c285915ebee69dfdab8fd396", "data/FracAtlas.zip"):
        assert told in refused.stderr


def test_a_full_disk_is_named_and_leaves_nothing(
    server: str, archive: Path, tmp_path: Path
) -> None:
    """On a file system of 64 KiB, in a mount namespace of its own."""
    code = (
        "import sys; from pathlib import Path; from fracture.data.download import download;"
        "from fracture.cli import exit_status\n"
        "with exit_status(): download(sys.argv[1], sys.argv[2], Path('small/FracAtlas.zip'))"
    )
    python = [sys.executable, "-c", code, f"{server}/good", md5(archive)]
    (tmp_path / "small").mkdir()
    mounted = 'mount -t tmpfs -o size=64k none small && { "$@"; s=$?; ls -A small; exit $s; }'
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted, "sh", *python],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert done.returncode == 2
    assert "FracAtlas.zip: No space left on device" in done.stderr
    assert done.stdout.splitlines()[1:] == []


def test_a_zip_that_is_there_is_unpacked_beside_itself_and_once(
    archive: Path, drawn: Path, tmp_path: Path
) -> None:
    shutil.copy(archive, tmp_path / "My films.zip")
    for _ in range(2):
        folder = obtain(tmp_path / "My films.zip", NOWHERE, "")
        assert folder == tmp_path / "My films"
        assert files_in(folder) == files_in(drawn)
    assert {path.name for path in tmp_path.iterdir()} == {"My films", "My films.zip"}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_no_mutation_of_a_zip_is_more_than_refused(tmp_path: Path) -> None:
    small = zipped(tmp_path / "small.zip", {"images/F/a.jpg": b"abc" * 9, "b/ä.jpg": b"x"})
    content, rng = small.read_bytes(), random.Random(0)
    refused = 0
    for i in range(400):
        mutant = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        (tmp_path / "mutant.zip").write_bytes(mutant)
        try:
            unpack(tmp_path / "mutant.zip", tmp_path / f"{i}")
        except InputError:
            refused += 1
            assert not (tmp_path / f"{i}").exists()
    assert 100 < refused < 400


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "images\\F\\a.jpg"]
)
def test_no_path_of_an_archive_leaves_its_folder(tmp_path: Path, name: str) -> None:
    bad = zipped(tmp_path / "bad.zip", {"images/F/a.jpg": b"x", name: b"evil"})
    with pytest.raises(InputError, match=r"outside|one name"):
        unpack(bad, tmp_path / "sub" / "bad")
    assert files_in(tmp_path).keys() == {"bad.zip"}


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "bomb.zip", {"images/F/a.jpg": bytes(10_000_000)})
    with pytest.raises(InputError, match="10,000,000 bytes"):
        unpack(bomb, tmp_path / "bomb")
    assert files_in(tmp_path).keys() == {"bomb.zip"}


def test_a_damaged_zip_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[: len(content) // 2], b"", b"no zip at all"):
        (tmp_path / "bad.zip").write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be unpacked"):
            unpack(tmp_path / "bad.zip", tmp_path / "bad")
        assert files_in(tmp_path).keys() == {"bad.zip"}


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"neither a folder nor a \.zip"):
        obtain(tmp_path / "notes.txt", NOWHERE, "")
