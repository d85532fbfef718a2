import pytest

from florence2.distributed import LauncherRank, is_main_process, launcher_rank, local_world_size

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": 1, "RANK": 0}, {"WORLD_SIZE": 2}])
def test_process_without_launcher_is_main_and_has_no_rank(monkeypatch, values: dict[str, int]):
    set_environment(monkeypatch, **values)
    assert launcher_rank() is None
    assert is_main_process()
    assert local_world_size() == 1


def test_launcher_rank_is_read_from_environment(monkeypatch):
    set_environment(monkeypatch, WORLD_SIZE=4, RANK=3, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2)
    assert launcher_rank() == LauncherRank(rank=3, local_rank=1, world_size=4, local_world_size=2)
    assert not is_main_process()
    assert local_world_size() == 2


def test_launcher_of_one_machine_needs_no_local_ranks(monkeypatch):
    set_environment(monkeypatch, WORLD_SIZE=4, RANK=3)
    assert launcher_rank() == LauncherRank(rank=3, local_rank=3, world_size=4, local_world_size=4)
