"""The limits of requests, and the error that becomes an HTTP status."""

from __future__ import annotations

from dataclasses import dataclass, fields

from florence2.errors import OptionError, UserError


@dataclass(frozen=True)
class RequestLimits:
    """What one request may cost, and how many may be in work."""

    max_request_bytes: int = 32 * 2**20
    max_image_pixels: int = 100_000_000
    max_images: int = 16
    max_predictions: int = 256
    max_queue: int = 256
    image_timeout: float = 10.0
    request_timeout: float = 120.0

    def __post_init__(self) -> None:
        """Refuse limits that no request can meet."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not value > 0:
                is_bytes = item.name == "max_request_bytes"
                text = f"`max_request_mb` is {value // 2**20}" if is_bytes else f"`{item.name}` is {value}"
                raise OptionError(text, "pass a number above 0")


class RequestError(UserError):
    """A request that is refused, with its HTTP status and the seconds after which it may be repeated."""

    def __init__(self, what: str, hint: str = "", *, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(what, hint)
        self.status, self.retry_after = status, retry_after

    @property
    def message(self) -> str:
        """Return what is wrong and how to fix it, in one line."""
        text = f"{self.what}; {self.hint}" if self.hint else self.what
        return text.encode(errors="replace").decode()  # it may repeat a name of the request

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the HTTP response."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    @classmethod
    def of(cls, error: UserError) -> RequestError:
        """Make a bad request of an error of the library, whose flags are the keys of a request."""
        return error if isinstance(error, RequestError) else cls(error.what, error.hint.replace("`--", "`"))


def require_text(*texts: str | None) -> None:
    """Raise a RequestError for a text that holds half of a surrogate pair, which no encoding can hold."""
    for text in texts:
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise RequestError("a text of the request is not valid Unicode", "remove the half of a pair") from None


def busy(what: str) -> RequestError:
    """Make the error of a server that has too much work."""
    return RequestError(what, "repeat the request later", status=503, retry_after=2)
