"""Marks lie where the map is hot, and FROC counts what they find."""

import numpy as np
import pytest
from scipy.special import logit

from fracture.evaluation import metrics
from fracture.evaluation.cam import Mark, find_marks
from fracture.evaluation.pointing import count_marks, froc

LEFT, RIGHT = np.array([[(0, 0), (0.5, 1)], [(0.5, 0), (1, 1)]])


def test_marks_are_the_hottest_places_apart_from_each_other() -> None:
    p = np.full((12, 12), 0.02)
    p[2, 2], p[2, 3], p[9, 8], p[5, 10], p[10, 1] = 0.9, 0.88, 0.7, 0.6, 0.3
    marks = find_marks(logit(p))
    assert len(marks) == 3
    for mark, (row, column) in zip(marks, [(2, 2), (9, 8), (5, 10)], strict=True):
        assert mark.point == pytest.approx(((column + 0.5) / 12, (row + 0.5) / 12), abs=0.04)
        (left, top), (right, low) = mark.box
        assert left < mark.point[0] < right
        assert top < mark.point[1] < low
    assert [mark.p for mark in marks] == pytest.approx([0.9, 0.7, 0.6], abs=0.1)
    width, height = marks[0].box[1] - marks[0].box[0]
    assert width > height  # the neighbour is almost as probable


def mark(p: float, x: float) -> Mark:
    return Mark(p, (x, 0.5), np.array([(x - 0.1, 0.4), (x + 0.1, 0.6)]))


def scored(marks: list, boxes: list) -> list[dict]:
    """Films, each a group of its own."""
    films = enumerate(zip(marks, boxes, strict=True))
    return [{"group": i} | count_marks(own, truth) for i, (own, truth) in films]


def test_froc_counts_boxes_found_against_false_marks_a_film() -> None:
    """Four films, three boxes: found at 0.9, found twice (0.7 counts), and missed."""
    marks = [
        [mark(0.9, 0.2), mark(0.8, 0.7)],
        [mark(0.7, 0.8), mark(0.2, 0.9)],
        [mark(0.6, 0.3)],
        [],
    ]
    boxes = [[LEFT], [RIGHT], [], [LEFT]]
    found = froc(scored(marks, boxes))
    false, share = found["curve"]
    assert false == pytest.approx([0, 0, 0.25, 0.25, 0.5])
    assert share == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    for rate, metric in found["sensitivity"].items():
        assert (metric["value"], metric["n"]) == (pytest.approx(2 / 3), 3), rate
        assert metric["low"] <= 2 / 3 <= metric["high"]
    none = froc(scored([[mark(0.9, 0.7)], [mark(0.8, 0.2)]], [[LEFT], [LEFT]]))
    assert none["sensitivity"]["0.25"] == metrics.proportion(0, 2)  # not "0 to 0"
    assert none["sensitivity"]["0.5"]["value"] == 0.5
