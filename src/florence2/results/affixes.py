"""The user's words around captions: `--prefix` and `--suffix`."""

from dataclasses import dataclass, replace

from florence2.data.sample import Prediction
from florence2.errors import OptionError


@dataclass(frozen=True)
class Affixes:
    """Text before and after each caption; structured answers stay as they are."""

    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        """Refuse bytes that are not UTF-8, which no caption can contain."""
        try:
            f"{self.prefix}{self.suffix}".encode()
        except UnicodeEncodeError:
            raise OptionError("`--prefix` or `--suffix` is not UTF-8", "write it in UTF-8") from None

    def add(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the affixes around its caption and those of its alternatives."""
        if prediction.answer is not None or prediction.error is not None:
            return prediction
        alternatives = tuple(self.add(other) for other in prediction.alternatives)
        return replace(prediction, text=f"{self.prefix}{prediction.text}{self.suffix}", alternatives=alternatives)

    def strip(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the caption as it was generated."""
        if prediction.answer is not None or prediction.error is not None:
            return prediction
        return replace(prediction, text=prediction.text.removeprefix(self.prefix).removesuffix(self.suffix))
