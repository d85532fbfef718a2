"""The tokenizer of prediction: that of the library tokenizers, with the methods of transformers' that we call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FastTokenizer:
    """Encodes and decodes text as transformers' `RobertaTokenizer` does around the same backend."""

    bos_token, eos_token, pad_token = "<s>", "</s>", "<pad>"

    def __init__(self, backend: Any) -> None:
        """Take a `tokenizers.Tokenizer`; raises KeyError where it lacks a layout token."""
        self._backend = backend
        backend.no_padding()
        backend.no_truncation()
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(
            self._id, (self.bos_token, self.eos_token, self.pad_token)
        )

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Return the ids of a text."""
        return {"input_ids": self._backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Return the text of ids; spaces are never cleaned up."""
        if clean_up_tokenization_spaces:
            raise NotImplementedError("this tokenizer does not clean up spaces")
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Return the token of each id; None for ids without one."""
        return [self._backend.id_to_token(each) for each in ids]

    def _id(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise KeyError(token)
        return int(token_id)
