"""Shell completion in real shells: what they offer, and an installation that a second one does not change."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from florence2.cli.program import COMMANDS, main
from florence2.settings_io import setting_names

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
needs_fish = pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")

# A function that completes the last of its words, as readline does when Tab is pressed.
BASH_REPLY = """
reply() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  $(complete -p florence2 | sed 's/.*-F \\([^ ]*\\).*/\\1/') florence2 "${!#}" "${COMP_WORDS[COMP_CWORD-1]}"
  printf '%s\\n' "${COMPREPLY[@]}" end; }
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run_shell(home: Path, *command: str) -> str:
    environment = {**os.environ, "HOME": str(home), "TERM": "dumb"}
    run = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def bash_replies(home: Path, lines: list[list[str]]) -> list[set[str]]:
    """Return what an interactive bash offers for the last word of each line."""
    calls = "\n".join("reply " + " ".join(f"'{word}'" for word in ["florence2", *line]) for line in lines)
    output = run_shell(home, "bash", "-ic", BASH_REPLY + calls)
    return [set(block.split()) for block in output.split("end\n")[:-1]]


@needs_bash
def test_bash_completes_commands_flags_choices_and_files(home: Path) -> None:
    assert main(["--install-completion", "bash"]) == 0
    (home / "weights").mkdir()
    cases = {
        ("pre",): {"predict"},
        ("data", ""): {"check", "preview", "convert"},
        ("data", "convert", "--to", ""): {"jsonl", "coco", "yolo", "folder", "shards"},
        ("predict", "--num_b"): {"--num_beams"},
        ("predict", "--save_c"): {"--save_config"},
        ("predict", "--num_beams", "3", "--engine", ""): {"continuous", "generate"},
        ("predict", "--task", "dense"): {"dense_region_caption"},
        ("doctor", "wei"): {"weights"},
        ("evaluate", "--compare", "wei"): {"weights"},
        ("--install-completion", ""): {"bash", "zsh", "fish"},
    }
    replies = bash_replies(home, [list(words) for words in cases])
    assert dict(zip(cases, replies, strict=True)) == cases


@needs_bash
def test_bash_completes_every_flag_of_every_command(home: Path) -> None:
    assert main(["--install-completion", "bash"]) == 0
    expected: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():  # `predict --status` is a flag of `predict`
        flags = expected.setdefault(name.partition(" --")[0], {"--config", "--save_config", "--quiet", "--help"})
        flags |= {f"--{flag}" for flag in setting_names(command.settings)} | ({"--json"} if command.can_json else set())
    replies = bash_replies(home, [[*name.split(), "--"] for name in expected])
    assert dict(zip(expected, replies, strict=True)) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing_twice_changes_nothing(home: Path, capsys: pytest.CaptureFixture[str], shell: str) -> None:
    (home / ".bashrc").write_text("alias a=b", encoding="utf-8")
    assert main([f"--install-completion={shell}"]) == 0
    first = capsys.readouterr().out.splitlines()
    files = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert main(["--install_completion", shell]) == 0
    second = capsys.readouterr().out.splitlines()
    assert files == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert len(first) == len(second) == (1 if shell == "fish" else 2)
    assert first[0].startswith(f"wrote {home}")
    assert all(line.startswith(f"unchanged: {home}") for line in second)
    assert (home / ".bashrc").read_text("utf-8").splitlines()[0] == "alias a=b"


def test_login_shell_is_the_default(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert main(["--install-completion"]) == 0
    assert (home / ".config" / "fish" / "completions" / "florence2.fish").is_file()
    for value, what in (("/bin/tcsh", "there is no completion for `tcsh`"), ("", "the variable SHELL names no shell")):
        monkeypatch.setenv("SHELL", value)
        assert main(["--print-completion"]) == 2
        assert what in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_describe_flags(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for text in ("Number of beams", "Peak learning rate", "LoRA rank"):
        assert text in script


@needs_zsh
def test_zsh_finds_the_completion(home: Path) -> None:
    assert main(["--install-completion", "zsh"]) == 0
    assert run_shell(home, "zsh", "-ic", "print -r -- $_comps[florence2]").split() == ["_florence2"]
    run_shell(home, "zsh", "-n", str(home / ".zfunc" / "_florence2"))


@needs_fish
def test_fish_completes_commands_and_choices(home: Path) -> None:
    assert main(["--install-completion", "fish"]) == 0
    source = f"source {home}/.config/fish/completions/florence2.fish"
    offered = run_shell(
        home, "fish", "-c", f"{source}; complete -C 'florence2 pre'; complete -C 'florence2 predict --engine '"
    )
    words = {line.split("\t")[0] for line in offered.splitlines()}
    assert {"predict", "continuous", "generate"} <= words
