"""The errors that a user is meant to read.

Library code raises `UserError` or one of its subclasses; only the command line prints them, as two lines, and exits
with code 2.
"""

_CONTROLS = (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)  # each stands for a byte of a file name that is not UTF-8
_NOT_IN_A_LINE = frozenset(map(chr, (*_CONTROLS, *_SURROGATES)))
_MAX_LINE = 4000  # characters


class UserError(Exception):
    """The input of a user cannot be used.

    `what` states what is wrong and where, in one line without a full stop; `hint` instructs how to fix it, likewise.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what, self.hint = to_line(what), to_line(hint)
        super().__init__(self.what if not hint else f"{self.what}\nhint: {self.hint}")

    @property
    def line(self) -> str:
        """Return what is wrong and how to fix it in one line."""
        return f"{self.what}; {self.hint}" if self.hint else self.what

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        return type(self), (self.what, self.hint)  # so that it travels between worker processes


def to_line(text: str) -> str:
    """Return a text as one line for a person, which a name or a value of the user may be part of.

    What breaks or reorders a line or controls a terminal is escaped, and the middle of a very long text is left out.
    """
    if len(text) > _MAX_LINE:
        text = f"{text[: _MAX_LINE * 3 // 4]} ... {text[-_MAX_LINE // 5 :]} ({len(text):,} characters)"
    return "".join(repr(char)[1:-1] if char in _NOT_IN_A_LINE else char for char in text)


class OptionError(UserError):
    """A flag or an argument has a value that is not allowed, or contradicts another one."""


class DatasetError(UserError):
    """A dataset is missing, cannot be read or does not fit the task."""


class CheckpointError(UserError):
    """A checkpoint or an adapter is missing, incomplete or does not fit the model."""


class DeviceMemoryError(UserError):
    """The model or a batch does not fit the memory of the device."""


class MissingPackageError(UserError):
    """An optional package is not installed."""
