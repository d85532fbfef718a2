import dataclasses
import pickle
from pathlib import Path

import pytest

from florence2.config import GenerationSettings, HubSettings, InferenceSettings, SpeedSettings
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import OptionError
from florence2.recipes import create_engine
from florence2.recipes.create_engine import ModelSource, parse_devices

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_hub_model_is_resolved_once_and_loaded_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    resolved, loaded = [], []
    monkeypatch.setattr(create_engine, "find_folder", lambda *args: resolved.append(args) or snapshot)
    monkeypatch.setattr(
        create_engine, "load_inference_model", lambda folder, name, **_: loaded.append((folder, name)) or (1, 2)
    )
    source = ModelSource.resolve("owner/model", HubSettings(revision="main"), "auto")
    assert resolved == [("owner/model", "main", False)]
    source = pickle.loads(pickle.dumps(source))  # as it travels to the workers
    source.load("cpu")
    snapshot.rmdir()  # a worker on another machine has no such folder
    source.load("cpu")
    assert loaded == [(snapshot, str(snapshot)), (snapshot, "owner/model")]
    assert resolved[1:] == [("owner/model", COMMIT, False)]


def test_local_model_keeps_its_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = ModelSource.resolve(str(tmp_path), HubSettings(), "auto")
    assert (source.folder, source.revision) == (tmp_path, None)


def test_devices_are_parsed() -> None:
    assert parse_devices(InferenceSettings(), None) == (None,)
    assert parse_devices(InferenceSettings(device="cpu"), None) == ("cpu",)
    assert parse_devices(InferenceSettings(), "0, 1,cpu") == ("cuda:0", "cuda:1", "cpu")
    with pytest.raises(OptionError, match="exclude each other"):
        parse_devices(InferenceSettings(device="cpu"), "0,1")


@pytest.mark.parametrize(
    ("settings", "config", "num_shared"), [(GenerationSettings, GenerationConfig, 8), (SpeedSettings, EngineConfig, 5)]
)
def test_flags_and_python_have_equal_defaults(settings: type, config: type, num_shared: int) -> None:
    flags, fields = ({field.name: field.default for field in dataclasses.fields(each)} for each in (settings, config))
    shared = flags.keys() & fields.keys()
    assert len(shared) == num_shared
    assert {name: flags[name] for name in shared} == {name: fields[name] for name in shared}
