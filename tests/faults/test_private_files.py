"""Temporary files and those of the cache are private, whatever the mask of the user allows."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.training.images import save_calm, save_photos

STRACE = shutil.which("strace")
_CREATED = re.compile(r'(?:openat\(AT_FDCWD, "([^"]+)", [A-Z_|]*O_CREAT[A-Z_|]*|mkdir\("([^"]+)"), 0(\d+)\) = \d')


@pytest.mark.long
@pytest.mark.skipif(STRACE is None, reason="needs strace")
@pytest.mark.parametrize("command", ["train", "predict"])
def test_temporary_files_are_private(tmp_path: Path, command: str) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "photos", arcname=".")
    words = {
        "train": "train --dataset photos --model_id model --output_dir r --epochs 1 --batch_size 8 --device cpu",
        "predict": "predict --model_path demo --input_path 0.tar --output_path shards/",
    }
    private = [tmp_path / name for name in ("temporary", "cache")]
    for folder in private:
        folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(private[0]), "XDG_CACHE_HOME": str(private[1])}
    code = "import os, sys; os.umask(0); from florence2.cli.program import main; sys.exit(main(sys.argv[1:]))"
    log = tmp_path / "strace.txt"
    trace = [str(STRACE), "-f", "-qq", "-e", "trace=openat,mkdir", "-o", str(log), sys.executable, "-c", code]
    run = subprocess.run(
        [*trace, *words[command].split()], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    created = {Path(found[1] or found[2]): int(found[3], 8) for found in _CREATED.finditer(log.read_text())}
    ours = {path: mode for path, mode in created.items() if any(path.is_relative_to(folder) for folder in private)}
    assert ours
    parents = {private[1] / "florence2"}  # the folder in the cache, whose own folders are private
    torch_folders = {path for path in ours if "torchinductor" in path.name}  # of torch, empty
    assert {path: oct(mode) for path, mode in ours.items() if mode & 0o077}.keys() <= parents | torch_folders
