"""The review view in a real browser: filter, edit, move a box, replace, undo, and what the file holds afterwards."""

import json
from pathlib import Path

from PIL import Image

from florence2 import image_size
from florence2.cli.program import main
from tests.apps.page.live_page import read_table, serve_review, wait_for_rows, wait_until


def test_a_caption_is_found_edited_accepted_and_undone_by_keys_alone(page, table: Path) -> None:
    before = table.read_bytes()
    with serve_review(table) as url:
        page.goto(url)
        page.wait_for_selector(".cell")
        assert page.locator("#count").inner_text() == "12 of 12 rows, 0 accepted"
        page.keyboard.press("/")
        page.keyboard.type("0003.png")
        wait_until(page, "document.querySelectorAll('.cell').length === 2")
        page.keyboard.press("Enter")
        page.keyboard.press("a")
        wait_for_rows(table, lambda rows: rows[3].get("accepted") is True)
        page.keyboard.press("Enter")
        page.keyboard.press("Control+A")
        page.keyboard.type("a new caption — ünïcode")
        page.keyboard.press("Control+Enter")
        rows = wait_for_rows(table, lambda rows: rows[3]["text"] == "a new caption — ünïcode")
        assert "score" not in rows[3]
        assert rows[3]["run_id"] == "abc"
        page.keyboard.press("Escape")
        page.reload()
        page.wait_for_selector(".cell .state")
        assert "a new caption" in page.locator(".cell").nth(3).inner_text()
        page.keyboard.press("u")
        wait_for_rows(table, lambda rows: rows[3]["text"] != "a new caption — ünïcode")
        page.keyboard.press("u")
        wait_for_rows(table, lambda rows: "accepted" not in rows[3])
    assert table.read_bytes() == before


def test_a_box_is_moved_by_mouse_relabelled_and_trains(page, table: Path, tmp_path: Path) -> None:
    before = table.read_bytes().splitlines()
    with serve_review(table) as url:
        page.goto(url)
        page.select_option("#task", "od")
        wait_until(page, "document.querySelectorAll('.cell').length === 6")
        page.dblclick(".cell >> nth=0")
        page.wait_for_selector(".editor .shape")
        wait_until(page, "document.querySelector('.editor img').naturalWidth > 0")
        old = read_table(table)[6]
        box = page.locator(".editor .shape").first.bounding_box()
        stage = page.locator(".editor .stage img").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + stage["width"] * 0.05, y + stage["height"] * 0.03, steps=4)
        page.mouse.up()
        page.fill("#objects [data-role=label] >> nth=0", "unicorn")
        page.focus("#objects [data-role=select] >> nth=0")
        page.keyboard.press("Shift+ArrowDown")
        page.click("#save")
        rows = wait_for_rows(table, lambda rows: "unicorn" in rows[6]["text"])
    answer, (width, height) = rows[6]["answer"], image_size(tmp_path / "photos" / old["file_name"])
    index = answer["labels"].index("unicorn")
    x1, y1, x2, y2 = answer["bboxes"][index]
    moved = [a - b for a, b in zip((x1, y1, x2, y2), old["answer"]["bboxes"][0], strict=True)]
    assert all(abs(value - 0.05 * width) < 0.003 * width for value in moved[::2]), moved
    assert all(abs(value - 0.04 * height) < 0.003 * height for value in moved[1::2]), moved
    assert all(box in answer["bboxes"] for box in old["answer"]["bboxes"][1:]), (
        "objects that did not move keep their coordinates"
    )
    after = table.read_bytes().splitlines()
    assert after[:6] + after[7:] == before[:6] + before[7:]
    assert main(["data", "check", str(table)]) == 0
    assert main(["data", "convert", str(table), str(tmp_path / "converted"), "--to", "jsonl"]) == 0


