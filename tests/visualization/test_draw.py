"""What is drawn stands where it is, can be read, and overlaps nothing that it must not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from norton_det.visualization.beside import SAME, draw_beside, joined, match, titled
from norton_det.visualization.draw import READABLE, colour_of, counts_of, draw_detections
from norton_det.visualization.legend import Legend
from norton_det.visualization.text import Label, contrasting, fitted, font_of, luminance, size_of_text, write_labels
from norton_det.visualization.zoom import ASPECT, part_of, parts_around

GREY = torch.full((3, 600, 800), 90, dtype=torch.uint8)
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


def found(*boxes: Sequence[float], labels: Sequence[int] | None = None, scores: Sequence[float] = ()) -> dict[str, Any]:
    named = torch.tensor(labels or [1] * len(boxes))
    detections = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": named}
    return {**detections, "scores": torch.tensor(scores)} if scores else detections


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Return where two images differ, (H, W)."""
    return (before != after).any(0)


def is_colour(image: Tensor, colour: Sequence[int]) -> Tensor:
    """Return where an image has a colour, (H, W)."""
    return (image == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0)


def test_a_box_is_drawn_on_its_edges_and_nowhere_within() -> None:
    one = found((100, 200, 700, 500), labels=[2], scores=[0.9])
    drawn = draw_detections(GREY, one)
    box = changed(GREY, drawn)
    assert is_colour(drawn, colour_of(0))[500 - 1, 100:700].all()
    assert is_colour(drawn, colour_of(0))[200:500, 100].all()
    assert not box[240:490, 110:690].any()
    assert not box[:150].any()
    assert not box[520:].any()
    assert torch.equal(draw_detections(GREY.float() / 255, one), drawn)
    thick = changed(GREY, draw_detections(GREY, one, emphasised=[True]))
    assert box.sum() < thick.sum()


def test_a_mask_is_filled_and_has_an_outline() -> None:
    masks = torch.zeros(1, 600, 800, dtype=torch.bool)
    masks[0, 300:400, 200:400] = True
    one = found((100, 200, 700, 500))
    drawn = draw_detections(GREY, {**one, "masks": masks})
    new = changed(draw_detections(GREY, one), drawn)
    assert torch.equal(new, masks[0])
    outline = is_colour(drawn, colour_of(0)) & masks[0]
    assert outline[300, 200:400].all()
    assert outline[300:400, 399].all()
    assert not outline[310:390, 210:390].any()
    assert torch.equal(draw_detections(GREY, {**one, "masks": list(masks)}), drawn)
    assert torch.equal(draw_detections(GREY, {**one, "masks": masks[:, :0, :0]}), draw_detections(GREY, one))


def test_keypoints_are_joined_and_sides_have_colours() -> None:
    points = torch.tensor([[[200.0, 300, 1], [400, 300, 1], [300, 450, 0]]])
    one = {**found((100, 200, 700, 500)), "keypoints": points}
    legend = Legend(skeleton=[(0, 1), (0, 2)], keypoints=["left_eye", "right_eye", "tail"])
    drawn = draw_detections(GREY, one, legend)
    assert changed(GREY, drawn)[300, 200:401].all()  # a line joins what is visible
    assert not changed(GREY, drawn)[350:480, 280:320].any()
    mirrored = Legend(skeleton=legend.skeleton, keypoints=["right_eye", "left_eye", "tail"])
    other = draw_detections(GREY, one, mirrored)
    assert torch.equal(drawn[:, 300, 200], other[:, 300, 400])
    assert torch.equal(drawn[:, 300, 400], other[:, 300, 200])
    assert not torch.equal(drawn[:, 300, 200], drawn[:, 300, 400])
    unnamed = draw_detections(GREY, one)
    assert not torch.equal(unnamed[:, 300, 200], unnamed[:, 300, 400])


def test_no_object_is_said() -> None:
    drawn = draw_detections(GREY, {**NOTHING, "masks": torch.zeros(0, 600, 800)})
    assert changed(GREY, drawn)[:30, :120].any()
    assert not changed(GREY, drawn)[40:].any()


