"""Preprocessing for training and prediction: image to pixels, prompt and target to ids, ids to text.

The settings are those of a `Florence2Processor`, and so are the results.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from florence2.devices import to_device
from florence2.errors import CheckpointError, UserError
from florence2.model.tasks import NUM_BINS, InputType, Task

_TAG = re.compile(r"(?<=<)(?=\w)|(?<=</)(?=\w)")  # within a special token or what looks like one
IGNORED_LABEL = -100  # the label of padding
_MAX_TOKEN_LENGTH = 256  # characters; the longest of Florence-2's vocabulary has 128


@lru_cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], rescale: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factor and the offset of each byte, cached by device: a CUDA graph must not copy from the host."""
    with torch.inference_mode(False):
        scale = torch.tensor([rescale / each for each in std])
        shift = torch.tensor([-each / spread for each, spread in zip(mean, std, strict=True)])
        return to_device(scale, device), to_device(shift, device)


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """The preprocessing of one checkpoint.

    `size` is (height, width) in pixels. Images are stretched to it, never cropped; then each byte is multiplied by
    `rescale`, `mean` is subtracted and the rest divided by `std`.
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
        """Read the settings of a `Florence2Processor`; refuse those that need other steps."""
        images, tokenizer = processor.image_processor, processor.tokenizer
        _refuse_unsupported_steps(images)
        return cls(
            size=_height_and_width(images.size),
            mean=_as_triple(images.image_mean),
            std=_as_triple(images.image_std),
            rescale=float(images.rescale_factor),
            resample=_resampling(images.resample),
            num_image_tokens=int(processor.num_image_tokens),
            image_token_id=int(processor.image_token_id),
            tokenizer=tokenizer,
        )

    @property
    def min_size(self) -> tuple[int, int]:
        """The (width, height) below which decoding an image at a reduced scale loses detail."""
        return self.size[1], self.size[0]

    @cached_property
    def location_ids(self) -> range:
        """The ids of the location tokens, in the order of their bins."""
        text = f"<loc_0><loc_{NUM_BINS - 1}>"
        first, *rest = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if rest != [first + NUM_BINS - 1]:
            what = "the tokenizer does not have the 1,000 location tokens in a row"
            raise CheckpointError(what, "load the tokenizer of a Florence-2")
        return range(first, first + NUM_BINS)

    @property
    def fill_color(self) -> tuple[int, int, int]:
        """The colour that is normalized to zero."""
        red, green, blue = (min(max(round(mean / self.rescale), 0), 255) for mean in self.mean)
        return red, green, blue

    def resize(self, image: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
        """Stretch an image, or its part (left, top, right, bottom), to the model's size: RGB, uint8, HWC."""
        height, width = self.size
        return np.array(image.convert("RGB").resize((width, height), resample=self.resample, box=box))

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Convert bytes (HWC or BHWC) to normalized float32 (CHW or BCHW) on their own device.

        The memory format remains channels-last.
        """
        bytes_HWC = torch.as_tensor(pixels)
        scale, shift = _scale_and_shift(self.mean, self.std, self.rescale, bytes_HWC.device)
        return (bytes_HWC.float() * scale + shift).movedim(-1, -3)

    def prompt_ids(self, task: Task, input: str = "", max_length: int | None = None) -> list[int]:  # noqa: A002
        """Return the encoder's ids: the image tokens, then `<s> prompt </s>`.

        Raises UserError where there are more than `max_length` ids, because a truncated prompt is another prompt.
        """
        prompt = task.format_prompt(input)
        self._refuse_unusable_prompt(prompt, max_length)
        is_words = task.input_type is InputType.WORDS
        ids = [self.image_token_id] * self.num_image_tokens + self._tokenize(prompt, literal=is_words)
        if max_length is not None and len(ids) > max_length:
            max_tokens = max_length - self.num_image_tokens - 2
            raise UserError(
                f"the prompt has {len(ids) - self.num_image_tokens - 2} tokens, the model takes {max_tokens}",
                f"shorten the prompt that begins with `{prompt[:40]}`",
            )
        return ids

    def target_ids(self, text: str, max_length: int | None = None, *, literal: bool = False) -> list[int]:
        """Return the labels of a target: `<s> text </s>`, truncated to `max_length` before `</s>`."""
        return self.encode_target(text, max_length, literal=literal)[0]

    def encode_target(
        self, text: str, max_length: int | None = None, *, literal: bool = False
    ) -> tuple[list[int], bool]:
        """Return `target_ids`, and whether it is truncated; `literal` makes `<loc_5>` and `</s>` letters."""
        text = text.strip() if literal else self._without_layout_tokens(text)
        end = None if max_length is None else max_length * _MAX_TOKEN_LENGTH  # a token takes memory, used or not
        ids = self._tokenize(text[:end], literal=literal)
        if max_length is None or len(ids) <= max_length:
            return ids, False
        return [*ids[: max_length - 1], ids[-1]], True

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Return the text of ids without layout tokens (`<s>`, `</s>`, `<pad>`, `<image>`), with location tokens."""
        all_ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        dropped_ids = self._dropped_ids()
        text_ids = [each for each in all_ids if each not in dropped_ids]
        text = self.tokenizer.decode(text_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text).strip()

    def char_spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the characters [start, end) of each id in `decode(ids)`; layout tokens have empty spans.

        Where several ids encode one character, it is the span of each of them.
        """
        text, spans = "", []
        for piece in self._pieces(ids):
            start = len(text)
            text += piece or ""
            spans.append((start, start if piece is None else max(start + 1, len(text))))
        stripped = len(text) - len(text.lstrip())  # `decode` strips
        return [(max(start - stripped, 0), max(end - stripped, 0)) for start, end in spans]

    def _pieces(self, ids: Sequence[int]) -> Iterator[str | None]:
        """Yield the characters that each id completes; None for ids that `decode` drops."""
        dropped_ids, decoder = self._dropped_ids(), codecs.getincrementaldecoder("utf-8")("replace")
        for token_id, token in zip(ids, self.tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            yield None if token_id in dropped_ids or token is None else decoder.decode(_token_bytes(token))

    def _tokenize(self, text: str, *, literal: bool = False) -> list[int]:
        if literal and _TAG.search(text):  # tokens never cross this cut, and no special token is left
            parts = [self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in _TAG.split(text)]
            return [self.tokenizer.bos_token_id, *chain(*parts), self.tokenizer.eos_token_id]
        sequence = f"{self.tokenizer.bos_token}{text}{self.tokenizer.eos_token}"
        return cast("list[int]", self.tokenizer(sequence, add_special_tokens=False)["input_ids"])

    def _dropped_ids(self) -> set[int]:
        return {self.image_token_id, IGNORED_LABEL, *self._layout_ids()}

    def _layout_ids(self) -> tuple[int, int, int]:
        return self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

    def _layout_tokens(self) -> list[str]:
        ids = [*self._layout_ids(), self.image_token_id]
        return cast("list[str]", self.tokenizer.convert_ids_to_tokens(ids))

    def _refuse_unusable_prompt(self, prompt: str, max_length: int | None) -> None:
        if max_length is not None and len(prompt) > max_length * _MAX_TOKEN_LENGTH:
            raise UserError(f"the prompt has {len(prompt):,} characters", "shorten it")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError("the prompt holds half of a surrogate pair, which is no character", "remove it") from None
        if token := next((each for each in self._layout_tokens() if each in prompt), None):
            raise UserError(f"the prompt holds the layout token `{token}`", "remove it")

    def _without_layout_tokens(self, text: str) -> str:
        # Captions copied from the raw output of a model often end in </s><pad><pad>.
        for token in self._layout_tokens():
            text = text.replace(token, "")
        return text.strip()


def max_target_tokens(model_config: Any) -> int:
    """Return the number of positions of the decoder, the maximal length of a target with `<s>` and `</s>`."""
    return int(model_config.text_config.max_position_embeddings)


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of GPT-2's byte-level vocabulary: printable Latin-1 stands for itself."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_letters()


def _token_bytes(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; an added token encodes itself."""
    values = [_BYTES.get(letter) for letter in token]
    return token.encode() if None in values else bytes(cast("list[int]", values))


