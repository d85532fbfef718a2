import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

from florence2.config import DEFAULT_TARGET_MODULES
from florence2.errors import UserError
from florence2.model.adapter import lora
from florence2.model.adapter.target_modules import resolve_target_modules
from florence2.model.load import load
from florence2.model.storage import legacy_layout as legacy
from tests.model.original import TINY, assert_equals_original, edit_json, expected, inputs_of

PUBLISHED = ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


def tiny():
    return load(TINY, device="cpu")[0]


def add_lora(model, **options):
    return lora.add_lora(model, **({"rank": 4, "alpha": 8} | options))


def randomize_lora(model, seed=0):
    """Add noise to a new LoRA, so that it has an effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data += 0.05 * torch.randn(value.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model):
    case = expected()
    return model(**inputs_of(case), decoder_input_ids=case["in.decoder_input_ids"]).logits


@pytest.fixture
def adapter(tmp_path):
    """The adapter trained on Microsoft's names, with a local base."""
    folder = shutil.copytree(TINY / "adapter", tmp_path / "adapter")
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(TINY))
    return folder


@pytest.mark.parametrize("merge", [True, False])
def test_adapter_for_legacy_names_equals_the_original(merge, adapter):
    model, _ = load(adapter, device="cpu", merge=merge)
    assert isinstance(model, Florence2ForConditionalGeneration if merge else PeftModel)
    assert_equals_original(model if merge else model.get_base_model(), expected("expected_adapter"))
    case = expected("expected_adapter")
    ids = model.generate(**inputs_of(case), max_new_tokens=24)
    assert ids.tolist() == case["generate.caption.beam3"].tolist()


def test_saved_adapter_is_native_and_equal(adapter, tmp_path):
    wrapped, _ = load(adapter, device="cpu", merge=False)
    lora.save_adapter(wrapped, tmp_path / "again", revision="refs/pr/6")
    saved = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == (str(TINY), "refs/pr/6")
    names = load_file(tmp_path / "again" / "adapter_model.safetensors").keys()
    assert names == set(json.loads((TINY / "adapter_key_map.json").read_text()).values()) & names
    assert len(names) == 152
    assert_equals_original(load(tmp_path / "again", device="cpu")[0], expected("expected_adapter"))


def test_base_is_an_argument_or_relative_to_the_adapter(adapter, tmp_path):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="microsoft/nowhere")
    with pytest.raises(UserError, match=r"needs its base `microsoft/nowhere`: .*cache has no") as caught:
        load(adapter, device="cpu", offline=True)
    assert "base_model_name_or_path" in caught.value.hint
    model, _ = load(adapter, device="cpu", base=TINY)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="../base")
    shutil.copytree(TINY, tmp_path / "base")
    assert torch.equal(logits(load(adapter, device="cpu")[0]), logits(model))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not name its base"):
        load(adapter, device="cpu")


def test_default_target_modules_are_the_published_ones():
    assert DEFAULT_TARGET_MODULES == PUBLISHED
    model = tiny()
    wrapped = add_lora(model)
    trained = [name for name, value in wrapped.named_parameters() if value.requires_grad]
    assert all("lora_" in name for name in trained)
    layers = legacy.adapted_modules({name.replace(".default", ""): torch.zeros(1) for name in trained})
    assert layers == resolve_target_modules(tiny(), PUBLISHED)
    assert {layer.rpartition(".")[2] for layer in layers} == set(PUBLISHED)


def test_target_modules_by_component_regex_and_path():
    model = tiny()
    vision, language = (resolve_target_modules(model, part) for part in ("vision", "language"))
    assert sorted(vision + language) == resolve_target_modules(model, PUBLISHED)
    assert all("vision_tower" in layer for layer in vision)
    assert all("language_model" in layer for layer in language)
    everything = resolve_target_modules(model, "all-linear")
    assert set(everything) == {*vision, *language, "model.multi_modal_projector.image_projection"}
    assert resolve_target_modules(model, r".*decoder.*\.(q|v)_proj") == [
        layer for layer in language if "decoder" in layer and layer.endswith(("q_proj", "v_proj"))
    ]
    assert resolve_target_modules(model, ["lm_head", "conv"])[0] == "lm_head"
    assert len(resolve_target_modules(model, "conv")) == 4
    assert resolve_target_modules(model, "encoder.layers.0.fc1") == ["model.language_model.encoder.layers.0.fc1"]


