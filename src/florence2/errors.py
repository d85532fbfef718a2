"""The one error a user is meant to read.

Domain code raises `UserError`; the command line alone prints it, as two lines and exit code 2.
"""


class UserError(Exception):
    """Something the user gave cannot be used.

    `what` says what is wrong and where, in one line without a full stop; `hint` says how to mend it, likewise.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\nhint: {hint}")
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        return type(self), (self.what, self.hint)  # so that it travels between worker processes
