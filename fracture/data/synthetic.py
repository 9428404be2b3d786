"""Draw a stand-in for FracAtlas: radiograph-like images made by code, nothing medical.

`python -m fracture.data.synthetic FOLDER` draws 400 images, 112 Fractured and 288 Non_fractured, in
FracAtlas' own layout, sizes and modes and with its defects (`add_defects`). All anatomy is one
shape, a tapered tube; bones.yaml says where the tubes lie. A ray at distance d from the axis of a
bone of radius R crosses 2 * sqrt(R^2 - d^2) cm of it; taking the medullary canal away leaves the
bright cortical edges of a radiograph.
"""

import csv
import json
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import yaml
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from tqdm.contrib.concurrent import process_map

from fracture.atomic import publish, staging_dir
from fracture.data.boxes import FILE

BODY = yaml.safe_load(Path(__file__).with_name("bones.yaml").read_text())
VIEWS = {"frontal": 1.0, "lateral": 0.4, "oblique": 0.7}  # how wide a limb looks
COLUMNS = "image_id hand leg hip shoulder mixed hardware multiscan fractured fracture_count"

# bones.yaml explains the fields. Head and span are complex numbers, so that flexing a joint is a
# multiplication. A line is (place, slope, depth): a dark line across the tube, at a place from 0 at
# the head to 1 at the tail. A cut is (place, slope, side): a fracture; this tube is the piece on
# side 1 (with the head) or -1 (with the tail).
Tube = namedtuple(
    "Tube", "kind head span radii cortex bow density lines cuts", defaults=(np.inf, 0, 1, (), ())
)


def moved(tube: Tube, joint: complex, turn: complex, to: complex) -> Tube:
    """Turn a tube about a joint, then carry both along until the joint lies at `to`."""
    return tube._replace(head=to + (tube.head - joint) * turn, span=tube.span * turn)


def tubes_of(part: dict, width: float, height: float = 1) -> list[Tube]:
    """The tubes of a part; seen from the side its `width` shrinks, so that its bones overlap."""
    tubes = []
    for digit in part.get("digits", []):
        head = complex(digit["head"][0] * width, digit["head"][1])
        for r, length in zip((0.42, 0.38, 0.33, 0.28), digit["lengths"], strict=False):
            span = length * np.exp(1j * np.deg2rad(90 + digit["direction"] * width))
            bone = Tube("long bone", head, span, [1.6 * r, r, 1.5 * r], cortex=0.2)
            tubes += [bone, Tube("flesh", head, span, [1, 0.95, 0.9])]
            head += span + 0.3j
    for tube in part["tubes"]:
        head, span = (complex(x * width, y * height) for x, y in (tube["head"], tube["span"]))
        tubes.append(Tube(**tube | {"head": head, "span": span}))
    return tubes


def pose(rng: Generator, lying: bool) -> tuple[list[Tube], list[str]]:
    """Somebody's tubes about the point that the beam is centred on, and the csv's names of them."""
    limb, view = rng.choice(["hand", "leg"]), rng.choice(list(VIEWS), p=[0.7, 0.15, 0.15])
    raised = rng.uniform(0, BODY[limb]["raised"])
    flexed = rng.uniform(0, 1.5) if view == "lateral" else rng.normal(0, 0.08)
    angles = 2 - 2 * VIEWS[view], -0.8 * flexed, raised, 0
    tubes: list[Tube] = []
    for part, angle in zip(BODY[limb]["parts"], angles, strict=True):
        joint = complex(0, part["joint"])
        tubes = tubes_of(part, VIEWS[view]) + tubes
        tubes = [moved(tube, joint, np.exp(1j * angle), joint) for tube in tubes]
    trunk = view == "frontal" and rng.random() < 0.15
    ends = [t.head + t.span for t in tubes if t.kind == "long bone" and abs(t.span) > 15]
    focus = complex(*rng.uniform(-2, 2, 2)) + (0 if trunk else complex(rng.choice(ends)))
    tilt = np.exp(1j * rng.normal(0, 0.09)) * (1j if lying and not trunk else 1)
    names = [view, limb, BODY[limb]["girdle"], "mixed"] if trunk else [view, limb]
    return [moved(tube, focus, tilt, 0) for tube in tubes], names


def fracture_sites(rng: Generator, tubes: list[Tube], film: np.ndarray) -> dict[int, float]:
    """Which tubes break and where (0 head to 1 tail): long bones on the film, rather stout ones."""
    sites, places = {}, np.linspace(0.1, 0.9, 41)
    for k, tube in enumerate(tubes):
        spots = tube.head + places * tube.span
        seen = places[(abs(spots.imag) < 0.42 * film[0]) & (abs(spots.real) < 0.42 * film[1])]
        if tube.kind == "long bone" and seen.size:
            sites[k] = float(rng.choice(seen))
    stout = sorted(sites, key=lambda k: rng.random() * tubes[k].radii[1] ** 2, reverse=True)
    return {k: sites[k] for k in stout[: rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])]}


