"""Draw a stand-in for FracAtlas: radiograph-like images made by code, nothing medical.

`python -m fracture.data.synthetic` draws 400 images, 112 Fractured and 288 Non_fractured, in
FracAtlas' own layout, sizes and modes and with its defects (`add_defects`). A ray at distance d
from the axis of a bone of radius R crosses 2 * sqrt(R^2 - d^2) cm of it; taking the medullary canal
away leaves the bright cortical edges of a radiograph.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from cmath import rect
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from fracture.data.skeleton import Tube, broken, fracture_sites, pose

HEADER = """image_id,hand,leg,hip,shoulder,mixed,hardware,multiscan,fractured,fracture_count,\
frontal,lateral,oblique"""
FRACTURED_SHARE = 0.28  # the real 0.18 would leave a 10 % test split of 400 too few positives
PIXELS_PER_CM = 454 / 43.2  # a 14 x 17 inch cassette, stored as 373 x 454


def shadow(canvas: np.ndarray, tube: Tube, scale: float) -> None:
    """Add to the canvas (for flesh: lift it to) the cm of matter that each ray crosses."""
    length, span = abs(tube.tail - tube.head), tube.tail - tube.head
    reach, middle = max(tube.radii) + abs(tube.bow), np.array(canvas.shape) / 2
    ends = np.array([(z.imag, z.real) for z in (tube.head, tube.tail)])
    low = np.clip(middle + (ends.min(0) - reach) * scale, 0, canvas.shape).astype(int)
    high = np.clip(middle + (ends.max(0) + reach) * scale, 0, canvas.shape).astype(int)
    box = slice(low[0], high[0]), slice(low[1], high[1])
    y, x = np.ogrid[box]
    z = ((x - middle[1] + 1j * (y - middle[0])) / scale - tube.head).astype(np.complex64)
    z *= np.complex64(span.conjugate() / length)
    along, across = z.real, z.imag
    t = np.clip(2 / length * along - 1, -1, 1)
    if tube.bow:
        across = (across - tube.bow * (1 - t * t)) / np.sqrt(1 + (4 * tube.bow / length * t) ** 2)
    # Flesh ends in a half sphere, bones end flatter.
    beyond = (1.0 if tube.kind == "f" else 2.5) * (along - np.clip(along, 0, length))
    off, flare = across * across + beyond * beyond, t**4
    first, shaft, last = np.array(tube.radii, np.float32)
    outer = shaft + flare * np.where(t < 0, first - shaft, last - shaft)
    matter = 2 * np.sqrt(np.maximum(outer * outer - off, 0))
    if tube.kind in "lb":
        canal = np.maximum(outer - tube.cortex * (1 - 0.7 * flare), 0)
        matter -= 2 * np.sqrt(np.maximum(canal * canal - off, 0)) * (0.8 - 0.28 * flare)
    for place, oblique, depth in tube.lines:
        matter *= 1 - depth * np.exp(-100 * (along - place * length - oblique * across) ** 2)
    if tube.cut:
        side, place, oblique = tube.cut
        edge = along - place * length - oblique * across - 0.12 * np.sin(5 * across + 99 * place)
        matter *= np.clip(0.5 - side * scale * edge, 0, 1)
    matter *= tube.density
    # Bones that join must merge, bones that overlap must add up: in between lies this.
    shared = 0 if tube.kind == "f" else 0.4 * np.minimum(canvas[box], matter)
    canvas[box] = np.maximum(canvas[box], matter) + shared


def expose(rng: Generator, tubes: list[Tube], shape: tuple[int, int], scale: float) -> np.ndarray:
    """Grey levels from 0 to 255 of the film behind the tubes: more absorbed, brighter."""
    layers = {kind: np.zeros(shape, np.float32) for kind in "fbm"}
    for tube in tubes:
        shadow(layers["b" if tube.kind == "l" else tube.kind], tube, scale)
    trabeculae = gaussian_filter(rng.standard_normal(shape, np.float32), 1.2)
    flesh = gaussian_filter(layers["f"], 0.2 * scale)
    matter = 0.13 * flesh + 0.45 * layers["b"] * (1 + 0.25 * trabeculae) + 8 * layers["m"]
    matter = np.maximum(matter, 0) / np.percentile(matter[flesh > 0.5], 90)
    grey = gaussian_filter(1 - np.exp(-rng.uniform(0.8, 1.2) * matter**1.4), 0.6)
    grey += 0.5 * (grey - gaussian_filter(grey, 0.5 * scale))  # CR plates are edge-enhanced
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    heel, streaks = rng.normal(0, 0.2), gaussian_filter(rng.standard_normal(x.shape, np.float32), 2)
    fog = rng.uniform(0.03, 0.17) * (1 + heel * y[:, None]) + 0.012 * streaks
    for edge in (x, -x, y[:, None], -y[:, None]):
        if rng.random() < 0.06:  # a collimator blade: what gets no X-rays stays white
            fog += 1 / (1 + np.exp(40 * (rng.uniform(0.85, 0.98) - edge)))
    return 255 * np.clip(fog + (1 - fog) * grey, 0, 1)


def radiograph(seed: int, path: Path) -> dict[str, object]:
    """Draw one file and return its csv row; nothing but breaks and metal depends on the class."""
    number, fractured = int(path.stem[3:]), path.parent.name == "Fractured"
    rng = default_rng([seed, number])
    (wide, child), mode = rng.random(2) < (0.27, 0.3), "L" if rng.random() < 0.15 else "RGB"
    shape, scale = (373, 454) if wide else (454, 373), PIXELS_PER_CM * rng.uniform(1.2, 1.8)
    bones, row = pose(rng)
    tilt = rect(1, rng.normal(0, 0.09)) * (1j if wide and not row["mixed"] else 1)
    bones = [bone.turned(0, tilt) for bone in bones]
    sites = fracture_sites(rng, bones, np.array(shape) / scale) if fractured else {}
    hardware = fractured and rng.random() < 0.14
    # What follows has its own stream, so that the look owes nothing to the class.
    rng, breaks = default_rng([seed, number, 1]), default_rng([seed, number, 2])
    tubes = []
    for k, bone in enumerate(bones):
        if bone.kind == "l":  # look-alikes of a fracture: growth plates and a nutrient canal
            canal = (rng.uniform(0.3, 0.7), 3, rng.uniform(0, 0.3))
            bone = bone._replace(lines=((0.04, 0, 0.6 * child), (0.96, 0, 0.6 * child), canal))
        tubes += broken(breaks, bone, sites[k], hardware) if k in sites else [bone]
    grey = expose(rng, tubes, shape, scale)
    image = Image.fromarray(np.uint8(grey[:, :: rng.choice([-1, 1])]))
    if rng.random() < 0.25:
        spot = rng.choice([0.05, 0.88]) * shape[1], rng.uniform(0.05, 0.9) * shape[0]
        font = ImageFont.load_default(size=shape[1] / 18)
        ImageDraw.Draw(image).text(spot, "LR"[rng.integers(2)], fill=250, font=font)
    if number % 128 == 64:  # drawn small and enlarged before the noise, for speed
        image = image.resize((2880, 2304) if wide else (2304, 2880), Image.Resampling.BICUBIC)
    noise = rng.uniform(1, 2.5) * rng.standard_normal((image.height, image.width), np.float32)
    image = Image.fromarray(np.uint8(np.clip(np.asarray(image) + noise, 0, 255)))
    image.convert(mode).save(path, quality=90)
    row |= {"image_id": path.name, "hardware": int(hardware), "fracture_count": len(sites)}
    return row | {"fractured": int(fractured)}


def add_defects(hurt: list[Path], whole: list[Path], rows: dict[Path, dict[str, object]]) -> None:
    """FracAtlas' own: copies (2 of bytes, 1 of pixels, 1 re-encoded), 1 file turned, 2 cut off."""
    for folder, k in ((hurt, 0), (whole, 0), (hurt, 1), (whole, 1)):
        shutil.copyfile(folder[k], folder[-1 - k])
        rows[folder[-1 - k]] = rows[folder[k]] | {"image_id": folder[-1 - k].name}
    Image.open(hurt[1]).save(hurt[-2], quality=80)
    whole[-2].write_bytes(whole[-2].read_bytes() + b"\0")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    lying = Image.open(whole[-3]).transpose(Image.Transpose.ROTATE_90)
    lying.save(whole[-3], quality=90, exif=exif)
    for path in whole[-5:-3]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def draw_data_set(root: Path, count: int = 400, seed: int = 42) -> None:
    """Draw `count` (20 or more) images into root/images/, described by root/dataset.csv.

    Drawn beside root and renamed when whole. Same seed on the same machine: same bytes.
    """
    beside = root.with_name(root.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    folders = [beside / "images" / name for name in ("Non_fractured", "Fractured")]
    for folder in folders:
        folder.mkdir(parents=True)
    fractured = default_rng(seed).permutation(count) < round(FRACTURED_SHARE * count)
    paths = [folders[int(f)] / f"IMG{i:07d}.jpg" for i, f in enumerate(fractured)]
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(radiograph, repeat(seed), paths, chunksize=4)
        bar = tqdm(drawn, "drawing", count, unit=" images", disable=None)
        rows = dict(zip(paths, bar, strict=True))
    whole, hurt = ([p for p in paths if p.parent == folder] for folder in folders)
    add_defects(hurt, whole, rows)
    with (beside / "dataset.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, HEADER.split(","), restval=0)
        table.writeheader()
        table.writerows(rows.values())
    beside.rename(root)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m fracture.data.synthetic", description=__doc__.splitlines()[0]
    )
    where = "folder to make (default %(default)s); left alone if it exists"
    parser.add_argument("root", nargs="?", type=Path, default="data/demo/FracAtlas", help=where)
    root = parser.parse_args().root
    if root.exists():
        print(f"{root} is there already: nothing drawn")
    else:
        draw_data_set(root)


if __name__ == "__main__":
    main()
