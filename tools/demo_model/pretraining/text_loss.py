"""The loss of the language model, the initialization of its embedding, and its forward pass from vision features.

A location is one of a thousand tokens, and a neighboring location is almost correct. So location embeddings are
initialized with sinusoids, which makes neighbors similar, and the loss spreads a label over its neighbors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Florence2ForConditionalGeneration
from transformers.models.florence2.modeling_florence2 import shift_tokens_right

from florence2.model.tasks import NUM_BINS
from tools.demo_model.pretraining.cells import IGNORE_INDEX
from tools.demo_model.pretraining.codes import sinusoids
from tools.demo_model.pretraining.examples import TextBatch

_FREQUENCIES = (0.5, 1, 2, 4, 8, 16, 32)


def initialize_embedding(
    model: Florence2ForConditionalGeneration, first_bin: int, word_pairs: list[tuple[int, int]]
) -> None:
    """Make the embeddings of neighboring locations similar, and those of a word with and without a leading space."""
    rows = model.get_input_embeddings().weight.data
    generator = torch.Generator().manual_seed(1)
    rows.copy_(torch.randn(rows.shape, generator=generator) * 0.05)
    coordinates = (torch.arange(NUM_BINS) + 0.5) / NUM_BINS
    amplitudes = torch.tensor([1.0, 1, 1, 0.8, 0.6, 0.4, 0.25]).repeat(2)
    projection = torch.randn(2 * len(_FREQUENCIES), rows.shape[1], generator=generator) * 0.05 / 2
    rows[first_bin : first_bin + NUM_BINS] = (sinusoids(coordinates, _FREQUENCIES) * amplitudes) @ projection * 1.3
    for bare, spaced in word_pairs:
        rows[bare] = rows[spaced] + 0.3 * rows[bare]


def bare_and_spaced_words(vocabulary: dict[str, int]) -> list[tuple[int, int]]:
    """Return the ids of each word without and with a leading space."""
    space = "\u0120"
    return [(vocabulary[word[1:]], i) for word, i in vocabulary.items() if word[0] == space and word[1:] in vocabulary]


class TextLoss(nn.Module):
    """Cross entropy that spreads the label of a location over its neighbors."""

    def __init__(self, first_bin: int, blur: float = 4.0) -> None:
        super().__init__()
        self.first_bin = first_bin
        bins = torch.arange(NUM_BINS)
        kernel = (-((bins[:, None] - bins[None]) / blur).square() / 2).exp()
        self.soft_labels: Tensor
        self.register_buffer("soft_labels", kernel / kernel.sum(-1, keepdim=True))

    def forward(self, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of the loss over words and over locations."""
        log_probs_NV = logits_NV.float().log_softmax(-1)
        bins_N = labels_N - self.first_bin
        is_location = (bins_N >= 0) & (bins_N < NUM_BINS)
        word_loss = F.nll_loss(log_probs_NV[~is_location], labels_N[~is_location], reduction="sum")
        bin_log_probs = log_probs_NV[is_location][:, self.first_bin : self.first_bin + NUM_BINS]
        return word_loss, -(self.soft_labels[bins_N[is_location]] * bin_log_probs).sum()

    def word_accuracy(self, logits_NV: Tensor, labels_N: Tensor) -> float:
        """Return the accuracy of the tokens that are not locations."""
        is_word = (labels_N < self.first_bin) | (labels_N >= self.first_bin + NUM_BINS)
        return float((logits_NV[is_word].argmax(-1) == labels_N[is_word]).float().mean())


def forward_text(
    model: Florence2ForConditionalGeneration, features_BFD: Tensor, batch: TextBatch, output_attentions: bool = False
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return logits [N, V] and labels [N] of all target tokens, given the projected image features.

    With `output_attentions`, also the cross-attentions of the decoder's layers, each [B, heads, T, F + P].
    """
    prompt_BPD = model.get_input_embeddings()(batch.prompt_BP)
    inputs_embeds = torch.cat([features_BFD.to(prompt_BPD.dtype), prompt_BPD], dim=1)
    image_mask = torch.ones(features_BFD.shape[:2], dtype=torch.long, device=prompt_BPD.device)
    attention_mask = torch.cat([image_mask, (batch.prompt_BP != 1).long()], dim=1)
    config = model.config.text_config
    decoder_input_ids = shift_tokens_right(batch.labels_BT, config.pad_token_id, config.decoder_start_token_id)
    outputs = model.model(
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        use_cache=False,
        output_attentions=output_attentions,
    )
    hidden_BTD = outputs.last_hidden_state
    is_labeled = batch.labels_BT != IGNORE_INDEX
    attentions = outputs.cross_attentions if output_attentions else ()
    return model.lm_head(hidden_BTD[is_labeled]), batch.labels_BT[is_labeled], attentions


def attention_loss(
    attentions: tuple[Tensor, ...], batch: TextBatch, object_orders_BC: Tensor, first_bin: int
) -> Tensor:
    """Return the loss that makes one head of each layer but the first attend to the object that the prompt refers to.

    It counts where the target is a location. `object_orders_BC` has the index of the object in each cell. Without this
    loss the decoder does not learn to compare names with cells, since the order of the objects gives most answers.
    """
    is_location_BT = (batch.labels_BT >= first_bin) & (batch.labels_BT < first_bin + NUM_BINS)
    row, step = (is_location_BT & (batch.object_index_B != IGNORE_INDEX)[:, None]).nonzero(as_tuple=True)
    if not len(row):
        return torch.zeros((), device=batch.labels_BT.device)
    is_object_NC = object_orders_BC[row] == batch.object_index_B[row, None]
    cells = slice(1, 1 + object_orders_BC.shape[1])
    attention = [(layer[row, 0, step, cells].float() * is_object_NC).sum(-1) for layer in attentions[1:]]
    return -torch.stack(attention).clamp(min=1e-6).log().mean()
