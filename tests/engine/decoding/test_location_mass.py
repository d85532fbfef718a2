import math

import numpy as np
import pytest
import torch

from florence2.engine.decoding.location_mass import RADII, LocationMass, unpack

FIRST, COUNT = 7, 1000


def draw_logprobs(rows: int, seed: int) -> torch.Tensor:
    """Draw log-probabilities of a vocabulary that has the location tokens in its middle: (2, rows, V)."""
    return torch.randn(2, rows, FIRST + COUNT + 5, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


@pytest.mark.parametrize("bin_number", [0, 3, 500, 990, 999])  # at both edges as many bins count as in the middle
def test_masses_are_the_probabilities_of_the_nearest_bins(bin_number: int) -> None:
    logprobs = draw_logprobs(3, bin_number)
    mass = LocationMass(range(FIRST, FIRST + COUNT))
    parent = torch.tensor([[2, 0, 2], [1, 1, 0]])
    token = torch.full_like(parent, FIRST + bin_number)
    chosen = logprobs.flatten(1).gather(1, parent * logprobs.shape[-1] + token)
    locations = mass.location_logits(logprobs)
    found, masses = unpack(mass.pack(locations, parent, token, chosen))
    assert found == chosen.tolist()  # to the bit
    for radius, index in zip(RADII, range(len(RADII)), strict=True):
        first = min(max(bin_number - radius, 0), COUNT - 2 * radius - 1)
        window = locations.exp()[..., first : first + 2 * radius + 1].sum(-1)
        expected = window.gather(1, parent)
        np.testing.assert_allclose(np.array(masses)[..., index], expected, rtol=1e-3)


def test_log_probabilities_survive_packing_to_the_bit() -> None:
    values = torch.tensor([[0.0, -1e-30, -123.456, float("-inf"), float("nan")]])
    token = torch.arange(5)[None]  # ordinary tokens, whose masses nobody reads
    mass = LocationMass(range(FIRST, FIRST + COUNT))
    packed = mass.pack(torch.zeros(1, 5, COUNT), token, token, values)
    assert packed.shape == values.shape
    found, _ = unpack(packed)
    assert found[0][:4] == values[0, :4].tolist()
    assert math.isnan(found[0][4])
