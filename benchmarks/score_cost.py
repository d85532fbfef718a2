"""What the masses of location tokens cost the engine, by alternating pairs of runs with and without them.

    python -m benchmarks.score_cost --num_pairs 8
    python -m benchmarks.score_cost --task caption --num_beams 3

One engine predicts the same scenes again and again, in turn with the masses and with log-probabilities alone. Prints
the times of each pair, the median ratio, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.devices import pick_device
from florence2.engine.decoding.location_mass import LocationMass
from florence2.engine.decoding.search import SearchRegistry
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.model.load import load


class LogProbabilitiesOnly(LocationMass):
    """Packs log-probabilities alone."""

    def location_logits(self, logits_SWV: Tensor) -> Tensor:
        """View as little as possible."""
        return logits_SWV[..., :1]

    def pack(self, *tensors: Tensor) -> Tensor:
        """Pack without masses."""
        return torch.stack((tensors[-1], tensors[-1]), -1).view(torch.int64).squeeze(-1)


def main() -> None:
    """Run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default="demo")
    parser.add_argument("--task", default="od")
    parser.add_argument("--num_scenes", type=int, default=64)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--num_pairs", type=int, default=5)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    device = pick_device(options.device)
    model, processor = load(options.model_path, dtype=torch.float32, device=device)
    samples = [Sample(str(i), make_scene(i).render(), options.task) for i in range(options.num_scenes)]
    config = EngineConfig(GenerationConfig(num_beams=options.num_beams))
    with Engine(model, processor, config) as engine:
        with_mass, without = (
            LocationMass(engine.preprocessor.location_ids, device),
            LogProbabilitiesOnly(range(1000), device),
        )
        seconds(engine, samples, with_mass)
        pairs = []
        for number in range(options.num_pairs):
            order = (with_mass, without) if number % 2 else (without, with_mass)
            times = {kind: seconds(engine, samples, kind) for kind in order}
            pairs.append((times[with_mass], times[without]))
            sys.stdout.write(f"with {pairs[-1][0]:.3f} s, without {pairs[-1][1]:.3f} s\n")
    ratio = statistics.median(a / b for a, b in pairs)
    sys.stdout.write(json.dumps({"median_ratio": round(ratio, 4), "pairs": pairs, **vars(options)}) + "\n")


def seconds(engine: Engine, samples: list[Sample], mass: LocationMass) -> float:
    """Time a run with the engine's searches made anew."""
    engine.searches = SearchRegistry(engine.model_config, mass)
    engine.decode_step.reset()
    start = time.process_time() if engine.device.type == "cpu" else time.perf_counter()
    predictions: list[Any] = list(engine.run(samples))
    assert len(predictions) == len(samples)
    return (time.process_time() if engine.device.type == "cpu" else time.perf_counter()) - start


if __name__ == "__main__":
    main()
