"""The bundled model before training: architecture, initial weights, tokenizer, image processor, generation config.

It is Florence-2's architecture with small dimensions.
"""

from pathlib import Path

from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    BartConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from florence2 import model as model_package
from florence2.demo.scenes import make_scene
from florence2.demo.targets import all_targets
from florence2.model.storage.checkpoint_files import read_json, read_tokenizer
from florence2.model.tasks import TASKS
from tools.demo_model.pretraining.cells import GRID_SIZE
from tools.demo_model.pretraining.codes import MODEL_DIM
from tools.demo_model.pretraining.image_store import FIRST_SEED, IMAGE_SIZE, MEAN, STD

PATCH_STRIDES = (4, 2, 2, 1)  # the last stage has 8 x 8 cells
_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


def train_processor(folder: Path) -> Florence2Processor:
    """Train the byte-level tokenizer on the words of scenes, and save it with the image processor in `folder`."""
    texts = {word for task in TASKS for word in _words(task.format_prompt())}
    for seed in range(FIRST_SEED, FIRST_SEED + 1500):
        for target in all_targets(make_scene(seed), seed):
            texts.update(_words(target.text.split("<loc_")[0]), _words(target.input.split("<loc_")[0]))
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    # The vocabulary is large enough for every word to become one token.
    bpe.train_from_iterator(
        sorted(texts), vocab_size=4000, min_frequency=1, special_tokens=_SPECIAL_TOKENS, show_progress=False
    )
    bpe.add_special_tokens(["<mask>"])
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=Image.Resampling.BICUBIC,
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    image_processor.image_seq_length = GRID_SIZE * GRID_SIZE + 1
    post_processor = read_json(Path(model_package.__file__).with_name("post_processor.json"))
    processor = Florence2Processor(image_processor, read_tokenizer(folder), post_processor_config=post_processor)
    processor.save_pretrained(folder)
    return processor


def _words(text: str) -> list[str]:
    """Split a text as the tokenizer does: a space belongs to the word after it."""
    return [f" {word}" if index else word for index, word in enumerate(text.split(" ")) if word]


def create_model(vocab_size: int, image_token_id: int) -> Florence2ForConditionalGeneration:
    """Create the model with initial weights.

    The vision tower has PyTorch's default initialization: with transformers' standard deviation of 0.02 it did not
    learn.
    """
    vision = Florence2VisionConfig(
        embed_dim=(32, 64, 128, 256),
        depths=(1, 1, 3, 1),
        num_heads=(1, 2, 4, 8),
        num_groups=(1, 2, 4, 8),
        patch_stride=PATCH_STRIDES,
        window_size=8,
        drop_path_rate=0.0,
        projection_dim=MODEL_DIM,
        max_temporal_embeddings=4,
        max_position_embeddings=8,
    )
    text = BartConfig(
        vocab_size=vocab_size,
        d_model=MODEL_DIM,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        dropout=0.0,
        max_position_embeddings=256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=image_token_id)
    config._attn_implementation = "eager"  # faster than the fused kernels at this size
    model = Florence2ForConditionalGeneration(config)
    for module in (*model.model.vision_tower.modules(), *model.model.multi_modal_projector.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    return model


def generation_config(image_token_id: int) -> GenerationConfig:
    """Return Florence-2's generation config, which also suppresses the image token."""
    return GenerationConfig(
        num_beams=3,
        early_stopping=True,
        no_repeat_ngram_size=3,
        max_length=None,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        suppress_tokens=[image_token_id],
    )
