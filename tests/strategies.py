"""Hypothesis strategies of answers, for the tests of the codec.

The environment variable FLORENCE2_FUZZ is the number of examples of each property, by default 100.
"""

import os
import re

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from florence2.model.answer import Answer
from florence2.model.tasks import SPECIAL_TOKENS, OutputType

EXAMPLES = int(os.environ.get("FLORENCE2_FUZZ", "100"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
THOUSAND = (1000, 1000)


def locs(*bins: int) -> str:
    """Return bins as location tokens."""
    return "".join(f"<loc_{n}>" for n in bins)


BOX = locs(1, 2, 3, 4)
labels = st.one_of(
    st.sampled_from(
        ["stop-sign", "route 66", "a, b and c", "naïve café", "猫", "קפה", "a < b", "x\ny", "50 %", "🙂", ""]
    ),
    st.text(max_size=12).map(str.strip).filter(lambda text: not re.search(r"</?[a-z_0-9]+>", text)),
)
sizes = st.tuples(st.integers(1, 6000), st.integers(1, 6000))


def rings(size, points):
    pair = st.tuples(st.floats(0, size[0]), st.floats(0, size[1]))
    return points.flatmap(lambda n: st.lists(pair, min_size=n, max_size=n)).map(
        lambda pairs: [v for pair in pairs for v in pair]
    )


@st.composite
def values(draw, output_type: OutputType, size):
    def column(kind):
        points = {"bboxes": st.just(2), "quad_boxes": st.just(4), "polygons": st.integers(1, 5)}[kind]
        position = rings(size, points)
        return draw(
            st.lists(st.lists(position, min_size=1, max_size=3) if kind == "polygons" else position, max_size=5)
        )

    def labels_for(positions):
        return draw(st.lists(labels | st.just("cat"), min_size=len(positions), max_size=len(positions)))

    if output_type is OutputType.TEXT:
        return draw(st.text().map(str.strip).filter(lambda text: "<" not in text))
    if output_type is OutputType.BOXES_OR_POLYGONS:
        columns = {kind: column(kind) for kind in ("bboxes", "polygons")}
        return {key: v for kind, p in columns.items() for key, v in ((kind, p), (f"{kind}_labels", labels_for(p)))}
    positions = column({OutputType.QUADS: "quad_boxes", OutputType.POLYGONS: "polygons"}.get(output_type, "bboxes"))
    is_unlabeled = output_type in (OutputType.REGIONS, OutputType.POLYGONS)
    kind = {OutputType.QUADS: "quad_boxes", OutputType.POLYGONS: "polygons"}.get(output_type, "bboxes")
    return {kind: positions, "labels": [""] * len(positions) if is_unlabeled else labels_for(positions)}


def sized_values(output_type: OutputType):
    return sizes.flatmap(lambda size: st.tuples(values(output_type, size), st.just(size)))


def sized_answers(output_type: OutputType):
    return sized_values(output_type).map(lambda sized: (Answer.from_dict(sized[0], output_type), sized[1]))


location_token = st.integers(0, 999).map(locs)
markers = st.sampled_from(["<s>", "</s>", "<pad>"])
ODDITIES = [
    "<loc_",
    "<loc_>",
    "<loc_1000>",
    "<loc_-1>",
    "<loc_٣>",
    "<loc_" + "9" * 5000 + ">",
    "<",
    ">",
    "\n",
    "<image>",
    "\0",
]
malformed_texts = st.lists(
    st.text(max_size=5) | st.sampled_from(ODDITIES) | st.sampled_from(SPECIAL_TOKENS) | markers | location_token,
    max_size=30,
).map("".join)
