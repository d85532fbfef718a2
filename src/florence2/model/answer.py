"""The answer of a task in positions: boxes, quads or polygons in pixels, with labels and scores.

`Answer` converts from and to the dictionary of transformers' `post_process_generation`:

    output type        dictionary
    boxes, phrases     {"bboxes": [[x1, y1, x2, y2]], "labels": [str]}
    regions            the same, every label ""
    quads              {"quad_boxes": [[x1, y1, ..., x4, y4]], "labels": [str]}
    polygons           {"polygons": [[[x, y, x, y, ...], ...]], "labels": [""]}   an object is a list of polygons
    boxes or polygons  {"bboxes", "bboxes_labels", "polygons", "polygons_labels"}

`scores`, `iscrowd` and `area` (or `bboxes_scores` and so on) follow where an object has a score, is a crowd, has an
annotated area.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from random import Random
from typing import Any

from florence2.errors import MissingPackageError, UserError
from florence2.model import geometry
from florence2.model.geometry import AnswerItem, GeometryKind, Ring
from florence2.model.tasks import OutputType

__all__ = ["Answer", "AnswerItem", "GeometryKind"]

_KINDS: dict[OutputType, tuple[GeometryKind, ...]] = {
    OutputType.TEXT: (),
    OutputType.BOXES: (GeometryKind.BBOXES,),
    OutputType.PHRASES: (GeometryKind.BBOXES,),
    OutputType.REGIONS: (GeometryKind.BBOXES,),
    OutputType.QUADS: (GeometryKind.QUAD_BOXES,),
    OutputType.POLYGONS: (GeometryKind.POLYGONS,),
    OutputType.BOXES_OR_POLYGONS: (GeometryKind.BBOXES, GeometryKind.POLYGONS),
}
_UNLABELED = (OutputType.REGIONS, OutputType.POLYGONS)
_ORDER = list(GeometryKind)


@dataclass(frozen=True, slots=True)
class Answer:
    """A task's answer in positions: objects in order, boxes before polygons where a task answers either.

    `has_scores` states whether the dictionary has scores, which an empty answer cannot show otherwise.
    """

    output_type: OutputType
    items: tuple[AnswerItem, ...] = ()
    has_scores: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.items, key=lambda item: _ORDER.index(item.kind)))
        object.__setattr__(self, "items", ordered)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[AnswerItem]:
        return iter(self.items)

    @property
    def bboxes(self) -> list[list[float]]:
        """Return the boxes [x1, y1, x2, y2]."""
        return [item.coordinates for item in self.of_kind(GeometryKind.BBOXES)]

    @property
    def quad_boxes(self) -> list[list[float]]:
        """Return the quads [x1, y1, ..., x4, y4]."""
        return [item.coordinates for item in self.of_kind(GeometryKind.QUAD_BOXES)]

    @property
    def polygons(self) -> list[list[list[float]]]:
        """Return the masks, each a list of polygons [x, y, x, y, ...]."""
        return [item.coordinates for item in self.of_kind(GeometryKind.POLYGONS)]

    @property
    def labels(self) -> list[str]:
        """Return the label of each object, in order; "" where it has none."""
        return [item.label for item in self.items]

    @property
    def scores(self) -> list[float | None]:
        """Return the score of each object, in order; None where it has none."""
        return [item.score for item in self.items]

    def of_kind(self, kind: GeometryKind) -> tuple[AnswerItem, ...]:
        """Return the objects that are located in one way."""
        return tuple(item for item in self.items if item.kind is kind)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], output_type: OutputType | None = None) -> "Answer":
        """Read transformers' dictionary; where no output type is passed, its keys decide.

        `labels` and `scores` may stand for `bboxes_labels`, `polygons_scores` and the like; other keys are ignored.
        Raises UserError where no key is one of the output type, where a position is malformed, and where the numbers
        of labels or scores and of objects differ.
        """
        output_type = _infer_output_type(value) if output_type is None else output_type
        kinds = [kind for kind in _KINDS[output_type] if value.get(kind) is not None]
        if not kinds:
            allowed = " or ".join(f"`{kind}`" for kind in _KINDS[output_type]) or "a text"
            keys = ", ".join(f"`{key}`" for key in value)
            raise UserError(f"the answer holds {keys or 'nothing'}, not {allowed}", f"pass {allowed}")
        items = [item for kind in kinds for item in _read_items(value, kind, output_type)]
        has_scores = any(key in value for key in ("scores", *(f"{kind}_scores" for kind in kinds)))
        return cls(output_type, tuple(items), has_scores=has_scores)

    def to_dict(self) -> dict[str, Any]:
        """Return transformers' dictionary."""
        value: dict[str, Any] = {}
        scores: dict[str, Any] = {}
        for kind in _KINDS[self.output_type]:
            prefix = f"{kind}_" if self.output_type is OutputType.BOXES_OR_POLYGONS else ""
            items = self.of_kind(kind)
            value |= {kind.value: [item.coordinates for item in items], f"{prefix}labels": [i.label for i in items]}
            scores |= {f"{prefix}scores": [item.score for item in items]}
            if any(item.is_crowd for item in items):
                value |= {f"{prefix}iscrowd": [int(item.is_crowd) for item in items]}
            if any(item.annotated_area is not None for item in items):
                value |= {f"{prefix}area": [item.annotated_area for item in items]}
        return value | scores if self.has_scores else value

    def to_coco(self, image_id: int, category_ids: Mapping[str, int], first_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO annotations, numbered from `first_id`; objects whose label has no category id are left out."""
        known = [item for item in self.items if item.label in category_ids]
        return [
            {"id": i, "image_id": image_id, "category_id": category_ids[item.label], **item.coco_geometry()}
            for i, item in enumerate(known, start=first_id)
        ]

    def to_supervision(self) -> Any:
        """Return roboflow's `supervision.Detections`: the bounding boxes, with labels in `data["class_name"]`.

        Scores become `confidence`, the corners of quads `data["xyxyxyxy"]`; masks need an image size and are left out.
        """
        try:
            np, supervision = import_module("numpy"), import_module("supervision")
        except ImportError as error:
            raise MissingPackageError("this needs the package `supervision`", "pip install supervision") from error
        data: dict[str, Any] = {"class_name": np.array(self.labels, dtype=str)}
        if self.output_type is OutputType.QUADS:
            data["xyxyxyxy"] = np.array(self.quad_boxes, dtype=np.float32).reshape(-1, 4, 2)
        names = sorted(set(self.labels))
        return supervision.Detections(
            xyxy=np.array([item.bounding_box for item in self.items], dtype=np.float32).reshape(-1, 4),
            confidence=np.array(self.scores, dtype=np.float32) if self.has_scores else None,
            class_id=np.array([names.index(label) for label in self.labels], dtype=int),
            data=data,
        )

    def filter(self, score: float | None = None, label: str | Collection[str] | None = None) -> "Answer":
        """Return the objects whose score is at least `score` and whose label is `label` or one of several."""
        labels = {label} if isinstance(label, str) else label
        return self._with(
            item
            for item in self.items
            if (score is None or (item.score is not None and item.score >= score))
            and (labels is None or item.label in labels)
        )

    def transformed(
        self,
        transform: Callable[[Ring], Ring],
        size: tuple[float, float] | None = None,
        min_visible: float = 0.0,
        is_mirrored: bool = False,
    ) -> "Answer":
        """Apply `transform` to the points x, y, x, y, ... of each ring, then crop to a window of `size`, if passed.

        Boxes and polygons are clipped to the window and removed where less than the fraction `min_visible` of their
        area remains; quads that reach over its edge are removed. Where `transform` mirrors left and right,
        `is_mirrored` restores the order of corners.
        """
        items = (item.transformed(transform, size, min_visible, is_mirrored) for item in self.items)
        return self._with(item for item in items if item is not None)

    def scaled(self, x_scale: float, y_scale: float) -> "Answer":
        """Multiply the coordinates, as for an image that is resized."""
        factors = (x_scale, y_scale)
        return self.transformed(lambda ring: [value * factors[i % 2] for i, value in enumerate(ring)])

    def translated(self, dx: float, dy: float) -> "Answer":
        """Add an offset to the coordinates."""
        return self.transformed(lambda ring: [value + (dx, dy)[i % 2] for i, value in enumerate(ring)])

    def flipped(self, width: float) -> "Answer":
        """Mirror left and right, as for an image of `width` that is flipped."""
        return self.transformed(lambda ring: [v if i % 2 else width - v for i, v in enumerate(ring)], is_mirrored=True)

    def cropped(self, box: Sequence[float], min_visible: float = 0.0) -> "Answer":
        """Crop to the box [left, top, right, bottom], whose top left corner becomes (0, 0); see `transformed`."""
        left, top, right, bottom = box
        origin = (left, top)
        size = (right - left, bottom - top)
        return self.transformed(lambda ring: [v - origin[i % 2] for i, v in enumerate(ring)], size, min_visible)

    def clipped(self, size: tuple[float, float]) -> "Answer":
        """Clip all objects to an image of `size`; those outside are removed."""
        items = (item.clipped(size) for item in self.items)
        return self._with(item for item in items if item is not None)

    def in_reading_order(self) -> "Answer":
        """Order the objects row by row from the top, each row from left to right; see `geometry.reading_order`."""
        return self._reordered(lambda items: geometry.reading_order([item.bounding_box for item in items]))

    def shuffled(self, rng: Random) -> "Answer":
        """Order the objects at random."""
        return self._reordered(lambda items: rng.sample(range(len(items)), len(items)))

    def without_crowds(self) -> "Answer":
        """Return the objects that are not crowds."""
        return self._with(item for item in self.items if not item.is_crowd)

    def first(self, count: int) -> "Answer":
        """Return the first `count` objects."""
        return self._with(self.items[: max(count, 0)])

    @staticmethod
    def merged(answers: Sequence["Answer"]) -> "Answer":
        """Join answers of one output type; scores remain where all have scores."""
        items = tuple(item for answer in answers for item in answer)
        return Answer(answers[0].output_type, items, has_scores=all(answer.has_scores for answer in answers))

    def _with(self, items: Iterable[AnswerItem]) -> "Answer":
        return replace(self, items=tuple(items))

    def _reordered(self, order: Callable[[Sequence[AnswerItem]], Iterable[int]]) -> "Answer":
        groups = [self.of_kind(kind) for kind in GeometryKind]
        return self._with(items[i] for items in groups for i in order(items))


def _infer_output_type(value: Mapping[str, Any]) -> OutputType:
    has_boxes, has_quads, has_polygons = (value.get(kind) is not None for kind in GeometryKind)
    if has_quads:
        return OutputType.QUADS
    if (has_boxes and has_polygons) or "bboxes_labels" in value or "polygons_labels" in value:
        return OutputType.BOXES_OR_POLYGONS
    return OutputType.POLYGONS if has_polygons else OutputType.BOXES


def _read_items(value: Mapping[str, Any], kind: GeometryKind, output_type: OutputType) -> Iterator[AnswerItem]:
    positions = _list_of(value[kind], kind)
    labels = _list_of(value.get(f"{kind}_labels", value.get("labels")) or [], "labels")
    if output_type in _UNLABELED and len(labels) != len(positions):
        labels = [""] * len(positions)
    columns = {name: value.get(f"{kind}_{name}", value.get(name)) for name in ("scores", "iscrowd", "area")}
    rows = [labels, *(_list_of(each or [None] * len(positions), name) for name, each in columns.items())]
    for name, column in zip(("labels", *columns), rows, strict=True):
        if len(column) != len(positions):
            raise UserError(f"{len(column)} {name} for {len(positions)} `{kind}`", "pass one for each")
    for row in zip(positions, *rows, strict=True):
        yield AnswerItem.parse(kind, *row)


def _list_of(column: Any, name: str) -> Sequence[Any]:
    if not isinstance(column, list | tuple):
        raise UserError(f"`{name}` is `{str(column)[:60]}`, not a list", "write one entry for each object")
    return column
