from florence2.model.storage.run_metadata import RunMetadata
from florence2.training.saving.model_card import model_card


def test_card_has_base_tags_data_and_prompt() -> None:
    settings, data = {"rank": 4, "output_dir": "out"}, {"num_images": 3}
    text = model_card(RunMetadata("owner/model", "main", "<CAPTION>", "What?", settings, data))
    assert text.startswith("---\nbase_model: owner/model\n")
    assert "- lora" in text
    assert "| num_images | 3 |" in text
    assert "*What?*" in text
