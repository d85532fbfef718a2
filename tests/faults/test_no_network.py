"""Commands with `--offline` reach nothing beyond this machine, and libraries do not report their use."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.images import save_calm, save_photos

ROOT = Path(__file__).parents[2]
STRACE = shutil.which("strace")
_CALLS = "connect,sendto,sendmsg,sendmmsg"
_ADDRESS = re.compile(r"sa_family=(AF_INET6?),.*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([^\"]+)\"")
_LOOPBACK = re.compile(r"127\..*|::1")
COMMANDS = {
    "predict": "predict --model_path demo --input_path photos --output_path o.jsonl --offline",
    "data check": "data check photos --offline",
    "train": "train --dataset photos --model_id model --output_dir r --epochs 1 --batch_size 8 --device cpu --offline",
    "train with trackers": "train --dataset photos --model_id model --output_dir s --epochs 1 --batch_size 8"
    " --device cpu --log_with tensorboard,wandb --offline",
    "export to openvino": "export --model_path demo --to openvino --output_path e --offline",
    "export to onnx": "export --model_path demo --to onnx --output_path f --offline",
}


def addresses(words: list[str], folder: Path) -> set[str]:
    """Run a command under strace, and return the addresses that it or one of its processes sent something to."""
    log = folder / "strace.txt"
    # a key, so that Weights & Biases would go online; pytest switches the telemetry of NNCF off
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT / "src")}
    environment["WANDB_API_KEY"] = "0" * 40
    command = [str(STRACE), "-f", "-qq", "-e", f"trace={_CALLS}", "-o", str(log), sys.executable, *words]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if "Operation not permitted" in run.stderr and not log.read_text():
        pytest.skip("strace may not trace here")
    assert run.returncode == 0, run.stderr[-2000:]
    return {found[2] for found in _ADDRESS.finditer(log.read_text(errors="replace"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offline")
    save_photos(folder / "photos")
    save_calm(folder / "model")
    return folder


def marked(name: str) -> object:
    return pytest.param(name, marks=() if name == "data check" else pytest.mark.long)


@pytest.mark.skipif(STRACE is None, reason="needs strace")
@pytest.mark.parametrize("name", [marked(name) for name in COMMANDS])
def test_offline_command_reaches_nothing_beyond_this_machine(folder: Path, name: str) -> None:
    found = addresses(["-m", "florence2", *COMMANDS[name].split()], folder)
    assert not {address for address in found if not _LOOPBACK.fullmatch(address)}


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_the_watch_sees_a_connection(folder: Path) -> None:
    code = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
    assert addresses(["-c", code], folder) == {"192.0.2.1"}


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_package_that_reports_its_use_does_not(package: str, tmp_path: Path) -> None:
    """OpenVINO sends an event when it is imported, onnxruntime collects events in the cache folder and sends them."""
    pytest.importorskip(package)
    code = (
        f"from florence2.system import switch_off_telemetry; switch_off_telemetry(); import {package};"
        "import sys; assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())