def broken(rng: Generator, bone: Tube, place: float, plated: bool) -> list[Tube]:
    """Two fragments, each turned about its far end, as joints stay; maybe a plate with screws."""
    tail, site = bone.head + bone.span, bone.head + place * bone.span
    length, r = abs(bone.span), bone.radii[1]
    along = bone.span / length
    force, slope = rng.choice([0.2, 1.0], p=[0.25, 0.75]), rng.normal(0, 0.6)
    near = site + along * 1j * r * force * rng.normal()
    step = complex(rng.uniform(-0.8 * force, 0.3), r * force * rng.uniform(0.9, 2.3))
    far = near + along * (step if rng.random() < 0.5 else step.conjugate())
    pieces = []
    for side, end, new_site in ((1, bone.head, near), (-1, tail, far)):
        piece = moved(bone, end, (new_site - end) / (site - end), end)
        pieces.append(piece._replace(cuts=((place, slope, side),)))
    plate = tubes_of(BODY["plate"], min(4, length / 3), r) if plated else []
    return pieces + [moved(tube, 0, along, site) for tube in plate]


def shadow(canvas: np.ndarray, tube: Tube, scale: float) -> None:
    """Add to the canvas (for flesh: lift it to) the cm of matter that each ray crosses."""
    # `float`: a numpy number would turn all that follows from float32 into float64.
    length, middle = float(abs(tube.span)), np.array(canvas.shape) / 2
    reach = max(tube.radii) + abs(tube.bow)
    ends = np.array([(z.imag, z.real) for z in (tube.head, tube.head + tube.span)])
    corners = middle + scale * np.array([ends.min(0) - reach, ends.max(0) + reach])
    box = tuple(map(slice, *np.clip(corners, 0, canvas.shape).astype(int)))
    y, x = np.ogrid[box]
    z = (x - middle[1] + 1j * (y - middle[0])) / scale - tube.head
    z = z.astype(np.complex64) * np.complex64(tube.span.conjugate() / length)
    along, across = z.real, z.imag
    t = np.clip(2 / length * along - 1, -1, 1)
    across = (across - tube.bow * (1 - t * t)) / np.sqrt(1 + (4 * tube.bow / length * t) ** 2)
    # Flesh ends in a half sphere, bones end flatter.
    beyond = (1.0 if tube.kind == "flesh" else 2.5) * (along - np.clip(along, 0, length))
    off, flare = across * across + beyond * beyond, t**4
    first, shaft, last = np.array(tube.radii, np.float32)
    outer = shaft + flare * np.where(t < 0, first - shaft, last - shaft)
    canal = np.maximum(outer - tube.cortex * (1 - 0.7 * flare), 0)
    matter = 2 * np.sqrt(np.maximum(outer * outer - off, 0))
    matter -= 2 * np.sqrt(np.maximum(canal * canal - off, 0)) * (0.8 - 0.28 * flare)
    for place, slope, depth in tube.lines:
        matter *= 1 - depth * np.exp(-100 * (along - place * length - slope * across) ** 2)
    for place, slope, side in tube.cuts:
        edge = along - place * length - slope * across - 0.12 * np.sin(5 * across + 99 * place)
        matter *= np.clip(0.5 - side * scale * edge, 0, 1)
    matter *= tube.density
    # Bones that join must merge, bones that overlap must add up: in between lies this.
    shared = 0 if tube.kind == "flesh" else 0.4 * np.minimum(canvas[box], matter)
    canvas[box] = np.maximum(canvas[box], matter) + shared


def expose(rng: Generator, tubes: list[Tube], shape: tuple[int, int], scale: float) -> np.ndarray:
    """Grey levels from 0 to 255 of the film behind the tubes: more absorbed, brighter."""
    flesh, bone, metal = np.zeros((3, *shape), np.float32)
    layers = {"flesh": flesh, "bone": bone, "long bone": bone, "metal": metal}
    for tube in tubes:
        shadow(layers[tube.kind], tube, scale)
    trabeculae = gaussian_filter(rng.standard_normal(shape, np.float32), 1.2)
    flesh = gaussian_filter(flesh, 0.2 * scale)
    matter = 0.13 * flesh + 0.45 * bone * (1 + 0.25 * trabeculae) + 8 * metal
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


