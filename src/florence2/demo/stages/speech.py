"""The language model's lesson: its loss, its first embedding, and one pass from cells' features to loss.

A location is one of a thousand tokens, but near ones are nearly right: their embeddings start as waves, so that near
bins look alike, and the loss gives neighbours a share. It knows nothing of where features come from.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Florence2ForConditionalGeneration
from transformers.models.florence2.modeling_florence2 import shift_tokens_right

from florence2.demo.stages.asking import Batch
from florence2.demo.stages.cells import NOT_HERE
from florence2.demo.stages.codes import waves
from florence2.model.tasks import NUM_BINS

_WAVES = (0.5, 1, 2, 4, 8, 16, 32)


def start_embedding(model: Florence2ForConditionalGeneration, first_bin: int, twins: list[tuple[int, int]]) -> None:
    """Give near location tokens near embeddings, and a word the same with and without a space before it."""
    rows = model.get_input_embeddings().weight.data
    generator = torch.Generator().manual_seed(1)
    rows.copy_(torch.randn(rows.shape, generator=generator) * 0.05)
    shares = (torch.arange(NUM_BINS) + 0.5) / NUM_BINS
    heights = torch.tensor([1.0, 1, 1, 0.8, 0.6, 0.4, 0.25]).repeat(2)
    spread = torch.randn(2 * len(_WAVES), rows.shape[1], generator=generator) * 0.05 / 2
    rows[first_bin : first_bin + NUM_BINS] = (waves(shares, _WAVES) * heights) @ spread * 1.3
    for bare, spaced in twins:
        rows[bare] = rows[spaced] + 0.3 * rows[bare]


def twins(vocabulary: dict[str, int]) -> list[tuple[int, int]]:
    """Return the ids of each word without and with a space before it."""
    space = "\u0120"
    return [(vocabulary[word[1:]], i) for word, i in vocabulary.items() if word[0] == space and word[1:] in vocabulary]


class SpeechLoss(nn.Module):
    """Cross entropy in which a location's neighbours count as nearly right."""

    def __init__(self, first_bin: int, blur: float = 4.0) -> None:
        super().__init__()
        self.first_bin = first_bin
        bins = torch.arange(NUM_BINS)
        near = (-((bins[:, None] - bins[None]) / blur).square() / 2).exp()
        self.near: Tensor
        self.register_buffer("near", near / near.sum(-1, keepdim=True))

    def forward(self, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses' sum over words and over locations."""
        scores = logits_NV.float().log_softmax(-1)
        bins = labels_N - self.first_bin
        place = (bins >= 0) & (bins < NUM_BINS)
        words = F.nll_loss(scores[~place], labels_N[~place], reduction="sum")
        shares = scores[place][:, self.first_bin : self.first_bin + NUM_BINS]
        return words, -(self.near[bins[place]] * shares).sum()

    def words_right(self, logits_NV: Tensor, labels_N: Tensor) -> float:
        """Return the share of the tokens that are no locations, of which the likeliest is right."""
        words = (labels_N < self.first_bin) | (labels_N >= self.first_bin + NUM_BINS)
        return float((logits_NV[words].argmax(-1) == labels_N[words]).float().mean())


def speak(
    model: Florence2ForConditionalGeneration, features_BFD: Tensor, batch: Batch, attended: bool = False
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return logits [N, V] and labels [N] of all that is to be said, given the projected features of the pictures.

    With `attended`, also where the decoder's layers looked, each [B, heads, T, features and prompt].
    """
    prompt = model.get_input_embeddings()(batch.prompt_BP)
    embeds = torch.cat([features_BFD.to(prompt.dtype), prompt], dim=1)
    seen = torch.ones(features_BFD.shape[:2], dtype=torch.long, device=prompt.device)
    mask = torch.cat([seen, (batch.prompt_BP != 1).long()], dim=1)
    config = model.config.text_config
    before = shift_tokens_right(batch.labels_BT, config.pad_token_id, config.decoder_start_token_id)
    out = model.model(
        inputs_embeds=embeds,
        attention_mask=mask,
        decoder_input_ids=before,
        use_cache=False,
        output_attentions=attended,
    )
    hidden_BTD = out.last_hidden_state
    said = batch.labels_BT != NOT_HERE
    return model.lm_head(hidden_BTD[said]), batch.labels_BT[said], out.cross_attentions if attended else ()


def looked_away(layers: tuple[Tensor, ...], batch: Batch, orders_BC: Tensor, first_bin: int) -> Tensor:
    """Return how far one head in each layer but the first is from looking at the thing asked about, at locations.

    `orders_BC` says which thing is in each cell. Left alone, nothing makes the decoder compare names with cells: it
    can tell most answers from the order of things.
    """
    places_BT = (batch.labels_BT >= first_bin) & (batch.labels_BT < first_bin + NUM_BINS)
    row, step = (places_BT & (batch.about_B != NOT_HERE)[:, None]).nonzero(as_tuple=True)
    if not len(row):
        return torch.zeros((), device=batch.labels_BT.device)
    wanted_NC = orders_BC[row] == batch.about_B[row, None]
    cells = slice(1, 1 + orders_BC.shape[1])
    seen = [(layer[row, 0, step, cells].float() * wanted_NC).sum(-1) for layer in layers[1:]]
    return -torch.stack(seen).clamp(min=1e-6).log().mean()
