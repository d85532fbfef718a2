"""The errors that a user is meant to read.

Library code raises `UserError` or one of its subclasses; only the command line prints them, as two lines, and exits
with code 2.
"""


class UserError(Exception):
    """The input of a user cannot be used.

    `what` states what is wrong and where, in one line without a full stop; `hint` instructs how to fix it, likewise.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\nhint: {hint}")
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        return type(self), (self.what, self.hint)  # so that it travels between worker processes


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
