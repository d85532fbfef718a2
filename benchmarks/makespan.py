"""A simulated job on many engines: how long it takes, and how much work is repeated, where shards fail.

    python -m benchmarks.makespan
    python -m benchmarks.makespan --num_shards 100000 --num_engines 100 --images_per_shard 1000 --rate 120

Every shard takes a lognormal time around images / rate. An attempt fails with probability `--failures` after a uniform
part of its time, and its shard returns to the queue, as after a lost node. Prints the mean of `--num_rounds` rounds and
one line of JSON; nothing is measured here.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Job:
    """A job: its shards, the engines, and how times and failures are distributed."""

    num_shards: int = 1000
    images_per_shard: int = 1000
    num_engines: int = 100
    rate: float = 120.0
    sigma: float = 0.5
    failures: float = 0.01

    @property
    def ideal_seconds(self) -> float:
        """Return the time of engines that share all images evenly."""
        return self.num_shards * self.images_per_shard / self.rate / self.num_engines


@dataclass(frozen=True)
class Outcome:
    """The time until the last shard is done, the fraction of repeated work, and the fraction of idle engines' time."""

    makespan_seconds: float
    repeated_fraction: float
    idle_fraction: float


def simulate(job: Job, rng: random.Random) -> Outcome:
    """Run a job: the engine that is free first takes the next shard."""
    mean = job.images_per_shard / job.rate
    mu = math.log(mean) - job.sigma**2 / 2  # so that the mean of the lognormal times is `mean`
    queue = [rng.lognormvariate(mu, job.sigma) for _ in range(job.num_shards)]
    engines = [0.0] * job.num_engines
    useful = repeated = end = 0.0
    while queue:
        seconds = queue.pop()
        start = heapq.heappop(engines)
        if rng.random() < job.failures:
            worked = seconds * rng.random()
            repeated += worked
            queue.insert(0, seconds)
        else:
            worked = seconds
            useful += worked
        end = max(end, start + worked)
        heapq.heappush(engines, start + worked)
    return Outcome(end, repeated / (useful + repeated), 1 - (useful + repeated) / (end * job.num_engines))


def main() -> None:
    """Simulate some rounds and print their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Job()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--num_rounds", type=int, default=20)
    values = vars(parser.parse_args())
    num_rounds = values.pop("num_rounds")
    job = Job(**values)
    outcomes = [simulate(job, random.Random(seed)) for seed in range(num_rounds)]
    means = {name: statistics.mean(asdict(each)[name] for each in outcomes) for name in asdict(outcomes[0])}
    longest = max(each.makespan_seconds for each in outcomes)
    print(f"ideal {job.ideal_seconds:,.0f} s; makespan {means['makespan_seconds']:,.0f} s (longest {longest:,.0f} s)")
    print(f"repeated {means['repeated_fraction']:.2%} of the work, idle {means['idle_fraction']:.1%} of engine time")
    print(json.dumps({**asdict(job), "ideal_seconds": job.ideal_seconds, **means, "longest_seconds": longest}))


if __name__ == "__main__":
    main()
