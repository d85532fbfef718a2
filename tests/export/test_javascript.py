"""The ONNX folder in Node and in Chromium, offline: transformers.js answers what the engine answers.

transformers.js is installed once into the temporary folder of the machine; FLORENCE2_NODE_MODULES names a folder
`node_modules` that has it already. Where Node, npm, Chromium or the package is missing, these tests are skipped.
"""

import functools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.demo.dataset import make_dataset
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.export.onnx.write_onnx import write_onnx
from florence2.model.load import load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PACKAGE = EXAMPLES / "node" / "package.json"
FIRST_SCENE = 5_000_000
TASKS = ("caption", "od")
CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """Find or install transformers.js."""
    if named := os.environ.get("FLORENCE2_NODE_MODULES"):
        return Path(named)
    version = json.loads(PACKAGE.read_text())["dependencies"]["@huggingface/transformers"]
    installed = Path(tempfile.gettempdir()) / f"florence2-transformers.js-{version}"
    if not installed.is_dir():
        _install(installed)
    return installed / "node_modules"


def _install(target: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    shutil.copy(PACKAGE, folder)
    # The CPU library is in the package; without this its script would download CUDA's.
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error"]
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm cannot install transformers.js within 180 s")
    if run.returncode:
        pytest.skip(f"npm cannot install transformers.js: {run.stderr.strip()[-300:]}")
    try:
        folder.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def site(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the examples, with the package and the bundled model beside them.

    The model is in float32, in float32 with external files of weights, and in int8.
    """
    folder = tmp_path_factory.mktemp("site")
    for name in ("node", "browser"):
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("node_modules", "models"))
        (folder / name / "node_modules").symlink_to(node_modules)
    model, processor = load("demo", dtype="float32", device="cpu")
    for dtype in ("float32", "int8"):
        write_onnx(model, processor, folder / "browser" / "models" / dtype, dtype=dtype)
    write_onnx(model, processor, folder / "browser" / "models" / "external", max_file_bytes=2_000_000)
    return folder


@pytest.fixture(scope="module")
def scenes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    make_dataset(folder, num_samples=50 if request.config.getoption("--long") else 6, seed=FIRST_SCENE)
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def predictions(scenes: list[Path]) -> list[Prediction]:
    """Predict captions and boxes of the scenes with the engine and one beam."""
    model, processor = load("demo", dtype="float32", device="cpu")
    with Engine(model, processor, EngineConfig(generation=GenerationConfig(num_beams=1))) as engine:
        found = list(engine.run([Sample(path.name, path, task) for path in scenes for task in TASKS]))
    return sorted(found, key=lambda prediction: (prediction.file_name, prediction.task))


def test_node_answers_what_the_engine_answers(
    site: Path, scenes: list[Path], predictions: list[Prediction], node_modules: Path
) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    flags = [word for task in TASKS for word in ("--task", task)]
    command = ["node", "predict.mjs", str(site / "browser" / "models" / "float32"), *flags, *map(str, scenes)]
    run = subprocess.run(command, cwd=site / "node", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    rows.sort(key=lambda row: (row["file_name"], row["task"]))
    assert [(row["file_name"], row["text"]) for row in rows] == [(p.file_name, p.text) for p in predictions]
    for row, prediction in zip(rows, predictions, strict=True):
        if prediction.answer is not None:
            answer = prediction.answer.to_dict()
            assert row["answer"]["labels"] == answer["labels"]
            assert row["answer"]["bboxes"] == [pytest.approx(box) for box in answer["bboxes"]]


def test_node_says_how_it_is_called(site: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    run = subprocess.run(["node", "predict.mjs"], cwd=site / "node", capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: node predict.mjs")


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve files and log nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serve the browser's example."""
    handler = functools.partial(QuietHandler, directory=str(site / "browser"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("model", ["external", "int8"])
def test_a_page_in_chromium_answers_what_the_engine_answers(
    address: str, scenes: list[Path], predictions: list[Prediction], tmp_path: Path, model: str
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    hosts: set[str] = set()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS.split())
        page = browser.new_page(viewport={"width": 900, "height": 720})
        page.on("request", lambda each: hosts.add(each.url.split("/")[2] if "://" in each.url else each.url))
        page.goto(f"{address}/index.html?model={model}")
        page.wait_for_selector("#run:enabled", timeout=60_000)
        page.set_input_files("#image", scenes[0])
        answers = [_ask(page, token) for token in ("<CAPTION>", "<OD>")]
        page.screenshot(path=tmp_path / "page.png")
        browser.close()
    expected = {p.task: p for p in predictions if p.file_name == scenes[0].name}
    caption, boxes = (expected.get(name) or expected[f"<{name.upper()}>"] for name in TASKS)
    assert boxes.answer is not None
    assert answers == [caption.text, ", ".join(boxes.answer.to_dict()["labels"])]
    assert hosts == {address.removeprefix("http://")}, "the page must load nothing from elsewhere"
    assert (tmp_path / "page.png").stat().st_size > 10_000


def _ask(page: Any, token: str) -> str:
    page.select_option("#task", token)
    page.click("#run")
    done = "answer => answer.textContent || document.getElementById('status').textContent.startsWith('failed')"
    page.wait_for_function(f"({done})(document.getElementById('answer'))", timeout=60_000)
    page.wait_for_selector("#run:enabled")
    assert not page.inner_text("#status").startswith("failed"), page.inner_text("#status")
    return str(page.inner_text("#answer"))