def test_target_modules_without_match_are_refused():
    with pytest.raises(UserError, match=r"match no layer: `o_proj`, `linear`, `Conv2d`\n") as caught:
        add_lora(tiny(), target_modules=["q_proj", "o_proj", "k_proj", "linear", "Conv2d", "lm_head"])
    assert "qkv" in caught.value.hint
    with pytest.raises(UserError, match=r"match no layer: `\(`"):
        add_lora(tiny(), target_modules="(")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rslora": True, "init": "gaussian"},
        {"use_dora": True, "target_modules": ["qkv", "conv", "fc2"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": "all-linear", "dropout": 0.5},
        {"target_modules": "vision", "modules_to_save": ["image_proj_norm", "image_position_embed"]},
        {"init": "pissa", "target_modules": ["fc1", "fc2"]},
        {"init": "pissa_niter_4", "target_modules": ["fc1"]},
        {"init": "pissa", "rslora": True, "target_modules": ["qkv"]},
        {"init": "olora", "target_modules": ["q_proj"]},
        {"init": "orthogonal", "target_modules": ["q_proj"]},
        {"target_modules": ["fc1", "fc2"], "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 3}},
    ],
    ids=str,
)
def test_saved_loaded_and_merged_adapters_are_equal(options, tmp_path):
    model = tiny()
    before = logits(model)
    wrapped = randomize_lora(add_lora(model, **options).eval())
    if options.get("modules_to_save"):
        wrapped.get_base_model().model.multi_modal_projector.image_proj_norm.weight.data += 0.5
    after = logits(wrapped)
    assert (after - before).abs().max() > 1e-3
    lora.save_adapter(wrapped, tmp_path)
    wrapped_again, _ = load(tmp_path, device="cpu", merge=False)
    merged, _ = load(tmp_path, device="cpu")
    torch.testing.assert_close(logits(wrapped_again), after, atol=2e-4, rtol=0)
    torch.testing.assert_close(logits(merged), after, atol=2e-4, rtol=0)
    torch.testing.assert_close(logits(lora.merge(wrapped)), after, atol=2e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    load(TINY, device="cpu")[1].save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged", device="cpu")[0]), after, atol=2e-4, rtol=0)


def test_new_adapter_is_an_identity_with_gradients():
    model = tiny()
    before = logits(model)
    wrapped = add_lora(model)
    torch.testing.assert_close(logits(wrapped.eval()), before, atol=1e-5, rtol=0)
    case = expected()
    torch.manual_seed(0)  # with this seed drop path drops no block
    wrapped.train()
    wrapped(**inputs_of(case), labels=case["in.labels"]).loss.backward()
    gradients = [value.grad for name, value in wrapped.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    assert len(gradients) == len(resolve_target_modules(tiny(), PUBLISHED))


def test_adapter_of_output_layer_does_not_change_the_embedding():
    model = tiny()
    embedding = model.get_input_embeddings().weight.clone()
    merged = lora.merge(randomize_lora(add_lora(model, target_modules=["lm_head"])))
    assert merged.config.tie_word_embeddings is False
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert not torch.equal(merged.lm_head.weight, embedding)


def test_adapter_saved_by_peft_loads(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["lm_head", "fc1"], task_type="SEQ_2_SEQ_LM"))
        randomize_lora(wrapped.eval()).save_pretrained(tmp_path)
    assert any("base_layer" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(load(tmp_path, device="cpu")[0]), logits(wrapped), atol=2e-4, rtol=0)


def test_folder_of_trainer_loads_its_last_checkpoint(adapter, tmp_path):
    for step, scale in ((9, 0.0), (10, 1.0)):
        folder = shutil.copytree(adapter, tmp_path / "run" / f"checkpoint-{step}")
        state = load_file(adapter / "adapter_model.safetensors")
        save_file({name: scale * tensor for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    assert torch.equal(logits(load(tmp_path / "run", device="cpu")[0]), logits(load(adapter, device="cpu")[0]))


def change_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def first(state, part):
    return next(name for name in sorted(state) if part in name)


FAULTS = {
    "missing tensor": (
        lambda folder: change_weights(folder, lambda state: state.pop(first(state, "lora_B"))),
        "1 weights of the adapter match no module",
    ),
    "unknown layer": (
        lambda folder: change_weights(
            folder, lambda state: state.update({"base_model.model.language_model.nose.lora_A.weight": torch.ones(4, 8)})
        ),
        r"match no module of its base, such as `base_model\.model\.language_model\.nose",
    ),
    "another rank": (
        lambda folder: edit_json(folder / "adapter_config.json", r=3),
        "does not fit its base: .*size mismatch",
    ),
    "not LoRA": (lambda folder: edit_json(folder / "adapter_config.json", peft_type="IA3"), "of type `IA3`"),
    "changed base": (
        lambda folder: edit_json(folder / "adapter_config.json", init_lora_weights="pissa_niter_16"),
        "initialization `pissa_niter_16` changed its base",
    ),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no weights"),
    "itself": (
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path=str(folder)),
        "names itself as its base",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_adapter_is_refused_in_one_line(case, adapter):
    damage, message = FAULTS[case]
    damage(adapter)
    with pytest.raises(UserError, match=message) as caught:
        load(adapter, device="cpu")
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": 3}, "`flavour` is not a LoRA option"),
        ({"init": "corda"}, "`corda` is not a supported LoRA initialization"),
        ({"rank": 0}, "LoRA cannot be added: .*positive"),
        ({"modules_to_save": ["embed_tokens"]}, "which cannot have a LoRA"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        add_lora(tiny(), **options)
