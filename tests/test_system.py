import subprocess
import sys
from pathlib import Path

import pytest

from florence2.errors import UserError
from florence2.system import _cgroup_limits, free_memory, require_compiler


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="`--compile` needs `no-such-compiler`"):
        require_compiler("`--compile`")
    monkeypatch.setenv("CXX", sys.executable)
    require_compiler("`--compile`")


def test_free_memory_is_limited_by_the_container(tmp_path: Path) -> None:
    assert 2**20 < free_memory() < 2**50
    assert _cgroup_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert _cgroup_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert _cgroup_limits(tmp_path) == [(1000, 500)]


FAULTS = """
import resource, sys
import torch
from florence2.system import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator()
for _ in range(12):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_tuned_allocator_keeps_freed_memory():
    plain, tuned = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("plain", "tuned")
    )
    assert plain > 100  # five times 64 MiB, in pages of 4 KiB or of 2 MiB
    assert tuned * 10 < plain


def test_a_process_ends_with_its_code_after_threads_and_exit_handlers() -> None:
    code = """
import atexit, threading, time
from florence2.system import exit_process
atexit.register(lambda: print("handler"))
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
exit_process(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (3, ["thread", "handler"])


def test_help_and_wrong_values_keep_their_exit_codes() -> None:
    for words, expected in ((["--version"], 0), (["train", "--help"], 0), (["predict", "--num_beams", "x"], 2)):
        done = subprocess.run([sys.executable, "-m", "florence2", *words], capture_output=True, text=True, check=False)
        assert (done.returncode, bool(done.stdout or done.stderr)) == (expected, True)
