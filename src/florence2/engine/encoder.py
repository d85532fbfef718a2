"""Pictures and prompts to encoder states, a few questions at a time.

The features of a picture are kept with its view, so that several questions about one picture look at it once. Knows
nothing of slots.

Shapes: B questions of a micro-batch, N encoder positions, D model size; pixels are B x C x H x W.
"""

# ruff: noqa: N806 - shape suffixes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from florence2.engine.options import Rules, Stats
from florence2.engine.questions import Question, View
from florence2.model.processing import Processing


class Encoder:
    """The vision tower and the encoder of a `Florence2ForConditionalGeneration`."""

    def __init__(self, model: Any, processing: Processing, rules: Rules, stats: Stats) -> None:
        self._model, self._processing, self._rules, self._stats = model, processing, rules, stats
        self.vision = model.model.vision_tower.to(memory_format=torch.channels_last)

    def encode(self, questions: Sequence[Question]) -> Tensor:
        """Give the states of several questions, (B, N, D); shorter prompts are padded behind."""
        new = list({id(q.view): q.view for q in questions if q.view.features_ND is None}.values())
        if new:
            with self._stats.timed("vision"):
                self._look(new)
        with self._stats.timed("encode"):
            return self._read(questions)

    def _look(self, views: Sequence[View]) -> None:
        """Compute the features of pictures that were not seen yet."""
        model = self._model
        levels_BHWC = torch.from_numpy(np.stack([view.pixels_HWC for view in views]))
        # Bytes travel to the device, numbers are made there; the layout stays channels-last.
        pixels_BCHW = self._processing.normalize(levels_BHWC.to(model.device)).to(model.dtype)
        seen_BCHW = self.vision(pixels_BCHW).last_hidden_state
        for view, features_ND in zip(views, model.model.multi_modal_projector(seen_BCHW), strict=True):
            view.features_ND = features_ND

    def _read(self, questions: Sequence[Question]) -> Tensor:
        model = self._model
        lengths = [len(question.prompt_ids) for question in questions]
        longest = max(lengths)
        ids = [q.prompt_ids + [self._rules.pad] * (longest - len(q.prompt_ids)) for q in questions]
        embeds_BND = model.get_input_embeddings()(torch.tensor(ids, device=model.device))
        for embeds_ND, question in zip(embeds_BND, questions, strict=True):
            assert question.view.features_ND is not None
            embeds_ND[: self._processing.num_image_tokens] = question.view.features_ND
        mask_BN = None
        if min(lengths) < longest:
            ends = torch.tensor(lengths, device=model.device)
            mask_BN = (torch.arange(longest, device=model.device) < ends[:, None]).long()
        states: Tensor = model.get_encoder()(inputs_embeds=embeds_BND, attention_mask=mask_BN).last_hidden_state
        return states
