"""The data collator: examples of the dataset, padded and stacked into the tensors of a batch.

Shapes: B is the batch size, S the length of the longest prompt, T the length of the longest target, N the number of
labels that are not padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from florence2.model.processing import IGNORED_LABEL, Preprocessor


@dataclass(frozen=True)
class Florence2Collator:
    """Pads examples to the longest prompt and the longest target of the batch.

    A batch has `attention_mask` only if its prompts differ in length. `label_positions_N` holds the positions, in the
    flattened labels (B x T), that are not padding.

    With `pad_to_multiple_of`, batches have few shapes: lengths are multiples of it, except that of prompts of
    `common_prompt_length`; and `label_positions_N` is padded with -1 to one of eight lengths.

    With `preprocessor`, a batch holds the arguments of transformers' `Florence2ForConditionalGeneration`, as its own
    `Trainer` requires: `pixel_values` instead of bytes, and no `label_positions_N`.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1
    common_prompt_length: int | None = None
    preprocessor: Preprocessor | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make the tensors of one batch; if a worker could not read an example, return its error instead."""
        if errors := [example["error"] for example in examples if "error" in example]:
            return {"error": errors[0]}
        batch: dict[str, Any] = self._pad_tokens(examples)
        for name in ("pixels_HWC", "features_ND"):
            if name in examples[0]:
                stacked = torch.from_numpy(np.stack([example[name] for example in examples]))
                batch[name.replace("_", "_B")] = stacked
        if self.preprocessor is not None:
            return batch | {"pixel_values": self.preprocessor.normalize(batch.pop("pixels_BHWC"))}
        batch["label_positions_N"] = self._label_positions(batch["labels"])
        if unreadable := [error for example in examples for error in example.get("unreadable", ())]:
            batch["unreadable"] = unreadable
        return batch

    def _pad_tokens(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = [example["input_ids"] for example in examples]
        lengths = {len(ids) for ids in prompts}
        multiple = 1 if lengths == {self.common_prompt_length} else self.pad_to_multiple_of
        labels = [example["labels"] for example in examples]
        batch = {
            "input_ids": _pad(prompts, self.pad_token_id, multiple),
            "labels": _pad(labels, IGNORED_LABEL, self.pad_to_multiple_of),
        }
        if lengths != {batch["input_ids"].shape[1]}:
            batch["attention_mask"] = _pad([[1] * len(ids) for ids in prompts], 0, multiple)
        return batch

    def _label_positions(self, labels_BT: torch.Tensor) -> torch.Tensor:
        positions_N = (labels_BT.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
        multiple = 1 if self.pad_to_multiple_of == 1 else max(labels_BT.numel() // 8, 1)
        return functional.pad(positions_N, (0, -len(positions_N) % multiple), value=-1)


def shift_right(labels_BT: torch.Tensor, decoder_start_token_id: int, pad_token_id: int) -> torch.Tensor:
    """Return the decoder inputs of labels: the start token, then all labels but the last."""
    shifted_BT = torch.full_like(labels_BT, decoder_start_token_id)
    shifted_BT[:, 1:] = labels_BT[:, :-1]
    return shifted_BT.masked_fill(shifted_BT == IGNORED_LABEL, pad_token_id)


def _pad(rows: Sequence[Sequence[int]], value: int, multiple: int) -> torch.Tensor:
    length = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
