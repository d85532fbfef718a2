"""Scenes: seeded images of emoji on a colored ground, sometimes with a word, with complete annotations.

`make_scene(seed)` is pure: the same seed gives the same scene and, with one version of Pillow, the same pixels.
The objects are ordered by the left side of their box, then by its top.
Scenes are unambiguous: no two objects overlap, share a name or a position, or have nearly the same left side, and no
size or position is near the limit between two words.
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
POSITIONS = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
SIZES = {"small": (0.27, 0.33), "large": (0.40, 0.50)}  # longer side of an object over the shorter side of the image
WORDS = tuple(
    "STOP OPEN SALE EXIT PUSH PULL FREE TAXI CAFE HOTEL MENU SHOP BANK POST PARK ZOO GYM BAR SPA VIP "
    "HELLO WOW YES NO GO NEW HOT COLD FAST SLOW LEFT RIGHT UP DOWN ON OFF IN OUT HELP INFO "
    "FIRE TRAIN METRO ROAD CITY BEACH POOL FILM MUSIC JAZZ ROCK LOVE PEACE HAPPY SUN SKY SEA SNOW RAIN "
    "TEA MILK BREAD FISH".split()
)
MIN_GAP = 0.03  # between left sides, and between centers and the limits of positions; a fraction of the image


@dataclass(frozen=True)
class SceneObject:
    """One emoji in a scene; `box` is in pixels and integral."""

    emoji: Emoji
    box: Box
    size: str
    position: str

    @property
    def name(self) -> str:
        """The emoji's name, a single word."""
        return self.emoji.name

    @property
    def outline(self) -> tuple[Corner, ...]:
        """The object's mask as one polygon, in pixels."""
        left, top, right, bottom = self.box
        return tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in self.emoji.outline)


@dataclass(frozen=True)
class Sign:
    """A word on the ground; `box` is the bounding box of its ink, in pixels."""

    word: str
    box: Box
    position: str
    font_size: int

    @property
    def quad(self) -> tuple[float, ...]:
        """The four corners of the box, clockwise from the top left."""
        left, top, right, bottom = self.box
        return (left, top, right, top, right, bottom, left, bottom)


@dataclass(frozen=True)
class Scene:
    """The content of one image; `render()` draws it."""

    seed: int
    size: tuple[int, int]
    background: str
    objects: tuple[SceneObject, ...]
    sign: Sign | None

    def render(self) -> Image.Image:
        """Render the scene, RGB."""
        image = _render_ground(self, Random(f"ground {self.seed}"))
        for obj in self.objects:
            left, top, right, bottom = (int(side) for side in obj.box)
            emoji = obj.emoji.render(right - left, bottom - top)
            image.paste(emoji, (left, top), emoji)
        if self.sign:
            is_light = sum(GROUNDS[self.background]) > 330
            font = _font(self.sign.font_size)
            x, y, _, _ = font.getbbox(self.sign.word)
            origin = (self.sign.box[0] - x, self.sign.box[1] - y)
            color = (20, 20, 24) if is_light else (250, 250, 250)
            ImageDraw.Draw(image).text(origin, self.sign.word, color, font)
        return image


def make_scene(seed: int) -> Scene:
    """Compose the scene of a seed: one to four objects, and a word in two of five scenes."""
    random = Random(f"scene {seed}")
    width = random.randint(256, 384)
    height = min(384, max(256, round(width * random.uniform(0.8, 1.25))))
    scene = Scene(seed, (width, height), random.choice(list(GROUNDS)), (), None)
    if random.random() < 0.4:
        scene = replace(scene, sign=_sample_sign(scene, random))
    num_objects = random.choices((1, 2, 3, 4), (2, 3, 3, 2))[0]
    for emoji in random.sample(all_emoji(), num_objects):
        obj = _sample_object(scene, emoji, random)
        if obj:
            scene = replace(scene, objects=(*scene.objects, obj))
    return replace(scene, objects=tuple(sorted(scene.objects, key=lambda obj: obj.box[:2])))


def _sample_object(scene: Scene, emoji: Emoji, random: Random) -> SceneObject | None:
    """Sample size and box of an emoji until it fits; return None if the scene has no room."""
    for _ in range(60):
        size = random.choice(list(SIZES))
        longer_side = random.uniform(*SIZES[size]) * min(scene.size)
        width, height = round(longer_side * min(1, emoji.aspect)), round(longer_side / max(1, emoji.aspect))
        box = _sample_box(scene.size, width, height, random)
        position = _free_position(scene, box)
        if position and all(abs(box[0] - obj.box[0]) > MIN_GAP * scene.size[0] for obj in scene.objects):
            return SceneObject(emoji, box, size, position)
    return None


def _sample_sign(scene: Scene, random: Random) -> Sign | None:
    word = random.choice(WORDS)
    font_size = round(random.uniform(0.17, 0.24) * min(scene.size))
    left, top, right, bottom = _font(font_size).getbbox(word)
    for _ in range(60):
        box = _sample_box(scene.size, round(right - left), round(bottom - top), random)
        position = _free_position(scene, box)
        if position:
            return Sign(word, box, position, font_size)
    return None


def _sample_box(image_size: tuple[int, int], width: int, height: int, random: Random) -> Box:
    left, top = random.randint(2, image_size[0] - width - 2), random.randint(2, image_size[1] - height - 2)
    return (left, top, left + width, top + height)


def _free_position(scene: Scene, box: Box) -> str | None:
    """Return the position of the box's center, or None if it is ambiguous or occupied."""
    occupied = [(obj.box, obj.position) for obj in scene.objects]
    if scene.sign:
        occupied.append((scene.sign.box, scene.sign.position))
    x, y = ((box[i] + box[i + 2]) / 2 / scene.size[i] for i in (0, 1))
    is_ambiguous = any(abs(center - line / 3) < MIN_GAP for center in (x, y) for line in (1, 2))
    position = POSITIONS[int(y * 3)][int(x * 3)]
    if is_ambiguous or any(position == other_position or _overlap(box, other) for other, other_position in occupied):
        return None
    return position


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _render_ground(scene: Scene, random: Random) -> Image.Image:
    """Render the ground: plain, shaded, mottled or striped, with low contrast."""
    color = [value + random.uniform(-9, 9) for value in GROUNDS[scene.background]]
    texture, cells = random.choice(("plain", "shaded", "mottled", "striped")), 12
    slope, stride = random.uniform(-18, 18), random.choice((1, cells))
    changes = {
        "plain": [0.0] * cells * cells,
        "shaded": [slope * ((i // stride % cells) / cells - 0.5) * 2 for i in range(cells * cells)],
        "mottled": [random.uniform(-11, 11) for _ in range(cells * cells)],
        "striped": [7.0 if i // stride % 2 else -7.0 for i in range(cells * cells)],
    }[texture]
    pixels = bytes(min(255, max(0, round(value + change))) for change in changes for value in color)
    return Image.frombytes("RGB", (cells, cells), pixels).resize(scene.size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
