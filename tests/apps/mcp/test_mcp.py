"""`florence2 mcp` as a real process, called by the client of the SDK over stdio."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

import florence2
from florence2.apps.mcp.allowed_roots import AllowedRoots
from florence2.cli.program import main
from florence2.demo.dataset import make_dataset


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcp") / "photos"
    make_dataset(folder, num_samples=2, seed=1)
    (folder / "broken.png").write_bytes(b"no image")
    (folder.parent / "secret.png").write_bytes(next(folder.glob("*.png")).read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


def run_client(photos: Path, calls: Callable[[Client], Awaitable[None]]) -> str:
    """Start the server for a folder, run the calls of a client, and return what the server logged."""
    log = photos.parent / "stderr.txt"

    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        words = [
            "-m",
            "florence2",
            "mcp",
            "--model_path",
            "demo",
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--root",
            ".",
        ]
        parameters = StdioServerParameters(
            command=sys.executable, args=words, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=photos
        )
        with log.open("w") as errors:
            async with Client(stdio_client(parameters, errlog=errors)) as client:
                yield client

    async def run() -> None:
        async with connect() as client:
            await calls(client)

    anyio.run(run)
    return log.read_text("utf-8")


def expected(photos: Path, name: str, task: str, task_input: str = "") -> florence2.Prediction:
    model, processor = florence2.load("demo", device="cpu", dtype="float32")
    with florence2.Engine(model, processor) as engine:
        return next(engine.run([florence2.Sample(name, photos / name, task, task_input)]))


def test_tools_answer_a_client_as_the_engine_does(photos: Path) -> None:
    name = sorted(path.name for path in photos.glob("*.png") if path.name not in {"broken.png", "link.png"})[0]
    results: dict[str, Any] = {}
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "caption": ("caption", {"path": name, "detail": "short"}),
        "uri": ("caption", {"path": (photos / name).as_uri(), "detail": "short"}),
        "outside uri": ("caption", {"path": (photos.parent / "secret.png").as_uri()}),
        "absolute": ("caption", {"path": str(photos / name), "detail": "short"}),
        "detect": ("detect", {"path": name}),
        "ground": ("ground", {"path": name, "text": "a cat and a dog"}),
        "ocr": ("ocr", {"path": name}),
        "classes": ("detect", {"path": name, "classes": ["cat", "pizza"]}),
        "broken": ("caption", {"path": "broken.png"}),
        "outside": ("caption", {"path": "../secret.png"}),
        "link": ("caption", {"path": "link.png"}),
        "system": ("ocr", {"path": "/etc/hostname"}),
        "missing": ("ocr", {"path": "none.png"}),
        "wrong": ("caption", {"path": name, "detail": "endless"}),
        "blank": ("ground", {"path": name, "text": "  "}),
    }

    async def calls(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["caption", "detect", "ocr", "ground"]
        assert all(tool.description and tool.output_schema and tool.annotations.read_only_hint for tool in tools)
        for key, (tool, arguments) in requests.items():
            results[key] = await client.call_tool(tool, arguments)
        async with anyio.create_task_group() as group:  # calls at the same time wait for each other
            for key in ("a", "b", "c"):
                group.start_soon(_store, client, key)

    async def _store(client: Client, key: str) -> None:
        results[key] = await client.call_tool("caption", {"path": name, "detail": "short"})

    log = run_client(photos, calls)
    assert "serving demo to the MCP client" in log
    assert "Traceback" not in log
    caption = expected(photos, name, "caption").text
    for key in ("caption", "absolute", "uri", "a", "b", "c"):
        assert results[key].structured_content["text"] == results[key].content[0].text == caption
    for key, task, task_input in (("detect", "od", ""), ("ground", "caption_to_phrase_grounding", "a cat and a dog")):
        answer = expected(photos, name, task, task_input).answer
        objects = results[key].structured_content["objects"]
        assert [(each["label"], each["box"]) for each in objects] == [
            (item.label, list(item.bounding_box)) for item in answer or ()
        ]
        assert results[key].content[0].text.count("box") == len(objects)
    assert results["detect"].structured_content["objects"]
    assert results["classes"].structured_content["input"] == "cat, pizza"
    parts = [expected(photos, name, "open_vocabulary_detection", each).answer or () for each in ("cat", "pizza")]
    assert [(each["label"], each["box"]) for each in results["classes"].structured_content["objects"]] == [
        (item.label, list(item.bounding_box)) for part in parts for item in part
    ]
    failures = {key: results[key].content[0].text for key in requests if results[key].is_error}
    assert set(failures) == {"broken", "outside", "link", "system", "missing", "wrong", "blank", "outside uri"}
    assert "as the input: `text`" in failures["blank"]
    for key in ("outside", "outside uri", "link", "system"):
        assert "is not inside the folders that may be read" in failures[key]
    assert "there is no image `none.png`" in failures["missing"]


def test_server_ends_when_its_client_does(photos: Path) -> None:
    words = [sys.executable, "-m", "florence2", "mcp", "--model_path", "demo", "--root", str(photos)]
    run = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stdout) == (0, "")


def test_root_that_does_not_exist_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "--model_path", "demo", "--root", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "..", ".", "", "~/a.png", "photos/../../secret.png", "file:///a"])
def test_odd_names_are_refused(photos: Path, name: str) -> None:
    roots = AllowedRoots.resolve([str(photos)])
    with pytest.raises(florence2.UserError):
        roots.find(name)


def test_several_roots_are_searched_in_order(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "b" / "x.png").write_bytes(b"x")
    roots = AllowedRoots.resolve([str(tmp_path / "a"), str(tmp_path / "b")])
    assert roots.find("x.png") == (tmp_path / "b" / "x.png").resolve()