def test_objects_are_added_named_and_deleted_and_rows_filtered_by_score(page, table: Path) -> None:
    with serve_review(table) as url:
        page.goto(url)
        page.select_option("#task", "od")
        page.fill("#low", "0.35")
        page.fill("#high", "0.45")
        wait_until(page, "document.querySelectorAll('.cell').length === 1")
        page.focus("#grid")
        page.keyboard.press("Enter")
        page.wait_for_selector(".editor .shape")
        wait_until(page, "document.querySelector('.editor img').naturalWidth > 0")
        number = page.locator("#objects li").count()
        page.click("#add")
        stage = page.locator(".editor .stage img").bounding_box()
        page.mouse.move(stage["x"] + stage["width"] * 0.7, stage["y"] + stage["height"] * 0.6)
        page.mouse.down()
        page.mouse.move(stage["x"] + stage["width"] * 0.9, stage["y"] + stage["height"] * 0.9, steps=3)
        page.mouse.up()
        page.keyboard.press("Control+A")
        page.keyboard.type("eel")
        page.keyboard.press("Control+Enter")
        rows = wait_for_rows(table, lambda rows: "eel" in rows[9]["answer"]["labels"])
        assert len(rows[9]["answer"]["labels"]) == number + 1
        wait_until(page, f"document.querySelectorAll('#objects li').length === {number + 1}")
        page.focus("#objects [data-role=select] >> nth=0")
        page.keyboard.press("Delete")
        page.keyboard.press("n")
        page.keyboard.press("Control+A")
        page.keyboard.press("Backspace")
        page.keyboard.press("Control+Enter")
        wait_until(page, "document.getElementById('error').textContent.includes('has no label')")
        page.keyboard.type("newt")
        page.keyboard.press("Escape")
        rows = wait_for_rows(table, lambda rows: "newt" in rows[9]["answer"]["labels"])
        assert len(rows[9]["answer"]["labels"]) == number + 1


def test_words_are_replaced_after_a_preview_and_undone(page, table: Path) -> None:
    before = table.read_bytes()
    number = sum(row["text"].startswith("a ") or " a " in row["text"] for row in read_table(table)[:6])
    assert number
    with serve_review(table) as url:
        page.goto(url)
        page.select_option("#task", "caption")
        wait_until(page, "document.querySelectorAll('.cell').length === 6")
        page.focus("#grid")
        page.keyboard.press("r")
        page.check("#replace-whole")
        page.fill("#replace-by", "one")
        page.fill("#replace-search", "a")
        wait_until(page, f"document.getElementById('replace-apply').textContent === 'Replace in {number} rows'")
        assert page.locator("#replace-preview ins").first.inner_text().count("one")
        assert table.read_bytes() == before
        page.click("#replace-apply")
        rows = wait_for_rows(table, lambda rows: any("one" in row["text"] for row in rows))
        assert not any(" a " in f" {row['text']} " for row in rows[:6])
        wait_until(page, "!document.getElementById('undo').disabled")
        page.click("#undo")
        wait_for_rows(table, lambda rows: not any("one" in row["text"].split() for row in rows))
    assert table.read_bytes() == before


def test_a_file_that_another_program_changed_is_not_overwritten(page, table: Path) -> None:
    with serve_review(table) as url:
        page.goto(url)
        page.wait_for_selector(".cell")
        changed = table.read_bytes() + b'{"file_name": "0000.png", "text": "late", "image_dir": "photos"}\n'
        table.write_bytes(changed)
        page.keyboard.press("a")
        wait_until(page, "document.getElementById('error').textContent.includes('changed by another program')")
        assert table.read_bytes() == changed
        page.click("#reload")
        wait_until(page, "document.getElementById('count').textContent.startsWith('13 of 13')")
        page.focus("#grid")
        page.keyboard.press("a")
        wait_for_rows(table, lambda rows: rows[0].get("accepted") is True)


def test_ten_thousand_rows_scroll_with_few_elements(page, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(50):
        Image.new("RGB", (640, 480), (number * 5, 80, 120)).save(tmp_path / "photos" / f"{number:02}.jpg")
    rows = (
        {"file_name": f"{i % 50:02}.jpg", "text": f"caption {i}", "task": "<CAPTION>", "image_dir": "photos"}
        for i in range(10_000)
    )
    table = tmp_path / "captions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve_review(table) as url:
        page.goto(url)
        page.wait_for_selector(".cell img[src]")
        longest = page.evaluate("""async () => {
            const grid = document.getElementById("grid");
            const step = grid.scrollHeight / 120;
            const frames = [];
            let last = performance.now();
            for (let i = 0; i < 120; i++) {
                grid.scrollTop += step;
                await new Promise(requestAnimationFrame);
                const now = performance.now();
                frames.push(now - last);
                last = now;
            }
            return frames.sort((a, b) => a - b)[Math.floor(frames.length * 0.9)];
        }""")
        assert page.locator(".cell").count() < 80
        assert page.evaluate("document.querySelectorAll('*').length") < 1500
        assert longest < 200, f"nine of ten frames take less than {longest:.0f} ms"
        page.keyboard.press("End")
        page.wait_for_selector("text=caption 9999")
        page.fill("#search", "caption 777")
        wait_until(page, "document.getElementById('count').textContent.startsWith('11 of 10,000')")
        wait_until(page, "[...document.querySelectorAll('.cell img')].every((i) => i.naturalWidth > 0)")
