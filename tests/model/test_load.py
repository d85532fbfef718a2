import gzip
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Florence2Config, Florence2ForConditionalGeneration

from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy
from tests.model.original import (
    HUB,
    ROWS,
    TINY,
    TOLERANCE,
    assert_equals_original,
    copy_tiny,
    edit_json,
    expected,
    inputs_of,
    split_weights,
)


def load_on_cpu(path, **options):
    return load(path, device="cpu", **options)


@pytest.fixture(scope="module")
def loaded():
    return load_on_cpu(TINY)


def native_copy(folder, source=TINY, **options):
    model, processor = load_on_cpu(source)
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    return folder


LAYOUTS = {
    "safetensors": copy_tiny,
    "pickled": lambda folder: copy_tiny(folder, "pytorch_model.bin"),
    "safetensors shards": lambda folder: split_weights(copy_tiny(folder), "safetensors"),
    "pickled shards": lambda folder: split_weights(copy_tiny(folder, "pytorch_model.bin"), "bin"),
    "native": native_copy,
    "native shards": lambda folder: native_copy(folder, max_shard_size="400KB"),
    "native with generation in its config": lambda folder: move_generation_config(native_copy(folder)),
    "checkpoint in a trainer's folder": lambda folder: native_copy(folder / "checkpoint-10").parent,
}


def move_generation_config(folder):
    path = folder / "generation_config.json"
    saved = json.loads(path.read_text())
    edit_json(folder / "config.json", **{f"text_config__{key}": saved[key] for key in legacy.GENERATION_KEYS})
    path.unlink()
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_the_original(layout, tmp_path):
    model, _ = load_on_cpu(LAYOUTS[layout](tmp_path))
    assert not model.training
    assert_equals_original(model, expected())


@pytest.mark.parametrize("native", [False, True])
def test_exported_fine_tune_has_an_untied_output_layer(native, tmp_path):
    source = native_copy(tmp_path, TINY / "exported") if native else TINY / "exported"
    model, _ = load_on_cpu(source)
    assert model.config.tie_word_embeddings is False
    assert_equals_original(model, expected("expected_exported"))
    assert model.get_input_embeddings().weight is model.model.language_model.decoder.embed_tokens.weight


def test_embedding_is_one_tensor_with_four_names(loaded):
    state = loaded[0].state_dict()
    names = [legacy.SHARED, *legacy.TIED, legacy.HEAD]
    assert len({state[name].data_ptr() for name in names}) == 1
    assert state[legacy.HEAD].shape[0] == ROWS + 1
    assert not state[legacy.HEAD][ROWS:].any()


def test_gradients_equal_the_original():
    model, _ = load_on_cpu(TINY)
    case = expected()
    output = model(**inputs_of(case), labels=case["in.labels"])
    logits, labels = output.logits[..., :ROWS], case["in.labels"]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    checked = [key for key in case if key.startswith("grad.")]
    assert len(checked) == 7
    for key in checked:
        name = key.removeprefix("grad.")
        is_projection = name == legacy.PROJECTION[0]
        found = gradients[legacy.PROJECTION[1] if is_projection else legacy.native_name(name)]
        found = found.T if is_projection else found
        torch.testing.assert_close(found[: len(case[key])], case[key], **TOLERANCE)


def test_config_has_dropout_rates(loaded):
    config = loaded[0].config
    assert (config.text_config.dropout, config.text_config.attention_dropout) == (0.1, 0.1)
    assert (config.text_config.activation_dropout, config.vision_config.drop_path_rate) == (0.1, 0.1)
    assert config.text_config.max_position_embeddings == 96
    assert loaded[0].dtype == config.dtype == torch.float32


@pytest.mark.parametrize("source", [TINY, TINY / "exported"], ids=["hub", "exported"])
def test_generation_follows_text_config(source):
    found = load_on_cpu(source)[0].generation_config
    assert (found.num_beams, found.early_stopping, found.no_repeat_ngram_size) == (3, True, 3)
    assert (found.forced_bos_token_id, found.forced_eos_token_id, found.decoder_start_token_id) == (0, 2, 2)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (0, 2, 1)