def _refuse_unsupported_steps(images: Any) -> None:
    supported = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False, "do_pad": False}
    for name, value in supported.items():
        if bool(getattr(images, name, value)) != value:
            raise UserError(
                f"the processor has `{name}: {str(not value).lower()}`, which Florence-2 was not trained with",
                f"set `{name}` to {str(value).lower()} in preprocessor_config.json or processor_config.json",
            )


def _height_and_width(size: Any) -> tuple[int, int]:
    height, width = size.get("height"), size.get("width")
    if not height or not width:
        raise UserError(
            f"the processor's image size is `{dict(size)}`, not a height and a width",
            "set `size` to {'height': 768, 'width': 768} or another square in preprocessor_config.json",
        )
    if height != width:
        raise UserError(f"the processor's image size is {height} x {width}", "set `size` to a square")
    return int(height), int(width)


def _as_triple(values: Any) -> tuple[float, float, float]:
    try:
        one, two, three = (float(value) for value in values)
    except (TypeError, ValueError):
        what = f"the processor's mean or deviation of the pixels is `{str(values)[:60]}`, not three numbers"
        raise CheckpointError(what, "copy `preprocessor_config.json` from the base model") from None
    return one, two, three


def _resampling(resample: Any) -> Image.Resampling:
    # Pillow's number, or torchvision's name of the same filter.
    value = getattr(resample, "value", resample)
    if isinstance(value, str):
        value = getattr(Image.Resampling, value.upper(), None)
    try:
        return Image.Resampling(value)
    except ValueError:
        what = f"the processor's `resample: {resample}` is not a filter of Pillow"
        raise UserError(what, "set it to 3 (bicubic)") from None
