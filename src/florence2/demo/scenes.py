"""Scenes: seeded pictures of emoji on a coloured ground, sometimes with a word, with every truth known.

`scene(seed)` is pure: the same seed gives the same scene and, with one version of Pillow, the same pixels.
Things stand in one order everywhere: by the left side of their box, then by its top.
The world is kept clear: no two things overlap, share a name or a place, or begin at nearly the same left side,
and no size or place lies near the border between two words. This file knows nothing of tasks and tokens.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from florence2.demo.sheet import Corner, Emoji, all_emoji

Box = tuple[float, float, float, float]

GROUNDS = {
    "white": (240, 240, 238),
    "gray": (140, 142, 145),
    "black": (38, 38, 42),
    "red": (198, 66, 60),
    "yellow": (238, 216, 100),
    "green": (92, 172, 98),
    "blue": (78, 128, 206),
    "purple": (142, 92, 184),
    "pink": (244, 172, 198),
    "brown": (134, 96, 66),
}
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
SIZES = {"small": (0.27, 0.33), "large": (0.40, 0.50)}  # longer side, as a share of the picture's shorter side
WORDS = tuple(
    "STOP OPEN SALE EXIT PUSH PULL FREE TAXI CAFE HOTEL MENU SHOP BANK POST PARK ZOO GYM BAR SPA VIP "
    "HELLO WOW YES NO GO NEW HOT COLD FAST SLOW LEFT RIGHT UP DOWN ON OFF IN OUT HELP INFO "
    "FIRE TRAIN METRO ROAD CITY BEACH POOL FILM MUSIC JAZZ ROCK LOVE PEACE HAPPY SUN SKY SEA SNOW RAIN "
    "TEA MILK BREAD FISH".split()
)
CLEAR = 0.03  # how far left sides, and centres from the borders of places, keep apart: shares of the picture


@dataclass(frozen=True)
class SceneObject:
    """One emoji in a scene; `box` is in pixels, whole numbers."""

    emoji: Emoji
    box: Box
    size: str
    place: str

    @property
    def name(self) -> str:
        """The one word that names it."""
        return self.emoji.name

    @property
    def outline(self) -> tuple[Corner, ...]:
        """Its mask as one polygon, in pixels."""
        left, top, right, bottom = self.box
        return tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in self.emoji.outline)


@dataclass(frozen=True)
class Sign:
    """A word written on the ground; `box` surrounds its ink, in pixels."""

    word: str
    box: Box
    place: str
    font_size: int

    @property
    def quad(self) -> tuple[float, ...]:
        """The four corners, clockwise from the top left."""
        left, top, right, bottom = self.box
        return (left, top, right, top, right, bottom, left, bottom)


@dataclass(frozen=True)
class Scene:
    """Everything true of one picture; `picture()` draws it."""

    seed: int
    size: tuple[int, int]
    background: str
    objects: tuple[SceneObject, ...]
    sign: Sign | None

    def render(self) -> Image.Image:
        """Draw the scene, RGB."""
        image = _ground(self, Random(f"ground {self.seed}"))
        for thing in self.objects:
            left, top, right, bottom = (int(side) for side in thing.box)
            drawn = thing.emoji.drawn(right - left, bottom - top)
            image.paste(drawn, (left, top), drawn)
        if self.sign:
            light = sum(GROUNDS[self.background]) > 330
            font = _font(self.sign.font_size)
            x, y, _, _ = font.getbbox(self.sign.word)
            at = (self.sign.box[0] - x, self.sign.box[1] - y)
            ImageDraw.Draw(image).text(at, self.sign.word, (20, 20, 24) if light else (250, 250, 250), font)
        return image


def make_scene(seed: int) -> Scene:
    """Compose the scene of this seed: one to four things, and in two of five scenes a word."""
    random = Random(f"scene {seed}")
    width = random.randint(256, 384)
    height = min(384, max(256, round(width * random.uniform(0.8, 1.25))))
    made = Scene(seed, (width, height), random.choice(list(GROUNDS)), (), None)
    if random.random() < 0.4:
        made = replace(made, sign=_sign(made, random))
    wanted = random.choices((1, 2, 3, 4), (2, 3, 3, 2))[0]
    for emoji in random.sample(all_emoji(), wanted):
        thing = _thing(made, emoji, random)
        if thing:
            made = replace(made, objects=(*made.objects, thing))
    return replace(made, objects=tuple(sorted(made.objects, key=lambda thing: thing.box[:2])))


def _thing(made: Scene, emoji: Emoji, random: Random) -> SceneObject | None:
    """Try some sizes and places for one emoji; None where the picture is full."""
    for _ in range(60):
        size = random.choice(list(SIZES))
        longer = random.uniform(*SIZES[size]) * min(made.size)
        width, height = round(longer * min(1, emoji.aspect)), round(longer / max(1, emoji.aspect))
        box = _somewhere(made.size, width, height, random)
        place = _place(made, box)
        if place and all(abs(box[0] - thing.box[0]) > CLEAR * made.size[0] for thing in made.objects):
            return SceneObject(emoji, box, size, place)
    return None


def _sign(made: Scene, random: Random) -> Sign | None:
    word = random.choice(WORDS)
    font_size = round(random.uniform(0.17, 0.24) * min(made.size))
    left, top, right, bottom = _font(font_size).getbbox(word)
    for _ in range(60):
        box = _somewhere(made.size, round(right - left), round(bottom - top), random)
        place = _place(made, box)
        if place:
            return Sign(word, box, place, font_size)
    return None


def _somewhere(size: tuple[int, int], width: int, height: int, random: Random) -> Box:
    left, top = random.randint(2, size[0] - width - 2), random.randint(2, size[1] - height - 2)
    return (left, top, left + width, top + height)


def _place(made: Scene, box: Box) -> str | None:
    """Name the ninth of the picture this box is centred in, or None where it is not clear or taken."""
    taken = [(thing.box, thing.place) for thing in made.objects]
    if made.sign:
        taken.append((made.sign.box, made.sign.place))
    across, down = ((box[i] + box[i + 2]) / 2 / made.size[i] for i in (0, 1))
    unclear = any(abs(share - line / 3) < CLEAR for share in (across, down) for line in (1, 2))
    place = PLACES[int(down * 3)][int(across * 3)]
    if unclear or any(place == other or _overlap(box, there) for there, other in taken):
        return None
    return place


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ground(made: Scene, random: Random) -> Image.Image:
    """Paint the ground: plain, shaded, mottled or striped, always gently."""
    colour = [value + random.uniform(-9, 9) for value in GROUNDS[made.background]]
    kind, cells = random.choice(("plain", "shaded", "mottled", "striped")), 12
    slope, lean = random.uniform(-18, 18), random.choice((1, cells))
    light = {
        "plain": [0.0] * cells * cells,
        "shaded": [slope * ((i // lean % cells) / cells - 0.5) * 2 for i in range(cells * cells)],
        "mottled": [random.uniform(-11, 11) for _ in range(cells * cells)],
        "striped": [7.0 if i // lean % 2 else -7.0 for i in range(cells * cells)],
    }[kind]
    pixels = bytes(min(255, max(0, round(value + change))) for change in light for value in colour)
    return Image.frombytes("RGB", (cells, cells), pixels).resize(made.size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
