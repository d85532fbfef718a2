"""Polygons and boxes of the review in a real browser: corners added, moved and removed by mouse, and each undone."""

from pathlib import Path

import pytest

from florence2 import image_size
from florence2.cli.program import main
from florence2.demo.dataset import make_dataset
from tests.apps.page.live_page import read_table, serve_review, wait_for_rows, wait_until

CORNERS = "document.querySelectorAll('.handle:not(.middle)').length"


@pytest.fixture
def polygons(tmp_path: Path) -> Path:
    """A table of polygons, beside its images."""
    return make_dataset(tmp_path / "photos", num_samples=3, seed=1) / "referring_expression_segmentation.jsonl"


def open_first_row(page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(".cell")
    page.focus("#grid")
    page.keyboard.press("Enter")
    page.wait_for_selector(".editor .shape")
    wait_until(page, "document.querySelector('.editor img').naturalWidth > 0")


def stage_point(page, x: float, y: float) -> tuple[float, float]:
    """Return the position on the screen of a point in parts of the image."""
    stage = page.locator(".editor .stage img").bounding_box()
    return stage["x"] + x * stage["width"], stage["y"] + y * stage["height"]


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=3)
    page.mouse.up()


def middle_of(locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def rings_of(table: Path, row: int = 0) -> list[list[list[float]]]:
    return read_table(table)[row]["answer"]["polygons"]


def test_corners_are_added_moved_and_removed_by_mouse_and_undone(page, polygons: Path, tmp_path: Path) -> None:
    before = polygons.read_bytes()
    [[ring]] = rings_of(polygons)
    number = len(ring) // 2
    width, height = image_size(tmp_path / "photos" / read_table(polygons)[0]["file_name"])
    with serve_review(polygons) as url:
        open_first_row(page, url)
        page.focus("#objects [data-role=select]")
        wait_until(page, f"{CORNERS} === {number}")
        assert page.locator("#polygon-help").is_visible()
        # A dot in the middle of an edge becomes a corner, at the place it is dragged to.
        drag(page, middle_of(page.locator(".handle.middle").first), stage_point(page, 0.9, 0.05))
        wait_until(page, f"{CORNERS} === {number + 1}")
        drag(page, middle_of(page.locator(".handle:not(.middle)").first), stage_point(page, 0.1, 0.9))
        page.click("#save")
        wait_for_rows(polygons, lambda rows: len(rows[0]["answer"]["polygons"][0][0]) == 2 * number + 2)
        [[new]] = rings_of(polygons)
        moved = [(0.9 * width, 0.05 * height), (0.1 * width, 0.9 * height)]
        # The first corner moved; the others are where they were, in steps of a thousandth.
        for x, y in [*moved, *zip(ring[2::2], ring[3::2], strict=True)]:
            pairs = zip(new[::2], new[1::2], strict=True)
            assert any(abs(a - x) < 0.01 * width and abs(b - y) < 0.01 * height for a, b in pairs), (x, y)

        # Delete removes the pressed corner, the second button the one under it; each is one step of undo.
        open_first_row(page, url)
        page.focus("#objects [data-role=select]")
        corner = middle_of(page.locator(".handle:not(.middle)").first)
        page.mouse.click(*corner)
        page.wait_for_selector(".handle.pressed")
        page.keyboard.press("Delete")
        wait_until(page, f"{CORNERS} === {number}")
        page.mouse.click(*middle_of(page.locator(".handle:not(.middle)").nth(1)), button="right")
        wait_until(page, f"{CORNERS} === {number - 1}")
        page.keyboard.press("Control+z")
        wait_until(page, f"{CORNERS} === {number}")
        page.click("#undo")
        wait_until(page, f"{CORNERS} === {number + 1}")
        assert page.evaluate("document.getElementById('undo').title").startswith("edit ")
        page.click("#undo")  # what was written
        wait_until(page, f"document.querySelector('.shape').getAttribute('points').split(' ').length === {2 * number}")
    assert polygons.read_bytes() == before


def test_the_last_corners_remove_the_polygon_and_a_new_one_is_clicked(page, polygons: Path) -> None:
    with serve_review(polygons) as url:
        open_first_row(page, url)
        page.click("#add")
        corners = [stage_point(page, x, y) for x, y in ((0.2, 0.2), (0.8, 0.25), (0.7, 0.8))]
        for corner in corners:
            page.mouse.click(*corner)
        page.mouse.move(*stage_point(page, 0.3, 0.9))
        page.keyboard.press("Enter")
        wait_until(page, "document.querySelectorAll('#objects li').length === 2")
        wait_until(page, f"{CORNERS} === 3")
        # Another one ends with a click on its first corner; a third is dropped by Escape.
        page.click("#add")
        for corner in (*corners, stage_point(page, 0.25, 0.6), corners[0]):
            page.mouse.click(*corner)
        wait_until(page, "document.querySelectorAll('#objects li').length === 3")
        wait_until(page, f"{CORNERS} === 4")
        page.click("#add")
        page.mouse.click(*stage_point(page, 0.5, 0.5))
        page.mouse.click(*stage_point(page, 0.6, 0.6))
        page.keyboard.press("Escape")
        assert page.locator("#objects li").count() == 3
        assert page.locator(".editor .shape").count() == 3
        page.click("#save")
        wait_for_rows(polygons, lambda rows: len(rows[0]["answer"]["polygons"]) == 3)
        assert {6, 8} <= {len(ring) for [ring] in rings_of(polygons)}
        # A triangle without one of its corners is none.
        open_first_row(page, url)
        index = next(i for i, [ring] in enumerate(rings_of(polygons)) if len(ring) == 6)
        page.focus(f"#objects [data-role=select] >> nth={index}")
        page.mouse.click(*middle_of(page.locator(".handle:not(.middle)").first), button="right")
        wait_until(page, "document.querySelectorAll('#objects li').length === 2")
        page.keyboard.press("u")
        wait_until(page, "document.querySelectorAll('#objects li').length === 3")
    assert main(["data", "check", str(polygons)]) == 0


def test_a_click_on_a_box_changes_nothing_and_delete_removes_it(page, table: Path) -> None:
    before = table.read_bytes()
    with serve_review(table) as url:
        page.goto(url)
        page.select_option("#task", "od")
        wait_until(page, "document.querySelectorAll('.cell').length === 6")
        page.focus("#grid")
        page.keyboard.press("Enter")
        page.wait_for_selector(".editor .shape")
        wait_until(page, "document.querySelector('.editor img').naturalWidth > 0")
        number = page.locator("#objects li").count()
        assert page.locator("#polygon-help").is_hidden()
        page.mouse.click(*middle_of(page.locator(".editor .shape").first))
        page.keyboard.press("Control+Enter")
        page.focus("#grid")
        page.keyboard.press("ArrowLeft")
        assert table.read_bytes() == before
        page.mouse.click(*middle_of(page.locator(".editor .shape").first))
        page.keyboard.press("Delete")
        wait_until(page, f"document.querySelectorAll('#objects li').length === {number - 1}")
        page.keyboard.press("Control+z")
        wait_until(page, f"document.querySelectorAll('#objects li').length === {number}")
        page.keyboard.press("Delete")
        page.click("#save")
        wait_for_rows(table, lambda rows: len(rows[6]["answer"]["labels"]) == number - 1)
