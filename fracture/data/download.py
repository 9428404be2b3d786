"""Getting the data set: a folder as it is, a zip unpacked, or a download."""

import shutil
from pathlib import Path
from zipfile import ZipFile

from tqdm import tqdm

from fracture.atomic import staging_dir
from fracture.cli import InputError, one_line


def fetch_dataset(data_root: Path, url: str, md5: str, may_download: bool = True) -> Path:
    """The folder of a data set that is given as a folder or a zip, or is not there yet.

    Args:
        data_root: a folder, or a .zip that is unpacked beside itself. If neither exists, the
            archive may be downloaded to data_root.zip. Folders that wrap the data set are left out.
        url: of the archive.
        md5: of the archive, hexadecimal.

    Raises:
        InputError: there is no such data, or the archive cannot be downloaded or is damaged.
    """
    archive, folder = data_root.with_name(f"{data_root.name}.zip"), data_root
    if data_root.suffix.lower() == ".zip":
        archive, folder = data_root, data_root.with_suffix("")
    if not folder.is_dir():
        if not (archive.is_file() or may_download):
            hint = "fix the path, or pass --download to get FracAtlas there"
            raise InputError(f"{data_root}: no such folder or .zip; {hint}")
        if not archive.is_file():
            by_hand = f"get it by hand and put it at {archive}, or pass --data_root FOLDER_OR_ZIP"
            download(url, archive, f"md5:{md5.lower()}", by_hand)
        unpack(archive, folder)
    if (found := unwrap(folder)) != data_root:
        print(f"the data set is in {found}")
    return found


def unwrap(folder: Path) -> Path:
    """The data set below folders that hold nothing but one folder."""
    found = folder
    while len(inner := [p for p in found.iterdir() if p.is_dir() and p.name[0] not in "._"]) == 1:
        if inner[0].name.lower() in ("images", "fractured", "non_fractured"):
            break
        found = inner[0]
    return found


def download(url: str, path: Path, known_hash: str | None, by_hand: str) -> None:
    """Download a file; it gets its name only when it is complete.

    Args:
        url: where it is.
        path: where the file goes.
        known_hash: "md5:..." or "sha256:..." that the file must have; None takes any.
        by_hand: what the user can do instead, for the message.

    Raises:
        InputError: nothing came, or another file than expected.
    """
    import pooch  # here, and requests with it: half a second that only a download needs
    from requests import RequestException

    print(f"downloading {url}")
    bar = tqdm(total=1, desc=path.name, unit="B", unit_scale=True, disable=None)  # pooch sets total
    fetch = pooch.HTTPDownloader(progressbar=bar)
    pooch.get_logger().setLevel("ERROR")
    try:
        with staging_dir(path) as stage:
            pooch.retrieve(url, known_hash, "download", stage, downloader=fetch)
            (stage / "download").rename(path)
    except (RequestException, ValueError) as error:  # ValueError: it has another hash
        reason = one_line(error, 150)
        raise InputError(f"{url} could not be downloaded ({reason}): {by_hand}") from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip into a new folder, which appears only when it is complete.

    Raises:
        InputError: the archive is damaged or encrypted, or the disk is full. Nothing of it stays.
    """
    with staging_dir(folder) as stage:
        try:
            with ZipFile(archive) as file:
                file.extractall(stage)  # never outside: zipfile drops ".." and "/"
        except Exception as error:  # damaged bytes lead zipfile to eight kinds of error
            raise InputError(f"{archive} cannot be unpacked: {one_line(error)}") from error
        shutil.rmtree(stage / "__MACOSX", ignore_errors=True)
        stage.rename(folder)
