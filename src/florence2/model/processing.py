"""Picture to pixels, prompt to ids, ids to text: the only place where any of it happens, training and prediction alike.

The settings are those of a `Florence2Processor`; the numbers equal its own. Knows nothing of files.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers.convert_slow_tokenizer import bytes_to_unicode

from florence2.devices import to_device
from florence2.errors import UserError
from florence2.model.tasks import Task

IGNORED_LABEL = -100  # what padding in labels is marked with


@lru_cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], rescale: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give what bytes are multiplied by and what is added then, once for each device: a recording sends nothing."""
    with torch.inference_mode(False):
        scale = torch.tensor([rescale / each for each in std])
        shift = torch.tensor([-each / spread for each, spread in zip(mean, std, strict=True)])
        return to_device(scale, device), to_device(shift, device)


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """How one checkpoint wants its pictures and words.

    `size` is (height, width) in pixels. Pictures are stretched to it, never cropped; then each byte is multiplied by
    `rescale`, `mean` is taken away and the rest divided by `std`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float
    resample: Image.Resampling
    num_image_tokens: int
    image_token_id: int
    tokenizer: Any

    @classmethod
    def from_processor(cls, processor: Any) -> "Preprocessor":
        """Read the settings of a `Florence2Processor`; refuse those that would need other steps than ours."""
        images, tokenizer = processor.image_processor, processor.tokenizer
        _refuse_other_steps(images)
        return cls(
            size=_height_and_width(images.size),
            mean=_three(images.image_mean),
            std=_three(images.image_std),
            rescale=float(images.rescale_factor),
            resample=_filter(images.resample),
            num_image_tokens=int(processor.num_image_tokens),
            image_token_id=int(processor.image_token_id),
            tokenizer=tokenizer,
        )

    @property
    def min_size(self) -> tuple[int, int]:
        """(width, height) below which decoding a picture at a reduced scale would lose detail."""
        return self.size[1], self.size[0]

    @property
    def fill_color(self) -> tuple[int, int, int]:
        """The colour that is nothing to the model."""
        red, green, blue = (min(max(round(mean / self.rescale), 0), 255) for mean in self.mean)
        return red, green, blue

    def resize(self, image: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
        """Stretch an RGB picture, or a (left, top, right, bottom) of it, to the model's size: uint8, H x W x 3."""
        height, width = self.size
        return np.array(image.convert("RGB").resize((width, height), resample=self.resample, box=box))

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Turn bytes (HWC or BHWC) into the model's float32 (CHW or BCHW), on the device where they lie.

        The memory stays laid out channels-last, as it came.
        """
        levels = torch.as_tensor(pixels)
        scale, shift = _scale_and_shift(self.mean, self.std, self.rescale, levels.device)
        return (levels.float() * scale + shift).movedim(-1, -3)

    def prompt_ids(self, task: Task, input: str = "", max_length: int | None = None) -> list[int]:  # noqa: A002
        """Give the encoder's ids: the picture's places, then `<s> sentence </s>`.

        A prompt beyond `max_length` ids, places included, is an error: cut short it would ask something else.
        """
        sentence = task.format_prompt(input)
        self._refuse_layout_tokens(sentence)
        ids = [self.image_token_id] * self.num_image_tokens + self._ids(sentence)
        if max_length is not None and len(ids) > max_length:
            room = max_length - self.num_image_tokens - 2
            raise UserError(
                f"the prompt has {len(ids) - self.num_image_tokens - 2} tokens, the model takes {room}",
                f"shorten the prompt that begins with `{sentence[:40]}`",
            )
        return ids

    def target_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Give the ids that the model shall learn to say: `<s> text </s>`, cut to `max_length` with `</s>` kept."""
        return self.encode_target(text, max_length)[0]

    def encode_target(self, text: str, max_length: int | None = None) -> tuple[list[int], bool]:
        """Give `target_ids`, and whether the text had to be cut."""
        ids = self._ids(self._without_layout_tokens(text))
        if max_length is None or len(ids) <= max_length:
            return ids, False
        return [*ids[: max_length - 1], ids[-1]], True

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Read ids as text; layout tokens (`<s>`, `</s>`, `<pad>`, picture places) go, location tokens stay."""
        numbers = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        dropped = self._dropped_ids()
        kept = [number for number in numbers if number not in dropped]
        text = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text).strip()

    def char_spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Say where each id stands in `decode(ids)`: [start, end) of characters, of which layout tokens have none.

        Where a character is spelt by several ids, each of them stands on it.
        """
        text, ends = "", []
        for piece in self._pieces(ids):
            start = len(text)
            text += piece or ""
            ends.append((start, start if piece is None else max(start + 1, len(text))))
        before = len(text) - len(text.lstrip())  # `decode` strips
        return [(max(start - before, 0), max(end - before, 0)) for start, end in ends]

    def _pieces(self, ids: Sequence[int]) -> Iterator[str | None]:
        """Give the characters that each id completes; None for what `decode` drops."""
        dropped, said = self._dropped_ids(), codecs.getincrementaldecoder("utf-8")("replace")
        for number, token in zip(ids, self.tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            yield None if number in dropped or token is None else said.decode(_token_bytes(token))

    def _ids(self, text: str) -> list[int]:
        whole = f"{self.tokenizer.bos_token}{text}{self.tokenizer.eos_token}"
        return cast("list[int]", self.tokenizer(whole, add_special_tokens=False)["input_ids"])

    def _dropped_ids(self) -> set[int]:
        return {self.image_token_id, IGNORED_LABEL, *self._layout_ids()}

    def _layout_ids(self) -> tuple[int, int, int]:
        return self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

    def _layout_tokens(self) -> list[str]:
        ids = [*self._layout_ids(), self.image_token_id]
        return cast("list[str]", self.tokenizer.convert_ids_to_tokens(ids))

    def _refuse_layout_tokens(self, sentence: str) -> None:
        for token in self._layout_tokens():
            if token in sentence:
                raise UserError(f"the prompt holds `{token}`, which the model reads as layout", "leave it out")

    def _without_layout_tokens(self, text: str) -> str:
        # Captions pasted from raw output of a model often end in </s><pad><pad>.
        for token in self._layout_tokens():
            text = text.replace(token, "")
        return text.strip()


def max_target_tokens(model_config: Any) -> int:
    """Give the most ids a target may have, `<s>` and `</s>` included: the decoder has so many positions."""
    return int(model_config.text_config.max_position_embeddings)


_BYTES = {letter: number for number, letter in bytes_to_unicode().items()}


def _token_bytes(token: str) -> bytes:
    """Give the bytes that a token of a byte-level vocabulary stands for; added tokens stand for themselves."""
    numbers = [_BYTES.get(letter) for letter in token]
    return token.encode() if None in numbers else bytes(cast("list[int]", numbers))


def _refuse_other_steps(images: Any) -> None:
    wanted = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False, "do_pad": False}
    for name, value in wanted.items():
        if bool(getattr(images, name, value)) != value:
            raise UserError(
                f"the processor says `{name}: {str(not value).lower()}`, which Florence-2 was not trained with",
                f"set `{name}` to {str(value).lower()} in preprocessor_config.json or processor_config.json",
            )


def _height_and_width(size: Any) -> tuple[int, int]:
    height, width = size.get("height"), size.get("width")
    if not height or not width:
        raise UserError(
            f"the processor's picture size is `{dict(size)}`, not a height and a width",
            "set `size` to for example {'height': 768, 'width': 768} in preprocessor_config.json",
        )
    if height != width:
        raise UserError(f"the processor's picture size is {height} x {width}", "Florence-2 takes square pictures only")
    return int(height), int(width)


def _three(values: Any) -> tuple[float, float, float]:
    one, two, three = (float(value) for value in values)
    return one, two, three


def _filter(resample: Any) -> Image.Resampling:
    # Pillow's number, or torchvision's name of the same filter.
    named = getattr(resample, "value", resample)
    if isinstance(named, str):
        named = getattr(Image.Resampling, named.upper(), None)
    try:
        return Image.Resampling(named)
    except ValueError:
        raise UserError(
            f"the processor's `resample: {resample}` is no filter of Pillow", "set it to 3, bicubic"
        ) from None
