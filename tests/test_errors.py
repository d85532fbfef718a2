"""The errors that a user reads."""

import pickle

import pytest

from florence2 import errors
from florence2.errors import UserError

KINDS = [UserError, *UserError.__subclasses__()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_user_error_survives_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("a.jpg is missing", "pass another path")))
    assert type(error) is kind
    assert (error.what, error.hint) == ("a.jpg is missing", "pass another path")
    assert str(error) == "a.jpg is missing\nhint: pass another path"


def test_names_with_line_breaks_stay_in_one_line():
    error = UserError("`a\nb\x1b[31m\u202e.jpg` is missing", "remove `a\r\nb`")
    assert error.what == r"`a\nb\x1b[31m\u202e.jpg` is missing"
    assert error.hint == r"remove `a\r\nb`"
    assert UserError("`猫 Å.jpg` is missing").what == "`猫 Å.jpg` is missing"
    assert UserError("caf\udce9.jpg is missing").what == r"caf\udce9.jpg is missing"
    long = UserError(f"`{'x' * 10**7}` is missing").what
    assert len(long) < 4000
    assert long.endswith("x` is missing (10,000,013 characters)")


def test_kinds_of_user_error():
    names = {kind.__name__ for kind in KINDS if kind.__module__ == errors.__name__}
    assert names == {
        "UserError",
        "OptionError",
        "DatasetError",
        "CheckpointError",
        "DeviceMemoryError",
        "MissingPackageError",
    }