@pytest.mark.parametrize("size", [(96, 128), (480, 640), (1200, 300)])
def test_small_images_are_enlarged_and_what_is_drawn_with_them(size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    height, width = size
    box = (width / 4, height / 4, width / 2, height / 2)
    drawn = draw_detections(image, found(box))
    factor = drawn.shape[-1] // width
    assert drawn.shape[-2:] == (factor * height, factor * width)
    assert max(drawn.shape) >= READABLE
    assert factor == 1 or (factor - 1) * max(size) < READABLE
    assert is_colour(drawn, colour_of(0))[factor * height // 3, factor * width // 4]
    assert max(draw_detections(image, found(box), side=333).shape) == 333


def test_colours_differ_and_text_on_them_can_be_read() -> None:
    colours = [colour_of(number) for number in range(200)]
    assert len(set(colours)) == 200
    for colour in colours:
        light, dark = sorted((luminance(colour), luminance(contrasting(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # what WCAG asks of text


coordinates = st.floats(0, 1)
BOXES = st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=30)


@settings(max_examples=40, deadline=None)
@given(BOXES, st.text("abc ", min_size=1, max_size=200), st.sampled_from([(300, 200), (64, 64), (120, 900)]))
def test_labels_overlap_no_other_and_are_not_cut_off(boxes: list[Any], text: str, size: tuple[int, int]) -> None:
    width, height = size
    labels = [
        Label(text, (a * width, b * height, a * width + c * width, b * height + d * height), colour_of(i))
        for i, (a, b, c, d) in enumerate(boxes)
    ]
    canvas = Image.new("RGB", size, (90, 90, 90))
    written = write_labels(canvas, labels, 12)
    pixels = np.asarray(canvas)
    assert len(written) == len(labels)
    for label, there in zip(labels, written, strict=True):
        own = (pixels == label.colour).all(-1)
        assert own.any() == there
        if there:  # a whole rectangle: nothing is written over its edges
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            edges = own[[rows[0], rows[-1]], columns[0] : columns[-1] + 1], own[rows[0] : rows[-1] + 1, [columns[0]]]
            assert all(edge.all() for edge in edges)


def test_the_surest_objects_have_labels_where_there_is_no_room() -> None:
    crowd = [(50.0, 50, 90, 62)] * 30
    canvas = Image.new("RGB", (200, 120))
    written = write_labels(canvas, [Label("name", box, colour_of(i)) for i, box in enumerate(crowd)], 12)
    assert written[0]
    assert not all(written)
    assert written == sorted(written, reverse=True)


def test_a_crowd_of_one_class_has_its_name_once() -> None:
    boxes = [(40.0 * i, 60.0 * j, 40.0 * i + 30, 60.0 * j + 30) for i in range(1, 8) for j in range(1, 5)]
    drawn = draw_detections(GREY, found(*boxes), Legend({1: "nucleus"}))
    plain = draw_detections(GREY, found(*boxes), Legend({1: " "}))
    differing = torch.nonzero(changed(drawn, plain))
    extent = differing.max(0).values - differing.min(0).values
    assert extent.max() < 100


@given(st.text(min_size=0, max_size=80), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_a_fitted_text_fits_and_keeps_its_ends(text: str, width: int) -> None:
    font = font_of(12)
    short = fitted(text, font, width)
    assert font.getlength(short) <= max(width, font.getlength("…"))
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    if font.getlength(printable) <= width:
        assert short == printable
    else:
        assert any(
            printable.startswith(short[:i]) and printable.endswith(short[i + 1 :])
            for i, letter in enumerate(short)
            if letter == "…"
        )


def test_letters_grow_with_the_image() -> None:
    assert size_of_text(10, 10) == 11
    assert [size_of_text(4 * k, 3 * k) for k in (160, 320, 640)] == [13, 26, 53]


def test_legends_know_names_sides_and_the_skeleton_of_persons() -> None:
    legend = Legend.of_names(["__background__", "person"], ["left_hip", "right_hip", "nose"])
    assert legend.names == {1: "person"}
    assert legend.skeleton == [(0, 1)]
    assert legend.sides(4) == ["left", "right", "", ""]
    assert (legend.name(1), legend.name(7)) == ("person", "7")
    assert counts_of(found((0, 0, 1, 1), (0, 0, 1, 1), labels=[1, 7]), legend) == "2 objects: 1 person, 1 7"


# Beside each other.


def test_objects_are_matched_by_class_and_place() -> None:
    first = found((0, 0, 100, 100), (200, 200, 300, 300), labels=[1, 2])
    other = found((200, 200, 300, 290), (0, 0, 100, 90), (0, 0, 100, 80), labels=[2, 1, 1])
    assert match(first, other) == [1, 0, None]
    assert match(first, first) == [0, 1]
    legends = Legend({1: "cat", 2: "dog"}), Legend({1: "dog", 2: "cat"})
    assert match(first, other, legends) == [None, None, None]
    swapped = {**other, "labels": 3 - other["labels"]}
    assert match(first, swapped, legends) == [1, 0, None]
    edge = found((0, 0, 100 * SAME, 100))
    assert match(found((0, 0, 100, 100)), edge) == [0]
    assert match(NOTHING, first) == [None, None]
    assert match(first, NOTHING) == []


def test_same_objects_have_the_same_colour_and_others_thick_lines() -> None:
    first = found((100, 100, 200, 200), (300, 300, 500, 500))
    other = found((300, 310, 500, 500), (600, 100, 700, 200))
    both = draw_beside(GREY, {"a": first, "b": other})
    above = both.shape[1] - 600
    left, right = both[:, above:, :800], both[:, above:, -800:]
    expected = {"colours": [0, 1], "emphasised": [True, False]}, {"colours": [1, 2], "emphasised": [False, True]}
    assert torch.equal(left, draw_detections(GREY, first, **expected[0]))
    assert torch.equal(right, draw_detections(GREY, other, **expected[1]))
    assert torch.equal(left, draw_beside(GREY, {"a": first, "b": other, "c": other})[:, above:, :800])
    alone = draw_beside(GREY, {"a": first})
    assert torch.equal(alone[:, above:], draw_detections(GREY, first))


def test_parts_that_differ_are_enlarged() -> None:
    first = found((100, 100, 140, 130), (300, 300, 500, 500))
    both = {"a": first, "b": found((300, 300, 500, 500))}
    drawn, without = draw_beside(GREY, both, zooms=2), draw_beside(GREY, both)
    assert drawn.shape[1] > without.shape[1]
    part = drawn[:, without.shape[1] :, : without.shape[2] // 4]
    assert is_colour(part, colour_of(0)).any()
    assert not is_colour(drawn[:, without.shape[1] :], colour_of(1)).any()
    same = draw_beside(GREY, {"a": first, "b": first}, zooms=2)
    assert same.shape == drawn.shape  # frames of a video have one size
    assert torch.equal(same[:, : without.shape[1]], draw_beside(GREY, {"a": first, "b": first}))


@given(BOXES, st.integers(20, 900), st.integers(20, 900), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_parts_are_within_the_image_and_are_enlarged(boxes: list[Any], width: int, height: int, limit: int) -> None:
    corners = [(min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height) for a, b, c, d in boxes]
    parts = parts_around(corners, width, height, limit)
    assert len(parts) <= limit
    for x1, y1, x2, y2 in parts:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert abs((y2 - y1) - ASPECT * (x2 - x1)) <= 1
        assert x2 - x1 <= width / limit + 1


def test_of_a_part_the_objects_in_it_are_moved() -> None:
    masks = torch.zeros(2, 600, 800, dtype=torch.bool)
    masks[1, 120:140, 110:130] = True
    both = {**found((0, 0, 50, 50), (110, 120, 130, 140), scores=[0.5, 0.6]), "masks": masks}
    both["keypoints"] = torch.tensor([[[1.0, 1, 2]], [[115, 125, 2]]])
    chosen, part = part_of(both, (100, 100, 200, 175))
    assert chosen == [1]
    assert part["boxes"].tolist() == [[10, 20, 30, 40]]
    assert part["keypoints"].tolist() == [[[15, 25, 2]]]
    assert part["scores"].tolist() == [pytest.approx(0.6)]
    assert part["masks"][0].shape == (75, 100)
    assert part["masks"][0][20:40, 10:30].all()
    assert part["masks"][0].sum() == 400


def test_titles_stand_above() -> None:
    image = torch.full((3, 480, 640), 200, dtype=torch.uint8)
    one, other = titled(image, "dense", "3 objects"), titled(image, "compressed", "3 objects")
    assert torch.equal(one[:, -480:], image)
    assert not torch.equal(one[:, :-480], other[:, :-480])
    assert joined([image, image], 1).shape[1] > 960


@given(st.text("ab iW\u0301 中\n", max_size=60), st.integers(3, 200))
def test_a_text_keeps_as_many_letters_as_fit(text: str, width: int) -> None:
    font = font_of(12)
    found = fitted(text, font, width)
    whole = text.replace("\n", " ")
    if font.getlength(whole) <= width:
        assert found == whole
        return
    begin, end = found.split("…")
    assert whole.startswith(begin)
    assert whole.endswith(end)
    assert len(end) - len(begin) in (0, 1)
    assert found == "…" or font.getlength(found) <= width


def test_a_text_of_any_length_is_fitted() -> None:
    font = font_of(12)
    assert fitted("x" * 10**6, font, 300) == fitted("x" * 1000, font, 300)
