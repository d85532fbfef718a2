"""torch's layers without initialization: their weights are always loaded.

The initialization of an embedding on the meta device would import torch's compiler, which takes a second.
"""

from torch import nn


class LoadedLinear(nn.Linear):
    """A linear layer whose weights are loaded."""

    def reset_parameters(self) -> None:
        """Initialize nothing."""


class LoadedConv(nn.Conv2d):
    """A convolution whose weights are loaded."""

    def reset_parameters(self) -> None:
        """Initialize nothing."""


class LoadedNorm(nn.LayerNorm):
    """A layer norm whose weights are loaded."""

    def reset_parameters(self) -> None:
        """Initialize nothing."""


class LoadedEmbedding(nn.Embedding):
    """An embedding whose weights are loaded."""

    def reset_parameters(self) -> None:
        """Initialize nothing."""
