"""Answers drawn at random, for the tests of the codec.

FLORENCE2_FUZZ=10000 in the environment asks for that many cases of each property; the ordinary run takes 100.
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
    """Spell bins as location tokens."""
    return "".join(f"<loc_{n}>" for n in bins)


BOX = locs(1, 2, 3, 4)
labels = st.one_of(
    st.sampled_from(
        ["stop-sign", "route 66", "a, b and c", "naïve café", "猫", "קפה", "a < b", "x\ny", "50 %", "🙂", ""]
    ),
    st.text(max_size=12).map(str.strip).filter(lambda text: not re.search(r"</?[a-z_0-9]+>", text)),
)
sizes = st.tuples(st.integers(1, 6000), st.integers(1, 6000))


def runs(size, points):
    pair = st.tuples(st.floats(0, size[0]), st.floats(0, size[1]))
    return points.flatmap(lambda n: st.lists(pair, min_size=n, max_size=n)).map(lambda run: [v for p in run for v in p])


@st.composite
def values(draw, answers: OutputType, size):
    def column(form):
        points = {"bboxes": st.just(2), "quad_boxes": st.just(4), "polygons": st.integers(1, 5)}[form]
        place = runs(size, points)
        return draw(st.lists(st.lists(place, min_size=1, max_size=3) if form == "polygons" else place, max_size=5))

    def named(places):
        return draw(st.lists(labels | st.just("cat"), min_size=len(places), max_size=len(places)))

    if answers is OutputType.TEXT:
        return draw(st.text().map(str.strip).filter(lambda text: "<" not in text))
    if answers is OutputType.BOXES_OR_POLYGONS:
        forms = {form: column(form) for form in ("bboxes", "polygons")}
        return {key: v for form, p in forms.items() for key, v in ((form, p), (f"{form}_labels", named(p)))}
    places = column({OutputType.QUADS: "quad_boxes", OutputType.POLYGONS: "polygons"}.get(answers, "bboxes"))
    unlabelled = answers in (OutputType.REGIONS, OutputType.POLYGONS)
    form = {OutputType.QUADS: "quad_boxes", OutputType.POLYGONS: "polygons"}.get(answers, "bboxes")
    return {form: places, "labels": [""] * len(places) if unlabelled else named(places)}


def sized_values(answers: OutputType):
    return sizes.flatmap(lambda size: st.tuples(values(answers, size), st.just(size)))


def sized_answers(output_type: OutputType):
    return sized_values(output_type).map(lambda sized: (Answer.from_dict(sized[0], output_type), sized[1]))


places = st.integers(0, 999).map(locs)
markers = st.sampled_from(["<s>", "</s>", "<pad>"])
odd = [
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
debris = st.lists(
    st.text(max_size=5) | st.sampled_from(odd) | st.sampled_from(SPECIAL_TOKENS) | markers | places, max_size=30
).map("".join)
