"""Bones for the drawn radiographs: where they lie, how joints turn them, how they break.

All anatomy is one primitive, a tapered tube. Positions are complex numbers in cm (x to the right,
y down), so that flexing a joint is a multiplication.
"""

from __future__ import annotations

from cmath import rect
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

VIEWS = {"frontal": 1.0, "lateral": 0.4, "oblique": 0.7}  # how wide a limb looks
LIMBS = {  # parts, each with the joint that turns it and all beyond
    "hand": {"girdle": 0j, "humerus": 0j, "forearm": 30.6j, "palm": 56j},
    "leg": {"pelvis": 0j, "thigh": 0j, "shank": 43.8j, "foot": 83j},
}
# Kind (l: long bone, which may break; b: other bone; f: flesh), x and y of head and of tail, radii
# at head, middle and tail, then maybe cortex, bow, density. r: a ray of the hand or foot, from
# x and y in a direction (degrees), with the lengths of its bones. Origin: shoulder or hip.
PARTS = {
    "girdle": """b 10.4 3 9.8 19 2.4 5.2 5.6 0 0 -1; l 15 -1.5 1.5 -3.4 1 .6 .9 .25 .9;
        b 1.4 -1 6.5 12.5 2.2 3 .8 .2 0 .45; b 7 -1 -.5 -2.8 .5 .6 1.1; f 13 1 2 1 4 4.5 5.5 0 0 .9;
        f 17 3 17 40 9 14 14 0 0 .6; f 17 -14 17 2 5.4 5.4 7;
        b 15 0 11 5 .5 .4 .4 .2 4; b 15 4 8.4 9 .5 .4 .4 .2 4; b 15 8 6.6 13 .5 .4 .4 .2 4;
        b 15 12 5.2 17 .5 .4 .4 .2 4; b 15 16 4.2 21 .5 .4 .4 .2 4; b 15 20 4 25 .5 .4 .4 .2 4""",
    "humerus": "l 0 .3 0 29.8 2.2 1.1 2.6 .4; b .5 0 .9 -.3 2.2 2.3 2.2; f 0 0 0 30 6 4.9 4.4",
    "forearm": """l 1.3 31.8 1.4 55 1.1 .75 1.6 .32 -.6; l -1.2 30.2 -1.4 54.8 1.5 .72 .8 .32 .3;
        f 0 31 0 55 4.6 4.2 2.9""",
    "palm": """r 2.4 58 -42 4.3 3 2.3; r 1.5 58.6 -9 6.4 4 2.4 1.7; r .4 58.8 0 6.2 4.4 2.8 1.8;
        r -.7 58.6 7 5.6 4.1 2.6 1.8; r -1.7 58.2 15 5.2 3.2 1.9 1.6; f 0 56 0 64 2.8 4 3.4;
        b -1.5 56.1 -1.4 56.7 .7 .8 .7; b -.4 55.9 -.4 56.7 .7 .8 .7; b .8 56 .8 56.8 .9 .9 .8;
        b -1.1 57.3 -1 57.8 .7 .8 .7; b .1 57.2 .1 57.9 .7 .8 .7; b 1.3 57.3 1.4 57.8 .8 .9 .8""",
    "pelvis": """b 1.5 -2.5 -2 -16 2.6 5.4 2 .2 0 .5; b 4.4 -9.5 5.6 2.4 .5 .6 .5 .2 3.2;
        b 1.2 .6 7.8 2.6 1.4 .8 1.1 .2 -.5; b 1.4 1 3.4 8 1.6 1.1 1.5; b 3.8 8 7.8 4 1.1 .6 .8;
        b 9 -14 9 -4 4.6 3.4 .8 .2 0 .6; b -.2 -.2 .2 .2 2.9 2.9 2.9 .3 0 .6;
        b 16.5 -2.5 20 -16 2.6 5.4 2 .2 0 .5; b 10.2 2.6 16.8 .6 1.1 .8 1.4 .2 .5;
        f 9 -34 9 -6 15 15.5 14 0 0 .55""",
    "thigh": """l -4.5 2.6 -.2 42.2 1.8 1.45 3.9 .65 .4; l -4.4 3.6 -1 .8 2.1 1.5 1.5 .3;
        b -.4 .4 .2 -.1 2.2 2.3 2.2; b -5.4 1.4 -5 4.6 1 1.4 1.2; f -3 2 0 42 9.5 7.6 5.8""",
    "shank": """l .2 45.4 .4 81.2 3.6 1.35 2.3 .6; l -2.9 47.2 -2.2 82.8 .95 .55 1;
        f 0 44 0 82 5.7 5.4 3.5; b .8 84.4 1.6 87.6 1.6 1.9 1.7; f .8 83 1.8 87.5 3.2 3.2 2.8""",
    "foot": """r 1.9 89.5 -6 6 3.2 2.4; r .9 89.7 -1 7 2.6 1.2; r 0 89.8 3 6.8 2.4 1.1;
        r -.9 89.7 7 6.6 2.2 1; r -1.9 89.4 12 6.4 2 .9; b 0 83.2 0 84.8 1.9 2.1 1.8;
        b 1.2 86.6 1.3 88.6 1.4 1.5 1.4; b -1 86.6 -1.1 88.6 1.3 1.4 1.3; f 0 83 0 95 3.4 4 4.2""",
}


