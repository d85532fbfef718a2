import pytest
from torch import nn

from florence2.errors import UserError
from florence2.training.optimizer.groups import GroupRates, parameter_groups
from tests.training.models import trainable_model


def by_name(model: nn.Module, key: str, rates: GroupRates, muon: bool = False) -> dict[str, object]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = {names[id(w)]: group[key] for group in parameter_groups(model, rates, muon) for w in group["params"]}
    assert found.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    return found


def test_norms_and_biases_have_no_weight_decay() -> None:
    decays = by_name(trainable_model(rank=0), "weight_decay", GroupRates(1e-3, 0.1))
    plain = {name for name, decay in decays.items() if decay == 0.0}
    assert plain == {name for name in decays if name.endswith("bias") or "norm" in name}
    assert set(decays.values()) == {0.0, 0.1}


def test_magnitudes_of_dora_have_no_weight_decay() -> None:
    decays = by_name(trainable_model("use_dora=true"), "weight_decay", GroupRates(1e-3, 0.1))
    assert {name for name, decay in decays.items() if decay == 0.0} == {n for n in decays if "magnitude" in n}
    assert set(decays.values()) == {0.0, 0.1}


def test_lora_plus_multiplies_the_rate_of_b_matrices() -> None:
    rates = by_name(trainable_model(), "lr", GroupRates(1e-3, lora_plus_ratio=16))
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {1.6e-2}
    assert {rate for name, rate in rates.items() if ".lora_A." in name} == {1e-3}


def test_vision_component_has_its_own_rate() -> None:
    rates = by_name(trainable_model(rank=0), "lr", GroupRates(1e-3, vision=1e-5))
    slow = {name for name, rate in rates.items() if rate == 1e-5}
    assert slow == {n for n in rates if n.startswith(("model.vision_tower.", "model.multi_modal_projector."))}
    assert set(rates.values()) == {1e-3, 1e-5}


def test_vision_rate_and_lora_plus_combine() -> None:
    rates = by_name(trainable_model(), "lr", GroupRates(1e-3, lora_plus_ratio=10, vision=1e-5))
    combinations = {("vision_tower" in name, ".lora_B." in name, rate) for name, rate in rates.items()}
    assert combinations == {(False, False, 1e-3), (False, True, 1e-2), (True, False, 1e-5), (True, True, 1e-4)}


def test_vision_rate_of_a_frozen_component_raises() -> None:
    with pytest.raises(UserError, match="`--vision_learning_rate` applies to no trainable weight"):
        parameter_groups(trainable_model(freeze="vision"), GroupRates(1e-3, vision=1e-5))


def test_muon_updates_matrices_and_adam_embeddings() -> None:
    uses_muon = by_name(trainable_model(rank=0), "use_muon", GroupRates(1e-3), muon=True)
    assert all(name.endswith(".weight") for name, muon in uses_muon.items() if muon)
    assert not any(muon for name, muon in uses_muon.items() if "embed" in name or "shared" in name or "norm" in name)
    assert uses_muon["model.language_model.encoder.layers.0.fc1.weight"]
