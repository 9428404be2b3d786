"""Getting the data: complete and checked, or not at all and one line that says what to do."""

import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest

import split_dataset
from fracture.cli import InputError
from fracture.data.download import fetch_dataset
from tests.conftest import files_in

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port
FILM = b"a radiograph" * 1000
FILES = dict.fromkeys(["images/F/1.jpg", "images/N/2.jpg"], FILM)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, FILM)
    return buffer.getvalue()


ARCHIVE = zipped(*(f"FracAtlas/{name}" for name in FILES))  # one folder in a zip, as figshare's
MD5 = hashlib.md5(ARCHIVE).hexdigest()
SERVED = {"/good": ARCHIVE, "/wrong": b"other", "/cut": ARCHIVE[:9999]}
MOVED = {"/moved": "/good"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = SERVED.get(self.path, b"")
        self.send_response(200 if content else 302 if self.path in MOVED else 404)
        self.send_header("Content-Length", str(len(ARCHIVE if self.path == "/cut" else content)))
        self.send_header("Location", MOVED.get(self.path, ""))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.parametrize("path", ["/good", "/moved"])
def test_the_archive_is_downloaded_once(server: str, tmp_path: Path, path: str) -> None:
    for address in (server + path, NOWHERE):
        folder = fetch_dataset(tmp_path / "data/FracAtlas", address, MD5.upper())
        assert files_in(folder) == FILES


def test_nothing_is_downloaded_for_a_mistyped_path(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"FracAtas: no such folder or \.zip; fix .*--download"):
        fetch_dataset(tmp_path / "FracAtas", f"{server}/good", MD5, may_download=False)
    assert not split_dataset.arguments(["--data_root", "FracAtas"])[1].download
    assert split_dataset.arguments([])[1].download
    assert split_dataset.arguments(["--data_root", "FracAtas", "--download"])[1].download


FAULTS = {"/wrong": "MD5 hash", "/cut": "IncompleteRead", "/missing": "404", "": "Max retries"}


@pytest.mark.parametrize("path", FAULTS)
def test_another_file_is_not_kept(server: str, tmp_path: Path, path: str) -> None:
    address = server + path if path else NOWHERE
    way_out = f"put it at {tmp_path}/FracAtlas.zip, or pass --data_root FOLDER_OR_ZIP"
    with pytest.raises(InputError, match=rf"^{address} .*{FAULTS[path]}.*{way_out}$"):
        fetch_dataset(tmp_path / "FracAtlas", address, MD5)
    assert list(tmp_path.iterdir()) == []
    assert fetch_dataset(tmp_path / "FracAtlas", f"{server}/good", MD5).is_dir()


@pytest.mark.parametrize("given", ["My films", "My films.zip"])
def test_a_zip_that_is_there_is_unpacked_beside_itself(tmp_path: Path, given: str) -> None:
    (tmp_path / "My films.zip").write_bytes(ARCHIVE)
    for _ in range(2):
        found = fetch_dataset(tmp_path / given, NOWHERE, "")
        assert found == tmp_path / "My films/FracAtlas"
        assert files_in(found) == FILES
    assert fetch_dataset(tmp_path, NOWHERE, "") == found  # two levels too high


UNPACKED = {
    "Atlas/F/1.jpg Atlas/N/1.jpg __MACOSX/Atlas/._1": "a/Atlas/F/1.jpg a/Atlas/N/1.jpg",
    "F/1.jpg ../2.txt /3.txt": "a/F/1.jpg a/2.txt a/3.txt",
    "images/1.jpg images/../../../2.txt": "a/images/1.jpg a/images/2.txt",
}


@pytest.mark.parametrize("names", UNPACKED)
def test_a_wrapping_folder_is_left_out_and_no_file_outside(tmp_path: Path, names: str) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(*names.split()))
    found = fetch_dataset(tmp_path / "a.zip", NOWHERE, "")
    assert (found.name == "Atlas") == ("Atlas" in names)
    assert files_in(tmp_path).keys() == {"a.zip", *UNPACKED[names].split()}


DAMAGED = {"cut": ARCHIVE[:-500], "empty": b"", "no zip": b"none"}
DAMAGED["changed"] = ARCHIVE.replace(FILM, FILM[:-1] + b"!")
DAMAGED["encrypted"] = ARCHIVE.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_zip_leaves_nothing(tmp_path: Path, damage: str) -> None:
    (tmp_path / "bad.zip").write_bytes(DAMAGED[damage])
    with pytest.raises(InputError, match=r"bad\.zip cannot be unpacked: \w.*$"):
        fetch_dataset(tmp_path / "bad.zip", NOWHERE, "")
    assert files_in(tmp_path).keys() == {"bad.zip"}