class Tube(NamedTuple):
    """A tapered, perhaps bowed tube as in PARTS; metal has kind "m".

    Dark `lines` cross it: (place from 0 at head to 1 at tail, obliquity, depth). `cut` keeps one
    side, 1 proximal or -1 distal, of a fracture: (side, place, obliquity).
    """

    kind: str
    head: complex
    tail: complex
    radii: tuple[float, ...]
    cortex: float = 0.25
    bow: float = 0.0
    density: float = 1.0
    lines: tuple[tuple[float, float, float], ...] = ()
    cut: tuple[int, float, float] | None = None

    def turned(self, joint: complex, turn: complex) -> Tube:
        head, tail = (joint + (z - joint) * turn for z in (self.head, self.tail))
        return self._replace(head=head, tail=tail)


def part(name: str, width: float) -> list[Tube]:
    """The tubes of a part; seen from the side its `width` shrinks, so that its bones overlap."""
    tubes = []
    for kind, *numbers in map(str.split, PARTS[name].split(";")):
        x, y, a, b, *rest = map(float, numbers)
        head, tail = complex(x * width, y), complex(a * width, b)
        if kind != "r":
            cortex, bow, density = (rest + [0.25, 0.0, 1.0][len(rest) - 3 :])[3:]
            tubes.append(Tube(kind, head, tail, tuple(rest[:3]), cortex, bow, density))
            continue
        for r, length in zip((0.42, 0.38, 0.33, 0.28), (b, *rest), strict=False):
            tail = head + rect(length, np.deg2rad(90 + a * width))
            tubes.append(Tube("l", head, tail, (1.6 * r, r, 1.5 * r), 0.2))
            tubes.append(Tube("f", head, tail, (1.0, 0.95, 0.9)))
            head = tail + 0.3j
    return tubes


def pose(rng: Generator) -> tuple[list[Tube], dict[str, object]]:
    """Somebody's tubes about the point that the beam is centred on, and the csv's flags."""
    limb, view = str(rng.choice(list(LIMBS))), str(rng.choice(list(VIEWS), p=[0.7, 0.15, 0.15]))
    raised = rng.uniform(0, 0.15 if limb == "leg" else 0.8)
    flexed = rng.uniform(0, 1.5) if view == "lateral" else rng.normal(0, 0.08)
    angles = 0.0, raised, -0.8 * flexed, 2 - 2 * VIEWS[view]
    tubes: list[Tube] = []
    for (name, joint), angle in list(zip(LIMBS[limb].items(), angles, strict=True))[::-1]:
        tubes = [t.turned(joint, rect(1, angle)) for t in part(name, VIEWS[view]) + tubes]
    trunk = view == "frontal" and rng.random() < 0.15
    ends = [t.tail for t in tubes if t.kind == "l" and abs(t.tail - t.head) > 15]
    focus = complex(*rng.uniform(-2, 2, 2)) + (0 if trunk else complex(rng.choice(ends)))
    tubes = [t._replace(head=t.head - focus, tail=t.tail - focus) for t in tubes]
    girdle = "hip" if limb == "leg" else "shoulder"
    return tubes, {limb: 1, view: 1, girdle: int(trunk), "mixed": int(trunk)}


def fracture_sites(rng: Generator, tubes: list[Tube], film: np.ndarray) -> dict[int, float]:
    """Which long bones break and where (0 head to 1 tail): on the film, stout ones rather."""
    sites, places = {}, np.linspace(0.1, 0.9, 41)
    for k, tube in enumerate(tubes):
        spots = tube.head + places * (tube.tail - tube.head)
        seen = places[(abs(spots.imag) < 0.42 * film[0]) & (abs(spots.real) < 0.42 * film[1])]
        if tube.kind == "l" and seen.size:
            sites[k] = float(rng.choice(seen))
    stout = sorted(sites, key=lambda k: rng.random() * tubes[k].radii[1] ** 2, reverse=True)
    return {k: sites[k] for k in stout[: rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])]}


def broken(rng: Generator, bone: Tube, place: float, plated: bool) -> list[Tube]:
    """Two fragments, each turned about its far end, as joints stay; maybe a plate with screws."""
    length, r = abs(bone.tail - bone.head), bone.radii[1]
    along, site = (bone.tail - bone.head) / length, bone.head + place * (bone.tail - bone.head)
    force, oblique = rng.choice([0.2, 1.0], p=[0.25, 0.75]), rng.normal(0, 0.6)
    near = site + along * 1j * r * force * rng.normal()
    step = complex(rng.uniform(-0.8 * force, 0.3), r * force * rng.uniform(0.9, 2.3))
    far = near + along * (step if rng.random() < 0.5 else step.conjugate())
    pieces = []
    for side, anchor, end in ((1, bone.head, near), (-1, bone.tail, far)):
        piece = bone.turned(anchor, (end - anchor) / (site - anchor))
        pieces.append(piece._replace(cut=(side, place, oblique)))
    if plated:
        half, edge = along * min(4.0, length / 3), site + 1.1j * r * along
        pieces.append(Tube("m", edge - half, edge + half, (0.2, 0.25, 0.2)))
        for screw in edge + half * np.array([-0.9, -0.6, -0.3, 0.3, 0.6, 0.9]):
            pieces.append(Tube("m", screw, screw - 2.4j * r * along, (0.15, 0.12, 0.1)))
    return pieces
