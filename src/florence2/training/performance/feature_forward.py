"""Forward of `Florence2Model` that accepts image features in place of pixels and never waits for a GPU.

Shapes: B images, N image tokens, D the model's width, H and W the model's image size, S ids of the prompt.
"""

from typing import Any

import torch

from florence2.errors import CheckpointError
from florence2.model.patches import replace_forward


def use_feature_forward(model: Any, num_image_tokens: int) -> None:
    """Replace the forward of the `Florence2Model` inside a model; every prompt must begin with its image tokens.

    transformers searches the ids for image tokens and counts them, and a GPU is waited for there. The replacement
    takes a tensor of three dimensions in the place of pixels as image features.
    """
    inner = inner_model(model)
    replace_forward(inner, FeatureForward(inner, num_image_tokens))


class FeatureForward:
    """Forward of a `Florence2Model` during training; calls without an image or with encoder outputs go to the class.

    `num_image_tokens` is the number of image tokens that the processor puts in front of a prompt.
    """

    def __init__(self, inner: Any, num_image_tokens: int) -> None:
        self._inner = inner
        self._num_image_tokens = num_image_tokens

    def __call__(self, input_ids: Any = None, pixel_values: Any = None, **kwargs: Any) -> Any:
        """Run ids (B, S) with pixels (B, 3, H, W) or features (B, N, D)."""
        inner, class_forward = self._inner, type(self._inner).forward
        if input_ids is None or pixel_values is None or kwargs.get("encoder_outputs") is not None:
            return class_forward(inner, input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        are_features = pixel_values.ndim == 3
        features_BND = pixel_values if are_features else inner.get_image_features(pixel_values).pooler_output
        if features_BND.shape[1] != self._num_image_tokens:
            raise CheckpointError(
                f"the model makes {features_BND.shape[1]} tokens of an image, and its processor reserves "
                f"{self._num_image_tokens}",
                "fix `size` or `image_seq_length` in its preprocessor_config.json",
            )
        prompts_BSD = inner.get_input_embeddings()(input_ids[:, self._num_image_tokens :])
        embeds_BSD = torch.cat((features_BND.to(prompts_BSD.dtype), prompts_BSD), 1)
        return class_forward(inner, **(kwargs | {"inputs_embeds": embeds_BSD}))


def inner_model(model: Any) -> Any:
    """Return the `Florence2Model` inside a model for conditional generation, with or without a LoRA around it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model
