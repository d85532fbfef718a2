"""The command in a process of its own: what it refuses, adapters by name, and its end."""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

import florence2
from florence2.apps.serve.run_server import load_service
from florence2.cli.program import main
from florence2.config import ServedModelSettings, ServeSettings
from florence2.model.adapter.lora import add_lora, save_adapter
from florence2.model.storage.run_metadata import RunMetadata, write_run_metadata
from tests.apps.serve.live_server import png

COMMAND = [sys.executable, "-m", "florence2", "serve", "--model_path", "demo", "--device", "cpu", "--dtype", "float32"]


@contextmanager
def server_process(*flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    """Start the command on a free port; yield its process, its URL and the lines of its log."""
    command = [*COMMAND, "--port", "0", *flags]
    lines: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        try:
            assert process.stderr
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://\S+", line):
                    break
            else:
                raise AssertionError("".join(lines))
            reader = threading.Thread(target=lambda: lines.extend(process.stderr))
            reader.start()
            yield process, found[0], lines
        finally:
            process.terminate()
            process.wait(30)
            reader.join()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that change captions, one of them trained on a prompt of its own."""
    folders = {}
    for seed, name in enumerate(("pirate", "poet"), 1):
        folder = tmp_path_factory.mktemp(name)
        model, processor = florence2.load("demo", dtype="float32", device="cpu")
        torch.manual_seed(seed)
        lora = add_lora(model, rank=4, alpha=4, init=False, target_modules="language")
        with torch.no_grad():
            for weight_name, weight in lora.named_parameters():
                if "lora_" in weight_name:
                    weight.normal_(0, 0.15)
        save_adapter(lora, folder, base="demo")
        processor.save_pretrained(folder)
        folders[name] = folder
    prompt = "Describe as a pirate."
    write_run_metadata(folders["pirate"], RunMetadata("demo", None, prompt, prompt))
    return folders


def predict_with(path: str | Path, task: str) -> str:
    model, processor = florence2.load(path, dtype="float32", device="cpu")
    config = florence2.EngineConfig(florence2.GenerationConfig(max_length=24))
    with florence2.Engine(model, processor, config) as engine:
        return next(engine.run([florence2.Sample("image", png(), task)])).text


def test_adapters_answer_by_name_at_the_same_time_and_a_signal_ends_the_server(adapters: dict[str, Path]) -> None:
    tasks = {"demo": "detailed_caption", "pirate": "Describe as a pirate.", "poet": "detailed_caption"}
    paths = {"demo": "demo", **adapters}
    expected = {name: predict_with(paths[name], task) for name, task in tasks.items()}
    assert len(set(expected.values())) == 3
    flags = [f"{name}={path}" for name, path in adapters.items()]
    uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    part = {"type": "image_url", "image_url": {"url": uri}}
    flags += ["--max_length", "24", "--host", "0.0.0.0"]
    with server_process("--adapter", *flags, FLORENCE2_API_KEY="k3y") as (process, url, lines):
        start = lines[-1]  # logged once the server accepts connections
        assert (
            f"serving demo, pirate, poet at {url} ; the page is {url}/ and the API is described at {url}/docs" in start
        )
        url, key = url.replace("0.0.0.0", "127.0.0.1"), {"authorization": "Bearer k3y"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with httpx.Client(base_url=url, timeout=60, headers=key) as client, ThreadPoolExecutor(12) as threads:
            content = [{"type": "text", "text": "Describe this image"}, part]

            def ask(name: str) -> str:
                body = {"model": name, "messages": [{"role": "user", "content": content}]}
                value = client.post("/v1/chat/completions", json=body).json()
                assert value["model"] == name
                return value["choices"][0]["message"]["content"]

            names = list(tasks) * 4
            assert list(threads.map(ask, names)) == [expected[name] for name in names]
            listed = [row["id"] for row in client.get("/v1/models").json()["data"]]
            assert listed[:3] == list(tasks)
            # Requests that are in work when the signal comes are answered.
            body = {"model": "poet", "images": [uri] * 12, "task": ["od", "ocr", "more_detailed_caption"]}
            late = [threads.submit(client.post, "/v1/predict", json=body) for _ in range(2)]
            while client.get("/health").json()["requests_in_work"] < 2:
                pass
            for _ in range(2):  # a second one changes nothing
                process.send_signal(signal.SIGTERM)
            assert [each.result().status_code for each in late] == [200, 200]
        assert process.wait(30) == 0
    log = "".join(lines)
    assert re.search(r"model pirate: \d+ MiB beside the base, of \d+", log)
    assert "model poet, task detailed_caption (caption length)" in log
    assert "2 open requests will be answered" in log
    assert "the server has ended" in log
    assert "Traceback" not in log
    assert "k3y" not in log


def test_adapters_use_the_memory_of_the_base(adapters: dict[str, Path]) -> None:
    settings = ServeSettings(ServedModelSettings("demo", tuple(f"{name}={path}" for name, path in adapters.items())))
    models = [served.engine.engine.model for served in load_service(settings).models.values()]
    base = dict(models[0].named_parameters())
    for model in models[1:]:
        own = {name for name, weight in model.named_parameters() if weight.data_ptr() != base[name].data_ptr()}
        assert own == {name for name, weight in model.named_parameters() if not torch.equal(weight, base[name])}
        assert 0 < len(own) < len(base) / 2


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--host", "0.0.0.0"], "lets other machines use the server, and there is no API key"),
        (["--port", "99999"], "`--port 99999` is not a whole number from 0 to 65535"),
        (["--port", "0", "--adapter", "demo=demo"], "has a name that cannot be used"),
        (["--port", "0", "--adapter", "a:b=demo"], "has a name that cannot be used"),
        (["--port", "0", "--adapter", "demo"], "is not of the form key=value"),
        (["--port", "0", "--model_path", "/no/such/folder"], "/no/such/folder"),
        (["--port", "0", "--max_queue", "0"], "`--max_queue 0` is not a whole number of at least 1"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_refusals(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLORENCE2_API_KEY", raising=False)
    model = [] if "--model_path" in flags else ["--model_path", "demo"]
    assert main(["serve", *model, *flags]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "hint: " in error


def test_port_in_use_is_an_error_before_a_model_is_loaded(capsys: pytest.CaptureFixture) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--model_path", "/no/such", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
