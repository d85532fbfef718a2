"""A tiny Florence-2 for tests: native classes, random weights, a byte-level tokenizer, 64x64 pixels.

`tiny_model(seed)` returns a model and its processor; `save_tiny(folder)` writes them in transformers' layout.
"""

import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from florence2.model.tasks import SPECIAL_TOKENS

PIXELS = 64
LAYOUT_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def tiny_model(seed: int = 0) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Return a random model in eval mode and its processor; the seed determines the weights."""
    processor = tiny_processor()
    config = tiny_config(processor.image_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(config).eval()
        _scale_weights(model)
    model.generation_config = tiny_generation_config()
    return model, processor


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """Write a tiny model and its processor into a folder, in transformers' layout."""
    model, processor = tiny_model(seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_processor() -> Florence2Processor:
    """Return the processor: 64x64 pixels, five image tokens, a byte-level tokenizer."""
    images = CLIPImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_seq_length=5,
    )
    return Florence2Processor(image_processor=images, tokenizer=tiny_tokenizer())


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer whose few merges are pairs of lowercase letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in "aeiou" for b in string.ascii_lowercase]
    words = [*LAYOUT_TOKENS[:4], *alphabet, *(a + b for a, b in merges), LAYOUT_TOKENS[4]]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in LAYOUT_TOKENS])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL_TOKENS, "<image>")])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )


def tiny_config(image_token_id: int) -> Florence2Config:
    """Return the config; windows are padded, and the numbers of heads differ between encoder and decoder."""
    vision = Florence2VisionConfig(
        embed_dim=(8, 16, 24, 32),
        num_heads=(1, 2, 2, 4),
        num_groups=(2, 2, 4, 4),
        depths=(1, 1, 1, 1),
        window_size=3,
        projection_dim=32,
        max_temporal_embeddings=4,
        max_position_embeddings=4,
    )
    text = BartConfig(
        vocab_size=image_token_id + 1,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        attention_dropout=0.1,
        activation_dropout=0.1,
    )
    return Florence2Config(vision_config=vision, text_config=text, image_token_id=image_token_id)


def tiny_generation_config() -> GenerationConfig:
    """Return the generation config of Microsoft's checkpoints."""
    return GenerationConfig(
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        num_beams=3,
        early_stopping=True,
        no_repeat_ngram_size=3,
    )


def _scale_weights(model: Florence2ForConditionalGeneration) -> None:
    """Scale the weights up, so that answers depend on the image, the prompt and the previous tokens."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn_like(weight)
        elif "embed" in name or "shared" in name:
            weight.data = 0.5 * torch.randn_like(weight)
        else:
            weight.data = torch.randn_like(weight) * (1.5 / weight[0].numel() ** 0.5)
    _raise_eos_probability(model)


def _raise_eos_probability(model: Florence2ForConditionalGeneration) -> None:
    """Raise the probability of eos, so that about half of all greedy answers end before the maximal length."""
    language = model.model.language_model
    bias = language.decoder.layers[-1].final_layer_norm.bias.data
    bias *= 5
    language.shared.weight.data[language.config.eos_token_id] += 12 * bias / (bias @ bias)
