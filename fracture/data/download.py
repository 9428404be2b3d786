"""Getting the data set: a folder as it is, a zip unpacked, or nothing yet and downloaded."""

from __future__ import annotations

import errno
import shutil
from http.client import HTTPMessage
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import HTTPRedirectHandler, Request
from zipfile import ZipFile

from tqdm import tqdm

from fracture.atomic import scratch
from fracture.cli import InputError, one_line
from fracture.config import is_safe

EXPANSION = 20  # JPEGs do not shrink in a zip; an archive that grows more than this is a bomb


def obtain(data_root: Path, url: str, md5: str) -> Path:
    """The folder of a data set that is given as a folder or a zip, or is not there yet.

    Args:
        data_root: a folder, or a .zip that is unpacked beside itself. If there is neither, the
            archive is downloaded to data_root.zip.
        url: of the archive.
        md5: of the archive, hexadecimal.

    Raises:
        InputError: it cannot be had, or the archive is damaged or not to be trusted.
    """
    if data_root.is_dir():
        return data_root
    if data_root.suffix.lower() == ".zip":
        archive, folder = data_root, data_root.with_suffix("")
    elif data_root.exists() or data_root.is_symlink():
        raise InputError(f"{data_root} is neither a folder nor a .zip")
    else:
        archive, folder = data_root.with_name(f"{data_root.name}.zip"), data_root
    if folder.is_dir():
        print(f"using {folder}, which lies beside {archive.name}")
        return folder
    if not archive.is_file():
        download(url, md5, archive)
    unpack(archive, folder)
    return folder


def download(url: str, md5: str, archive: Path) -> None:
    """Fetch a file; it gets its name only when it is whole, and after a break it starts anew.

    Raises:
        InputError: nothing came, or not the file with this md5.
    """
    import pooch  # here, and requests with it: half a second that only a download needs
    from requests import RequestException, Response

    def guard(response: Response, **_: object) -> None:
        target = urljoin(response.url, response.headers.get("Location", ""))
        if not is_safe(target):
            raise RequestException(f"it leads to {target}, which is not https://")

    print(f"downloading {url}")
    bar = tqdm(total=1, desc=archive.name, unit="B", unit_scale=True, disable=None)  # total: pooch
    fetch = pooch.HTTPDownloader(progressbar=bar, hooks={"response": guard})
    pooch.get_logger().setLevel("ERROR")  # what it says, we say in one line
    try:
        with scratch(archive) as folder:
            pooch.retrieve(url, f"md5:{md5.lower()}", "whole", folder, downloader=fetch)
            (folder / "whole").rename(archive)
    except RequestException as error:
        status = getattr(error.response, "status_code", None)
        own = str(error) if type(error) is RequestException else type(error).__name__
        reason = f"status {status}" if status else own
    except ValueError:
        reason = "what came has another md5"
    except OSError as error:
        raise InputError(f"{archive}: {error.strerror}") from error
    else:
        return
    raise InputError(
        f"{url} could not be downloaded ({reason}): get it by hand (its md5 is {md5}) and "
        f"put it at {archive}, or pass --data_root FOLDER_OR_ZIP"
    )


class SafeRedirects(HTTPRedirectHandler):
    """For urllib, with which torch downloads weights: the same guard as in `download`."""

    def redirect_request(
        self, req: Request, fp: IO, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_safe(newurl):
            raise URLError(f"it leads to {newurl}, which is not https://")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip into a new folder, which appears only when it is whole.

    A folder that holds all the rest of the archive is left out, so that `folder` is the data set
    itself.

    Raises:
        InputError: the archive is damaged, encrypted, names a path outside itself, or expands to
            more than `EXPANSION` times its size. Nothing stays of it.
    """
    with scratch(folder) as whole:
        try:
            with ZipFile(archive) as file:
                members = [member for member in file.infolist() if not member.is_dir()]
                names = [PurePosixPath(member.filename.replace("\\", "/")) for member in members]
                for path in names:
                    if path.is_absolute() or ".." in path.parts:
                        raise InputError(f"{archive}: names a path outside itself: {path}")
                if len(set(names)) < len(names):
                    raise InputError(f"{archive}: holds two files of one name; unpack it by hand")
                size = sum(member.file_size for member in members)
                if size > EXPANSION * archive.stat().st_size:
                    raise InputError(f"{archive}: would expand to {size:,} bytes, absurdly many")
                for member in tqdm(members, "unpacking", unit=" files", disable=None):
                    file.extract(member, whole)
        except InputError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise InputError(f"{folder}: {error.strerror}") from error
            raise InputError(f"{archive} cannot be unpacked: {error.strerror or error}") from error
        except Exception as error:  # whatever bytes may lead zipfile to: eight kinds have been seen
            raise InputError(f"{archive} cannot be unpacked: {one_line(error)}") from error
        shutil.rmtree(whole / "__MACOSX", ignore_errors=True)
        top = [path for path in whole.iterdir() if not path.name.startswith(".")]
        is_wrapped = len(top) == 1 and top[0].is_dir() and top[0].name.lower() != "images"
        (top[0] if is_wrapped else whole).rename(folder)
