import pytest

from florence2.engine.decoding.batch_state import round_up_to_stride
from florence2.engine.generation_config import GenerationConfig, LengthLimits
from florence2.engine.requests import Request, RequestOutput
from florence2.engine.scheduler import Scheduler
from tests.engine.images import samples


def requests(count: int, max_length: int = 99) -> list[Request]:
    limits = LengthLimits(0, max_length, 0)
    return [Request(sample, None, [], None, limits, GenerationConfig()) for sample in samples(count)]


class Queue:
    """A queue of items that are ready, which records whether a caller would wait."""

    def __init__(self, items: list[Request | RequestOutput]) -> None:
        self.items, self.waits = items, []

    def get(self, *, wait: bool) -> Request | RequestOutput | None:
        self.waits.append(wait)
        return self.items.pop(0) if self.items else None


def holding(scheduler: Scheduler) -> list[str | None]:
    return [running.request.sample.id if running else None for running in scheduler.slots]


def test_requests_take_the_first_free_slots():
    scheduler = Scheduler(4, static_shapes=False)
    first, *rest = requests(4)
    assert scheduler.place([first, rest[0]], [0, 5]) == [0, 1]
    assert scheduler.finish(0) is first
    assert scheduler.place(rest[1:], [0, 2]) == [0, 2]
    assert holding(scheduler) == ["2.png", "1.png", "3.png", None]
    assert (scheduler.num_running, scheduler.searches) == (3, (0, 2, 5))


def test_admission_waits_only_when_idle_and_returns_failures_at_once():
    scheduler = Scheduler(2, static_shapes=False)
    failed = RequestOutput(samples(1)[0], None)
    first, second, third = requests(3)
    queue = Queue([failed, first, second, third])
    assert scheduler.admit(queue, 1) == ([first, second], [failed])
    assert queue.waits == [True, False, False]


@pytest.mark.parametrize(("running", "admitted"), [(0, 8), (1, 6), (5, 2), (7, 0)])
def test_static_shapes_admit_full_batches(running: int, admitted: int):
    scheduler = Scheduler(8, static_shapes=True)
    scheduler.place(requests(running), [0] * running)
    found, _ = scheduler.admit(Queue(requests(9)), 2)
    assert len(found) == admitted


@pytest.mark.parametrize(
    ("static_shapes", "slots", "moves"), [(False, 3, ((5, 0), (6, 2))), (True, 4, ((5, 0), (6, 2)))]
)
def test_plan_moves_requests_to_the_front(static_shapes: bool, slots: int, moves: tuple):
    scheduler = Scheduler(8, static_shapes=static_shapes)
    scheduler.place(requests(7), [0] * 7)
    for slot in (0, 2, 3, 4):
        scheduler.finish(slot)
    plan = scheduler.plan_step(round_up_to_stride)
    assert (plan.slots, plan.moves, plan.tokens, plan.searches) == (slots, moves, 32, (0,))
    assert holding(scheduler)[:4] == ["5.png", "1.png", "6.png", None]


def test_plan_counts_tokens_up_to_the_limit():
    scheduler = Scheduler(2, static_shapes=False)
    scheduler.place(requests(1, max_length=33), [0])
    assert [scheduler.plan_step(round_up_to_stride).tokens for _ in range(40)] == [32] * 31 + [64] * 9
    assert scheduler.slots[0].length == 33


def test_cancelled_requests_free_their_slots():
    scheduler = Scheduler(3, static_shapes=False)
    scheduler.place(requests(3), [0, 1, 0])
    assert scheduler.drop_cancelled(lambda sample: sample.id != "1.png") == [1]
    assert holding(scheduler) == ["0.png", None, "2.png"]
    assert scheduler.searches == (0,)
    scheduler.clear()
    assert scheduler.num_running == 0
