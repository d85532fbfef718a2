import pytest

from florence2.files import atomic_write, parse_json, to_json


def test_atomic_write_replaces_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, sync=True) as file:
        file.write("new ü")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new ü"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_with_error_keeps_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_write(path) as file:
            file.write("new")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_of_bytes(tmp_path):
    with atomic_write(tmp_path / "a.bin", "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


def test_json_has_no_character_that_controls_a_terminal_or_ends_a_line() -> None:
    text = "a\x1b\x7f\x9b\x85\u2028\u202e\udcff é 猫"
    encoded = to_json({"text": text})
    assert encoded == r'{"text": "a\u001b\u007f\u009b\u0085\u2028\u202e\udcff é 猫"}'
    assert parse_json(encoded) == {"text": text}