def test_rows_without_a_token_are_never_generated():
    model, _ = load_on_cpu(TINY / "exported")
    inputs = inputs_of(expected("expected_exported"))
    favourite = model.generate(**inputs, max_new_tokens=12)[0, 2]
    with torch.no_grad():
        model.lm_head.weight[ROWS] = model.lm_head.weight[favourite] * 10
    assert ROWS not in model.generate(**inputs, max_new_tokens=12)
    model.generation_config.suppress_tokens = None
    assert ROWS in model.generate(**inputs, max_new_tokens=12)


@pytest.mark.parametrize("source", [TINY, TINY / "exported"], ids=["hub", "exported"])
def test_processor_equals_the_original(source, tmp_path):
    _, processor = load_on_cpu(source)
    processor.save_pretrained(tmp_path)
    known = json.loads((TINY / "expected_processing.json").read_text())
    image = Image.new("RGB", (40, 30))
    for processor in (processor, AutoProcessor.from_pretrained(tmp_path)):  # noqa: B020
        for token, number in known["special_token_ids"].items():
            assert processor.tokenizer.convert_tokens_to_ids(token) == number
        for prompt in known["prompts"].values():
            ids = processor(images=image, text=prompt["text"])["input_ids"][0]
            assert list(ids) == [ROWS] * 10 + prompt["input_ids"]
        for text, ids in known["labels"].items():
            assert processor.tokenizer(text)["input_ids"] == ids
        assert len(processor.tokenizer) == known["tokenizer_length"] + 1
        assert processor.image_token_id == ROWS
    case = expected()
    images = [Image.fromarray(case[f"in.image_{name}"].numpy()) for name in "ab"]
    pixels = processor(images=images, text=["x", "x"], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, case["in.pixel_values"], atol=1e-5, rtol=0)


def copy_real_files(name, folder):
    for path in (HUB / name).glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(HUB / "microsoft-large" / "tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize(("name", "tensors"), [("microsoft-base", 666), ("microsoft-large", 918)])
def test_tensors_of_real_checkpoints_match_the_model(name, tensors):
    shapes = json.loads(gzip.decompress((HUB / name / "shapes.json.gz").read_bytes()))
    assert len(shapes) == tensors
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        state.pop(legacy.LOGITS_BIAS)
        raw = checkpoint.read_json(HUB / name / "config.json")
        options = legacy.config_to_native(raw)
        options["text_config"]["vocab_size"] = 51289
        model = Florence2ForConditionalGeneration(Florence2Config(**options))
    native = {key: tuple(value.shape) for key, value in legacy.to_native(state).items()}
    shapes_of_model = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert native == {key: shape for key, shape in shapes_of_model.items() if key not in (*legacy.TIED, legacy.HEAD)}


def test_converted_large_config_equals_transformers_conversion():
    ours = legacy.config_to_native(checkpoint.read_json(HUB / "microsoft-large" / "config.json"))
    theirs = checkpoint.read_json(HUB / "community-large" / "config.json")
    for part in ("vision_config", "text_config"):
        shared = ours[part].keys() & theirs[part].keys()
        assert len(shared) > 12
        assert {key: ours[part][key] for key in shared} == {key: theirs[part][key] for key in shared}


def test_exported_base_config_equals_the_hubs():
    hub, exported = (
        legacy.config_to_native(checkpoint.read_json(HUB / name / "config.json"))
        for name in ("microsoft-base", "exported-base")
    )
    assert hub == exported


def test_real_tokenizer_has_the_known_ids(tmp_path):
    tokenizer = checkpoint.read_tokenizer(copy_real_files("microsoft-base", tmp_path))
    known = {"<od>": 50265, "<loc_0>": 50269, "<loc_999>": 51268, "<cap>": 51269, "<and>": 51288, "<image>": 51289}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in known} == known
    assert tokenizer("Hello world")["input_ids"] == [0, 31414, 232, 2]
    assert len(tokenizer) == 51290


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16, "float32", "auto", None])
def test_dtype(dtype):
    model, _ = load_on_cpu(TINY, dtype=dtype)
    expected_dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", torch.float32)
    assert {value.dtype for value in model.state_dict().values()} == {expected_dtype}


