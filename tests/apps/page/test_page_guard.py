"""What other web sites and other programs cannot do through the review page."""

import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from florence2.files import WriteLock
from tests.apps.page.live_page import TOKEN, serve_review

CHANGE = {"changes": [{"row": 0, "version": 0, "accepted": True}]}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "lacks the token"),
        ({"x-florence2-token": "guessed"}, "lacks the token"),
        ({"x-florence2-token": TOKEN, "origin": "http://evil.example"}, "another origin"),
        ({"x-florence2-token": TOKEN, "origin": "null"}, "another origin"),
        ({"x-florence2-token": TOKEN, "host": "evil.example"}, "another host"),
        ({"x-florence2-token": TOKEN, "sec-fetch-site": "cross-site"}, "another web site"),
    ],
)
def test_writes_of_others_are_refused(table: Path, headers: dict, reason: str) -> None:
    before = table.read_bytes()
    with serve_review(table) as url:
        response = httpx.post(f"{url}/review/changes", json=CHANGE, headers=headers)
    assert response.status_code == 403
    assert reason in response.json()["error"]
    assert table.read_bytes() == before


def test_reads_under_another_name_are_refused_and_images_are_those_of_rows(table: Path) -> None:
    with serve_review(table) as url:
        for path in ("/", "/review/rows", "/review/images/0"):
            assert httpx.get(url + path, headers={"host": "rebound.example:80"}).status_code == 403
            assert httpx.get(url + path, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert httpx.get(f"{url}/review/images/0").headers["content-type"] == "image/jpeg"
        for index in ("99", "-1"):
            assert httpx.get(f"{url}/review/images/{index}").status_code == 404
        page = httpx.get(url)
        assert TOKEN in page.text
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_a_file_that_predict_writes_and_a_stale_row_are_refused(table: Path) -> None:
    with serve_review(table) as url, httpx.Client(base_url=url, headers={"x-florence2-token": TOKEN}) as client:
        lock = WriteLock(table)
        response = client.post("/review/changes", json=CHANGE)
        assert "another process writes" in response.json()["error"]
        lock.release()
        assert client.post("/review/changes", json=CHANGE).status_code == 200
        stale = client.post("/review/changes", json=CHANGE)
        assert (stale.status_code, "another window" in stale.json()["error"]) == (409, True)
        empty = client.post("/review/changes", json={"changes": [{"row": 0, "version": 1, "text": " "}]})
        assert (empty.status_code, "empty caption" in empty.json()["error"]) == (400, True)
        assert client.post("/review/changes", json={"changes": [{"row": 0}]}).status_code == 422


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse the name")
def test_a_row_whose_name_is_not_utf8_is_sent_and_changed(tmp_path: Path) -> None:
    for name, content in (("caf\udce9.png", b""), ("caf\udce9.txt", b"a \x1b[31mred\x1b[0m boat")):
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (40, 30)).save(tmp_path / "caf\udce9.png", "PNG")
    with serve_review(tmp_path) as url, httpx.Client(base_url=url, headers={"x-florence2-token": TOKEN}) as client:
        [row] = client.get("/review/rows").json()["rows"]
        assert row["text"] == "a \x1b[31mred\x1b[0m boat"
        assert client.get("/review/images/0").headers["content-type"] == "image/jpeg"
        change = {"row": 0, "version": row["version"], "text": "<script>alert(1)</script>"}
        assert client.post("/review/changes", json={"changes": [change]}).status_code == 200
    assert (tmp_path / "caf\udce9.txt").read_text() == "<script>alert(1)</script>\n"