def radiograph(seed: int, path: Path) -> tuple[dict[str, int], dict[str, int], list[list[float]]]:
    """Draw a file for its csv row, size and boxes; only breaks and metal depend on the class."""
    number, fractured = int(path.stem[3:]), path.parent.name == "Fractured"
    # Three streams of random numbers, so that the look owes nothing to the class.
    rng, look, breaks = (default_rng([seed, number, stream]) for stream in range(3))
    wide, child, one_channel = rng.random(3) < (0.27, 0.3, 0.15)
    shape = (373, 454) if wide else (454, 373)
    scale = 454 / 43.2 * rng.uniform(1.2, 1.8)  # pixels per cm; 14 x 17 inch give 373 x 454
    bones, names = pose(rng, lying=wide)
    sites = fracture_sites(rng, bones, np.array(shape) / scale) if fractured else {}
    hardware = fractured and rng.random() < 0.14
    tubes = []
    for k, bone in enumerate(bones):
        if bone.kind == "long bone":  # look-alikes of a fracture: growth plates, a nutrient canal
            canal = (look.uniform(0.3, 0.7), 3, look.uniform(0, 0.3))
            bone = bone._replace(lines=((0.04, 0, 0.6 * child), (0.96, 0, 0.6 * child), canal))
        tubes += broken(breaks, bone, sites[k], hardware) if k in sites else [bone]
    grey = expose(look, tubes, shape, scale)
    flip = look.choice([-1, 1])
    image = Image.fromarray(np.uint8(grey[:, ::flip]))
    if look.random() < 0.25:
        spot = look.choice([0.05, 0.88]) * shape[1], look.uniform(0.05, 0.9) * shape[0]
        ImageDraw.Draw(image).text(spot, "LR"[look.integers(2)], fill=250, font_size=shape[1] / 18)
    if number % 128 == 64:  # drawn small and enlarged before the noise, for speed
        image = image.resize((2880, 2304) if wide else (2304, 2880))
    noise = look.uniform(1, 2.5) * look.standard_normal((image.height, image.width), np.float32)
    image = Image.fromarray(np.uint8(np.clip(np.asarray(image) + noise, 0, 255)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("L" if one_channel else "RGB").save(path, quality=90)
    counts = {"hardware": int(hardware), "fractured": int(fractured), "fracture_count": len(sites)}
    boxes = []
    for bone, place in ((bones[k], place) for k, place in sites.items()):
        site, reach = bone.head + place * bone.span, 2.5 * bone.radii[1]
        edges = np.array([site.real * flip, site.imag]) + reach * np.array([[-1, -1], [1, 1]])
        first, last = (0.5 + scale * edges / shape[::-1]).clip(0, 1)
        boxes.append(np.ravel([first * image.size, (last - first) * image.size]).tolist())
    size = {"width": image.width, "height": image.height}
    return dict.fromkeys(names, 1) | counts, size, boxes


def add_defects(hurt: list[Path], whole: list[Path], rows: dict[Path, tuple]) -> None:
    """FracAtlas' own: copies (2 of bytes, 1 of pixels, 1 re-encoded), 1 file turned, 2 cut off."""
    for folder, k in ((hurt, 0), (whole, 0), (hurt, 1), (whole, 1)):
        folder[-1 - k].write_bytes(folder[k].read_bytes())
        rows[folder[-1 - k]] = rows[folder[k]]
    Image.open(hurt[1]).save(hurt[-2], quality=80)
    whole[-2].write_bytes(whole[-2].read_bytes() + b"\0")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    turned = Image.open(whole[-3]).transpose(Image.Transpose.ROTATE_90)
    turned.save(whole[-3], quality=90, exif=exif)
    for path in whole[-5:-3]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def draw_data_set(root: Path, count: int = 400, seed: int = 42) -> None:
    """Draw `count` (20 or more) images into root/images/, described by root/dataset.csv.

    The folder appears only when it is complete. Same seed on the same machine: same bytes.
    """
    # A share of 0.28: the real 0.18 would leave a 10 % test split of 400 too few positives.
    fractured = default_rng(seed).permutation(count) < round(0.28 * count)
    with staging_dir(root) as new:
        whole, hurt = new / "images/Non_fractured", new / "images/Fractured"
        paths = [(hurt if f else whole) / f"IMG{i:07d}.jpg" for i, f in enumerate(fractured)]
        seeds = [seed] * count
        made = process_map(radiograph, seeds, paths, chunksize=4, desc="drawing", disable=None)
        rows = dict(zip(paths, made, strict=True))
        add_defects(sorted(hurt.iterdir()), sorted(whole.iterdir()), rows)
        with (new / "dataset.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, [*COLUMNS.split(), *VIEWS], restval=0)
            table.writeheader()
            table.writerows(row | {"image_id": path.name} for path, (row, *_) in rows.items())
        coco: dict[str, list] = {"images": [], "annotations": []}
        for name, (_, size, boxes) in ((path.name, made) for path, made in rows.items()):
            coco["images"].append({"id": name, "file_name": name, **size})
            coco["annotations"] += [{"image_id": name, "bbox": box} for box in boxes]
        (new / FILE).parent.mkdir(parents=True)
        (new / FILE).write_text(json.dumps(coco))
        publish(new, root)
    print(f"{count} drawn radiographs in {root}")


if __name__ == "__main__":
    draw_data_set(Path(sys.argv[1]))
