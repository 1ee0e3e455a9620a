"""Draw one synthetic leaf from its traits: outline, teeth, lobes and veins, then colour, light and damage.

Geometry is built in leaf coordinates: y runs along the midrib from the base (0) to the tip (1), x across. Shapes are
drawn as supersampled masks and downsampled; colour is mixed at the final size. All randomness comes from the generator
passed in, and only the final noise depends on the size: the same leaf is drawn at every size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Traits:
    """The fine detail that distinguishes cultivars.

    Attributes:
        vein_angle: Angle between midrib and secondary veins, in degrees.
        vein_density: Number of secondary veins on each side of the leaf.
        tertiary_density: Number of tertiary veins between two neighbouring secondary veins.
        tooth_density: Number of teeth along each side of the margin.
        tooth_depth: Height of a tooth as a fraction of the leaf's length.
        lobe_depth: Depth of the lobes as a fraction of the half-width.
    """

    vein_angle: float
    vein_density: float
    tertiary_density: float
    tooth_density: float
    tooth_depth: float
    lobe_depth: float


@dataclass(frozen=True)
class _Shape:
    """Polygons and lines of a leaf in leaf coordinates."""

    outline: Array  # [points, 2]
    midrib: Array  # [points, 2]
    secondaries: list[Array]  # each [points, 2]
    tertiaries: Array  # [veins, points, 2]
    petiole: Array  # [points, 2]


def draw_leaf(traits: Traits, rng: np.random.Generator, size: int, turn: float = np.pi) -> Image.Image:
    """Draw a leaf in RGB, as a scanner would see it.

    Args:
        traits: The fine detail of the leaf.
        rng: Source of the rest: pose, colour, light, damage, background, slight variation of the shape.
        size: Side of the square image, in pixels.
        turn: Largest rotation from upright in either direction, in radians.
    """
    shape, length = _pose(_grow(traits, rng), rng, size, turn)
    blade, veins, petiole, holes = _masks(shape, rng, size, length)
    return _colour(blade * (1 - holes), veins * blade, petiole, rng, size)


def leaf_detail(traits: Traits, rng: np.random.Generator, size: int, turn: float = np.pi) -> NDArray[np.bool_]:
    """Where `draw_leaf`, with the same arguments, draws what the traits determine. Boolean, [size, size].

    These are the veins, and a band along the margin about as wide as the teeth are high.
    """
    shape, length = _pose(_grow(traits, rng), rng, size, turn)
    blade, veins, _, _ = _masks(shape, rng, size, length)
    width = 2 * max(1, round(0.012 * length)) + 1
    mask = Image.fromarray((blade * 255).astype(np.uint8))
    outer = np.asarray(mask.filter(ImageFilter.MaxFilter(width))) > 127
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(width))) > 127
    return (outer & ~inner) | (veins * blade > 0.12)


# --- geometry ---------------------------------------------------------------------------------------------------------


def _grow(traits: Traits, rng: np.random.Generator) -> _Shape:
    width, base, tip = rng.uniform(0.34, 0.41), rng.uniform(0.55, 0.72), rng.uniform(0.85, 1.05)
    peak = base / (base + tip)
    norm = peak**base * (1 - peak) ** tip
    curl = rng.uniform(0.0, 0.25)
    bend = rng.uniform(-0.22, 0.22)
    sides: list[Array] = []
    secondaries: list[Array] = []
    tertiaries: list[Array] = []
    y = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 900))
    for side in (-1.0, 1.0):
        wobble = _smooth_noise(rng, y, 0.025) * rng.uniform(0.95, 1.05)
        half = width * (y**base * (1 - y) ** tip) / norm * (1 + wobble)
        starts, angles = _secondary_starts(traits, rng)
        ends = _reach(y, half, starts, angles, curl)[1]
        lobed = half * (1 + traits.lobe_depth * _lobes(y, ends))
        sides.append(_toothed(y, half, lobed, traits, rng) * [side, 1])
        reach, _ = _reach(y, lobed, starts, angles, curl)
        curves = _secondary_curves(starts, angles, curl, reach * 0.985)
        curves[..., 0] += 0.004 * np.sin(curves[..., 1] * rng.uniform(20, 40) + rng.uniform(0, 6))
        tertiaries.append(_ladder(curves, traits, rng) * [side, 1])
        secondaries.extend(curves * [side, 1])
    outline = np.concatenate([sides[0], sides[1][::-1]])
    midrib = np.stack([np.zeros(40), np.linspace(0, 0.985, 40)], axis=1)
    down = np.linspace(0, rng.uniform(0.08, 0.20), 12)
    petiole = np.stack([rng.uniform(-2.5, 2.5) * down**2, -down], axis=1)

    def warp(points: Array) -> Array:
        x, y = points[..., 0], points[..., 1]
        return np.stack([x + bend * y * np.abs(y), y - 0.15 * bend * x], axis=-1)

    return _Shape(
        warp(outline), warp(midrib), [warp(curve) for curve in secondaries],
        warp(np.concatenate(tertiaries)), warp(petiole),
    )  # fmt: skip


def _smooth_noise(rng: np.random.Generator, y: Array, amplitude: float) -> Array:
    waves = [rng.normal() * np.sin(k * 3.1 * y + rng.uniform(0, 6.3)) / k for k in (1, 2, 3)]
    noise: Array = amplitude * np.sum(waves, axis=0)
    return noise


def _secondary_starts(traits: Traits, rng: np.random.Generator) -> tuple[Array, Array]:
    """Positions on the midrib where the secondary veins of one side start, and their angles (radians)."""
    spacing = 0.9 / traits.vein_density
    evenly = 0.03 + spacing * (np.arange(int(np.ceil(traits.vein_density))) + rng.uniform(0, 1))
    evenly = evenly + rng.normal(0, 0.08 * spacing, evenly.size)
    starts: Array = np.concatenate([[0.004], np.sort(evenly[(evenly > 0.02) & (evenly < 0.93)])])
    spread = (74 - traits.vein_angle) * np.exp(-starts / 0.09)  # near the base veins fan out to fill the blade
    degrees = traits.vein_angle + spread + 8 * (0.5 - starts) + rng.normal(0, 1.0, starts.size)
    angles: Array = np.radians(np.minimum(degrees, 88))
    return starts, angles


def _secondary_curves(starts: Array, angles: Array, curl: float, reach: Array) -> Array:
    along: Array = np.linspace(0, 1, 16) * reach[:, None]  # [veins, points]
    x = along * np.sin(angles)[:, None]
    y = starts[:, None] + along * np.cos(angles)[:, None] + curl * along**2
    return np.stack([x, y], axis=-1)


def _reach(y: Array, half: Array, starts: Array, angles: Array, curl: float) -> tuple[Array, Array]:
    """Length of each secondary vein up to the margin, and the height at which it meets the margin."""
    along: Array = np.linspace(0, 1.0, 160)
    across = along * np.sin(angles)[:, None]
    height = starts[:, None] + along * np.cos(angles)[:, None] + curl * along**2
    outside = across[:, 1:] >= np.interp(height[:, 1:], y, half, right=0.0)
    first = outside.argmax(axis=1) + 1
    ends: Array = height[np.arange(first.size), first]
    return along[first], ends


def _lobes(y: Array, ends: Array) -> Array:
    """A wave along the margin with a rounded crest at the end of every other vein."""
    phase = np.interp(y, np.sort(ends), np.arange(ends.size) / 2)
    envelope = np.clip(y / 0.12, 0, 1) * np.clip((1 - y) / 0.15, 0, 1)
    wave = (np.cos(np.pi * phase) ** 2) ** 0.75
    return (wave - 0.57) * envelope


def _toothed(y: Array, half: Array, lobed: Array, traits: Traits, rng: np.random.Generator) -> Array:
    margin = np.stack([lobed, y], axis=1)
    step = np.gradient(np.stack([half, y], axis=1), axis=0)  # of the smooth outline: in a hollow, teeth would cross
    length = np.hypot(step[:, 0], step[:, 1])
    tangent = step / length[:, None]
    arc = np.cumsum(length) / length.sum()
    phase = traits.tooth_density * (arc + _smooth_noise(rng, arc, 0.02)) + rng.uniform(0, 1)
    place = phase % 1
    tooth = np.where(place < 0.72, place / 0.72, (1 - place) / 0.28)  # a slow rise towards the tip, then a notch
    uneven = rng.uniform(0.7, 1.3, 200)[np.floor(phase).astype(int) % 200]
    height = traits.tooth_depth * uneven * tooth * np.clip(arc / 0.08, 0, 1) * np.clip((1 - arc) / 0.05, 0, 1)
    outward = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    return margin + (height - 0.5 * traits.tooth_depth)[:, None] * (outward + 0.5 * tangent) * _ends(arc)[:, None]


def _ends(arc: Array) -> Array:
    return np.clip(arc / 0.03, 0, 1) * np.clip((1 - arc) / 0.03, 0, 1)


def _ladder(curves: Array, traits: Traits, rng: np.random.Generator) -> Array:
    """Tertiary veins: slightly kinked rungs between neighbouring secondary veins, [rungs, points, 2]."""
    rungs = np.arange(0.5, max(2.0, traits.tertiary_density)) / traits.tertiary_density
    pairs = max(len(curves) - 1, 0)
    place = rungs + rng.normal(0, 0.15 / traits.tertiary_density, (pairs, rungs.size))
    other = place * 0.96 + rng.normal(0, 0.25 / traits.tertiary_density, place.shape)
    lower = _along(curves[:-1], np.clip(place, 0.02, 0.97))
    upper = _along(curves[1:], np.clip(other, 0.02, 0.97))
    share = np.array([0.0, 0.3, 0.5, 0.7, 1.0])[:, None]
    lines = lower[..., None, :] * (1 - share) + upper[..., None, :] * share
    lines = lines.reshape(-1, 5, 2)
    lines[:, 1:4] += rng.normal(0, 0.0045, (len(lines), 3, 2))
    return lines


def _along(curves: Array, place: Array) -> Array:
    """Points at fractions `place` [veins, k] of curves [veins, points, 2]."""
    position = place * (curves.shape[1] - 1)
    left = np.floor(position).astype(int)
    weight = (position - left)[..., None]
    vein = np.arange(len(curves))[:, None]
    return curves[vein, left] * (1 - weight) + curves[vein, left + 1] * weight


def _pose(shape: _Shape, rng: np.random.Generator, size: int, turn: float) -> tuple[_Shape, float]:
    """Rotate, scale and place a leaf in pixels; also return its length. Its area does not depend on the traits."""
    angle = np.pi + turn * rng.uniform(-1, 1)  # image rows run downwards
    stretch = rng.uniform(0.93, 1.07)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * [[stretch], [1 / stretch]]
    target = rng.uniform(0.26, 0.48)  # of the image's area
    offset = rng.uniform(-1, 1, 2)
    outline = shape.outline @ matrix
    x, y = outline.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    points = np.concatenate([outline, shape.petiole @ matrix])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = min(np.sqrt(target / area), 0.92 / (high - low).max()) * size
    slack = (size - (high - low) * scale) / 2
    shift = size / 2 - (low + high) / 2 * scale + offset * slack * 0.5

    def place(points: Array) -> Array:
        return points @ matrix * scale + shift

    placed = _Shape(
        place(shape.outline), place(shape.midrib), [place(curve) for curve in shape.secondaries],
        place(shape.tertiaries), place(shape.petiole),
    )  # fmt: skip
    return placed, float(scale)


# --- masks ------------------------------------------------------------------------------------------------------------


def _masks(shape: _Shape, rng: np.random.Generator, size: int, length: float) -> tuple[Array, Array, Array, Array]:
    """Coverage (0 … 1) of blade, veins (by strength), petiole and holes, each [size, size]."""
    factor = 4 if size <= 128 else 3 if size <= 256 else 2
    stout = rng.uniform(0.8, 1.25)
    unit = length * factor * stout

    def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (size * factor, size * factor))
        return image, ImageDraw.Draw(image)

    def reduced(image: Image.Image) -> Array:
        return np.asarray(image.reduce(factor), dtype=np.float64) / 255

    blade, draw = canvas()
    draw.polygon((shape.outline * factor).ravel().tolist(), fill=255)
    veins, draw = canvas()
    thin = 0.0034 * unit
    value = round(115 * min(1.0, thin))
    for line in (shape.tertiaries * factor).reshape(len(shape.tertiaries), -1).tolist():
        draw.line(line, fill=value, width=max(1, round(thin)))
    for curve in shape.secondaries:
        draw.polygon(_ribbon(curve * factor, 0.0085 * unit, 0.0035 * unit), fill=200)
    draw.polygon(_ribbon(shape.midrib * factor, 0.019 * unit, 0.004 * unit), fill=255)
    petiole, draw = canvas()
    draw.polygon(_ribbon(shape.petiole * factor, 0.021 * unit, 0.027 * unit), fill=255)
    holes, draw = canvas()
    for _ in range(rng.poisson(0.8)):
        middle = shape.outline.mean(axis=0) + rng.normal(0, 0.16 * length, 2)
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        radius = length * rng.uniform(0.008, 0.03) * rng.uniform(0.7, 1.3, angle.size)
        ring = middle + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        draw.polygon((ring * factor).ravel().tolist(), fill=255)
    return reduced(blade), reduced(veins), reduced(petiole), reduced(holes)


def _ribbon(line: Array, start: float, end: float) -> list[float]:
    """The polygon of a line whose width in pixels changes from `start` to `end`."""
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / (np.hypot(step[:, 0], step[:, 1])[:, None] + 1e-9)
    half = np.linspace(max(start, 1.0), max(end, 1.0), len(line))[:, None] / 2
    flat: list[float] = np.concatenate([line + normal * half, (line - normal * half)[::-1]]).ravel().tolist()
    return flat


# --- colour -----------------------------------------------------------------------------------------------------------


def _colour(blade: Array, veins: Array, petiole: Array, rng: np.random.Generator, size: int) -> Image.Image:
    grid = (np.arange(size) + 0.5) / size - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    light_x, light_y = np.cos(direction), np.sin(direction)
    ramp = light_x * grid[None, :] + light_y * grid[:, None]

    # Blade: two tones mixed by low-frequency noise, relief at the veins, light falling off to one side.
    tone = _hsv(rng.uniform(0.17, 0.40), rng.uniform(0.30, 0.75), rng.uniform(0.30, 0.68))
    second = np.clip(tone * rng.uniform(0.75, 1.3) + rng.normal(0, 0.03, 3), 0, 1)
    clouds = _clouds(rng, size, 5) * 0.6 + _clouds(rng, size, 12) * 0.4
    leaf = tone + (second - tone) * clouds[..., None]
    relief = _blurred(veins, 0.006 * size)
    slope = light_y * np.gradient(relief, axis=0) + light_x * np.gradient(relief, axis=1)
    shade = 1 + rng.uniform(-0.25, 0.25) * ramp - rng.uniform(1.5, 4.0) * slope * size / 224
    shade *= 1 + 0.10 * (_clouds(rng, size, 34) - 0.5) + 0.12 * (_clouds(rng, size, 90) - 0.5)
    inner = _blurred(blade, 0.02 * size)
    shade *= 0.86 + 0.14 * np.clip(inner * 2 - 1, 0, 1)  # the rim turns away from the light
    leaf = leaf * shade[..., None]

    pale = np.clip(tone * 0.45 + np.array([0.62, 0.64, 0.42]) * rng.uniform(0.7, 1.0), 0, 1)
    leaf += (pale - leaf) * (rng.uniform(0.45, 0.85) * veins)[..., None]
    for spot, colour in _blemishes(rng, size):
        leaf += (colour - leaf) * spot[..., None]

    # Paper: a light tint, with separate lighting and grain, and a soft shadow under the leaf.
    paper = np.array([1.0, 1.0, 1.0]) * rng.uniform(0.78, 0.97) + rng.normal(0, 0.012, 3)
    texture = 1 + rng.uniform(-0.12, 0.12) * ramp + 0.03 * (_clouds(rng, size, 40) - 0.5)
    covered = np.maximum(blade, petiole)
    shift = np.round(rng.uniform(-0.02, 0.02, 2) * size).astype(int)
    shadow = _blurred(_shifted(covered, *shift), rng.uniform(0.006, 0.025) * size)
    image = paper * (texture * (1 - rng.uniform(0.1, 0.45) * shadow))[..., None]

    stalk = np.clip(pale * rng.uniform(0.6, 0.95) + [rng.uniform(-0.05, 0.2), 0, -0.05], 0, 1)
    image += (stalk - image) * petiole[..., None]
    image += (leaf - image) * blade[..., None]
    image *= rng.uniform(0.85, 1.1) * (1 + rng.normal(0, 0.015, 3))  # exposure and white balance
    image += rng.normal(0, rng.uniform(0.003, 0.02), (size, size, 1))
    return Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _blemishes(rng: np.random.Generator, size: int) -> list[tuple[Array, Array]]:
    """Brown or yellow spots: coverage [size, size] and colour."""
    grid = (np.arange(size) + 0.5) / size
    spots = []
    for _ in range(rng.poisson(2.0)):
        x, y = rng.uniform(0.2, 0.8, 2)
        radius, strength = rng.uniform(0.008, 0.045), rng.uniform(0.3, 0.9)
        stretch = rng.uniform(0.6, 1.6)
        colour = _hsv(rng.uniform(0.06, 0.16), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.75))
        far = ((grid[None, :] - x) / radius * stretch) ** 2 + ((grid[:, None] - y) / radius) ** 2
        spots.append((strength / (1 + far**3), colour))
    return spots


def _clouds(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise in 0 … 1 with about `cells` bumps along a side."""
    coarse = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _blurred(mask: Array, radius: float) -> Array:
    image = Image.fromarray((mask * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255


def _shifted(mask: Array, down: int, right: int) -> Array:
    edge = max(abs(down), abs(right))
    size = len(mask)
    return np.pad(mask, edge)[edge - down : edge - down + size, edge - right : edge - right + size]


def _hsv(hue: float, saturation: float, value: float) -> Array:
    channel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 - saturation * (1 - np.clip(channel, 0, 1)))
