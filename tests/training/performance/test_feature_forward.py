import pytest
import torch

from florence2.errors import UserError
from florence2.training.performance.feature_forward import use_feature_forward
from tests.tiny import tiny_model


def test_wrong_number_of_image_tokens_raises() -> None:
    model, _ = tiny_model()
    use_feature_forward(model, 4)
    features_BND = torch.zeros(1, 5, model.config.text_config.d_model)
    with pytest.raises(UserError, match="the model makes 5 tokens of an image, and its processor reserves 4"):
        model(input_ids=torch.ones(1, 9, dtype=torch.long), pixel_values=features_BND)


def test_forward_with_pixels_equals_that_of_transformers() -> None:
    model, processor = tiny_model()
    ids = torch.tensor([[processor.image_token_id] * 5 + [0, 7, 9, 2]])
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 64, 64), "decoder_input_ids": torch.tensor([[2, 0]])}
    with torch.no_grad():
        expected = model(**batch).logits
        use_feature_forward(model, 5)
        assert torch.equal(model(**batch).logits, expected)
