"""The lessons of the build: see what is in the cells, speak from cells' codes, both together, find what words name.

Each loss depends on the step, the seed and this process's place among its fellows alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence2.demo.scenes import Scene, make_scene
from florence2.demo.stages.asking import FINDING, Batch, Question, ask, cells_of
from florence2.demo.stages.cells import CellHeads
from florence2.demo.stages.codes import CellCodes
from florence2.demo.stages.images import FIRST_SEED, STRETCH, Pixels
from florence2.demo.stages.lesson import Lesson
from florence2.demo.stages.speech import SpeechLoss, looked_away, speak
from florence2.devices import has_bfloat16
from florence2.model.processing import Preprocessor

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
UNDRAWN_SEED = 1_000_000_000  # scenes of the second lesson, which nobody draws, begin here
NOISE = 0.25  # added to codes, so that the language model gets used to a tower that is not sure
QUESTIONS = 4  # about each picture, in the third lesson
_SHARES = {
    "called": 2.0,
    "name": 0.5,
    "word": 1.0,
    "letter": 1.0,
    "order": 1.0,
    "size": 0.3,
    "place": 0.5,
    "ground": 0.2,
    "sides": 1.0,
    "reach": 1.0,
    "whole": 0.3,
}


@dataclass(frozen=True)
class Class:
    """What all lessons share; `rank` of `world` is this process's place among its fellows."""

    model: Florence2ForConditionalGeneration
    preprocessor: Preprocessor
    heads: CellHeads
    codes: CellCodes
    speech: SpeechLoss
    store: list[Pixels]
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def learner(self) -> nn.ModuleDict:
        """All that learns, in one piece."""
        return nn.ModuleDict({"florence": self.model, "heads": self.heads})

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.speech.near.device

    def autocast(self) -> torch.autocast:
        """Half precision for products: four times as fast on a CPU that has it, six times as slow on others."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))

    def drawn(self, step: int, batch: int) -> tuple[list[Scene], Tensor]:
        """Pick this process's share of a batch from the store: scenes and normalized pixels."""
        num = sum(len(stretch) for stretch in self.store)
        at = (step * self.world + self.rank) * batch
        order = np.random.default_rng((self.seed, at // num)).permutation(num)
        chosen = [int(order[(at + i) % num]) for i in range(batch)]
        pixels_BHWC = np.stack([self.store[i // STRETCH][i % STRETCH] for i in chosen])
        return [make_scene(FIRST_SEED + i) for i in chosen], self.preprocessor.normalize(
            torch.from_numpy(pixels_BHWC).to(self.device)
        ).contiguous()

    def look(self, pixels_BCHW: Tensor) -> Tensor:
        """Run vision tower and projector: [B, 1 + cells, width]."""
        found: Tensor = self.model.get_image_features(pixels_BCHW).pooler_output
        return found

    def seen(self, features_BFD: Tensor, scenes: list[Scene]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return the heads' loss, the distance to the code, and numbers worth showing."""
        kinds_BCH, boxes_BC4, counts_B = (each.to(self.device) for each in cells_of(scenes))
        losses = self.heads.losses(features_BFD, kinds_BCH, boxes_BC4, counts_B)
        distance = (features_BFD.float() - self.codes(kinds_BCH, boxes_BC4)).square().mean()
        shown = {name: losses[name].item() for name in ("called", "word", "letter", "sides", "reach", "accuracy")}
        total = torch.stack([share * losses[name] for name, share in _SHARES.items()]).sum()
        return total, distance, shown


def see(room: Class, steps: int, batch: int) -> Lesson:
    """First lesson: vision tower and projector name what is in each cell, and write its code."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels_BCHW = room.drawn(step, batch)
        with room.autocast():
            heads, distance, shown = room.seen(room.look(pixels_BCHW), scenes)
        return heads + 10 * distance, shown | {"code": distance.item()}

    rates = {"florence.model.vision_tower": 1.2e-3, "florence.model.multi_modal_projector": 1.2e-3, "heads": 1.2e-3}
    return Lesson("see", room.learner, loss, steps, batch * room.world, rates, clip=5.0)


def speak_from_codes(room: Class, steps: int, batch: int) -> Lesson:
    """Second lesson: the language model answers from codes of scenes that nobody draws."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        first = (step * room.world + room.rank) * batch
        random = Random(f"{room.seed} {first}")
        scenes = [make_scene(UNDRAWN_SEED + room.seed * 100_000_000 + first + i) for i in range(batch)]
        kinds_BCH, boxes_BC4, _ = (each.to(room.device) for each in cells_of(scenes))
        codes_BFD = room.codes(kinds_BCH, boxes_BC4)
        generator = torch.Generator().manual_seed(first)
        codes_BFD = codes_BFD + NOISE * torch.randn(codes_BFD.shape, generator=generator).to(room.device)
        return _spoken(room, codes_BFD, [ask(made, room.preprocessor, random) for made in scenes], list(range(batch)))

    rates = {"florence.model.language_model": 1.5e-3}
    return Lesson("speak", room.learner, loss, steps, batch * room.world, rates)


def see_and_speak(room: Class, steps: int, batch: int) -> Lesson:
    """Third lesson: everything together, on pictures, all tasks; the heads go on helping a little."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels_BCHW = room.drawn(step, batch)
        random = Random(f"{room.seed} {step} {room.rank}")
        questions = [ask(made, room.preprocessor, random) for made in scenes for _ in range(QUESTIONS)]
        of = [i for i in range(batch) for _ in range(QUESTIONS)]
        with room.autocast():
            features_BFD = room.look(pixels_BCHW)
            heads, _, shown = room.seen(features_BFD, scenes)
        spoken, said = _spoken(room, features_BFD, questions, of)
        return spoken + 0.2 * heads, said | shown

    rates = {"florence": 1e-3, "florence.model.vision_tower": 5e-4, "heads": 1e-3}
    return Lesson("together", room.learner, loss, steps, batch * QUESTIONS * room.world, rates, clip=2.0)


def find(room: Class, steps: int, batch: int) -> Lesson:
    """Last lesson: the language model alone, on what the tower sees, mostly about finding what a word names."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels_BCHW = room.drawn(step, batch)
        random = Random(f"find {room.seed} {step} {room.rank}")
        per_image = 2 * QUESTIONS
        asked = [ask(made, room.preprocessor, random, FINDING) for made in scenes for _ in range(per_image)]
        with torch.no_grad(), room.autocast():
            features_BFD = room.look(pixels_BCHW)
        orders_BC = cells_of(scenes)[0][..., 2].to(room.device)
        return _spoken(room, features_BFD, asked, [i for i in range(batch) for _ in range(per_image)], orders_BC)

    rates = {"florence.model.language_model": 1e-3}
    return Lesson("find", room.learner, loss, steps, batch * 2 * QUESTIONS * room.world, rates, warmup=50)


def _spoken(
    room: Class, features_BFD: Tensor, asked: list[Question], of: list[int], orders_BC: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the speech loss of questions, `of[i]` being the picture of the i-th; short and long ones apart.

    With `orders_BC`, which thing is in each cell, the loss also says where to look.
    """
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].target))
    words = places = away = torch.zeros((), device=room.device)
    right = 0.0
    for part in (order[: len(order) // 2], order[len(order) // 2 :]):
        batch = Batch.of([asked[i] for i in part]).to(room.device)
        with room.autocast():
            of_part = [of[i] for i in part]
            logits_NV, labels_N, layers = speak(room.model, features_BFD[of_part], batch, orders_BC is not None)
        if orders_BC is not None:
            away = away + looked_away(layers, batch, orders_BC[of_part], room.speech.first_bin) / 2
        word, place = room.speech(logits_NV, labels_N)
        words, places = words + word / len(asked), places + place / len(asked)
        right += room.speech.words_right(logits_NV, labels_N) / 2
    shown = {"words": words.item(), "places": places.item(), "right": right}
    return (words + places) / 4 + away, shown | ({"away": away.item()} if orders_BC is not None else {})