def test_loaded_weights_survive_the_removal_of_their_file(tmp_path):
    folder = native_copy(tmp_path)
    model, _ = load_on_cpu(folder)
    before = model.lm_head.weight.clone()
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(model.lm_head.weight, before)


def change_weights(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def change_tensor(name, value):
    return lambda folder: change_weights(folder, lambda state: state.update({name: value(state[name])}))


SHARED = "language_model.model.shared.weight"
FAULTS = {
    "missing": (
        lambda folder: change_weights(folder, lambda state: [state.pop(key) for key in list(state) if "fc1" in key]),
        r"weights missing in .*model\.language_model\.decoder\.layers\.0\.fc1\.bias`, .* and \d+ more",
    ),
    "no embedding": (
        lambda folder: change_weights(folder, lambda state: state.pop(SHARED)),
        "weights missing .*shared",
    ),
    "unexpected": (
        lambda folder: change_weights(folder, lambda state: state.update(extra=torch.ones(1))),
        "weights unexpected in .*: `extra`",
    ),
    "wrong shape": (
        change_tensor("image_proj_norm.weight", lambda t: t[1:].clone()),
        "wrongly shaped .*image_proj_norm",
    ),
    "not finite": (change_tensor("image_proj_norm.weight", lambda t: t * float("nan")), "not finite .*image_proj_norm"),
    "one infinite number in a matrix": (
        change_tensor("image_projection", lambda t: t.where(t != t.max(), -torch.inf)),
        "not finite .*image_projection",
    ),
    "a bias on the logits": (
        change_tensor("language_model.final_logits_bias", lambda t: t + 1),
        "weights unexpected in .*: `language_model.final_logits_bias`",
    ),
    "untied inside": (
        lambda folder: change_weights(
            folder,
            lambda state: state.update({"language_model.model.encoder.embed_tokens.weight": state[SHARED] + 1}),
        ),
        "tie `model.language_model.encoder.embed_tokens.weight` to the embedding, but they differ",
    ),
    "too few rows": (
        change_tensor(SHARED, lambda t: t[:-7].clone()),
        "tokenizer has 1501 tokens and the model 1493 rows",
    ),
    "another model": (lambda folder: edit_json(folder / "config.json", model_type="bert"), "is a `bert` model"),
    "other vision tower": (
        lambda folder: edit_json(folder / "config.json", vision_config__model_type="clip"),
        "`vision_config.model_type` 'clip'",
    ),
    "other features": (
        lambda folder: edit_json(folder / "config.json", vision_config__image_feature_source=["last_frame"]),
        "`image_feature_source`",
    ),
    "other positions": (
        lambda folder: edit_json(folder / "config.json", vision_config__image_pos_embed={"type": "sine"}),
        "`image_pos_embed.type` 'sine'",
    ),
    "string for a number": (
        lambda folder: edit_json(folder / "config.json", text_config__encoder_layers="six"),
        r"config\.json` cannot be used: .*encoder_layers",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no `tokenizer.json`"),
    "no image size": (lambda folder: (folder / "preprocessor_config.json").unlink(), "with an image size"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_checkpoint_is_refused_in_one_line(case, tmp_path):
    damage, message = FAULTS[case]
    damage(copy_tiny(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        load_on_cpu(tmp_path)
    assert "\n" not in caught.value.what
    assert not caught.value.what.endswith(".")
