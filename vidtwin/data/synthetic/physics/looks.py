"""How a simulated clip looks: colours, floor, light and camera, apart from all that moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vidtwin.data.synthetic.physics.engine import Camera

__all__ = ["COLORS", "FLOORS", "HELD_OUT_COLORS", "Look", "draw_look"]

Rgb = tuple[float, float, float]

COLORS: dict[str, Rgb] = {
    "red": (0.85, 0.12, 0.14),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.95, 0.88, 0.20),
    "green": (0.15, 0.68, 0.25),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.15, 0.32, 0.92),
    "purple": (0.58, 0.20, 0.80),
    "pink": (0.97, 0.52, 0.75),
}
# Floor -> (phrase, colour, colour of every other plank).
FLOORS: dict[str, tuple[str, Rgb, Rgb]] = {
    "white": ("a white floor", (0.92, 0.92, 0.90), (0.92, 0.92, 0.90)),
    "gray": ("a gray floor", (0.45, 0.45, 0.48), (0.45, 0.45, 0.48)),
    "black": ("a black floor", (0.10, 0.10, 0.12), (0.10, 0.10, 0.12)),
    "sand": ("sand", (0.80, 0.70, 0.52), (0.80, 0.70, 0.52)),
    "grass": ("grass", (0.22, 0.38, 0.16), (0.22, 0.38, 0.16)),
    "wood": ("a wooden floor", (0.55, 0.36, 0.20), (0.47, 0.30, 0.16)),
}
# A look is unseen if its body has one of these colours and its camera is turned so far.
HELD_OUT_COLORS = ("orange", "purple")
AZIMUTH = (-25.0, 25.0)  # degrees
HELD_OUT_AZIMUTH = 10.0  # from here on


@dataclass(frozen=True)
class Look:
    """All that is seen and moves nothing.

    Args:
        color, second: names of the colours of the body, and of its end or the object.
        floor: of FLOORS.
        boxy: links are boxes rather than capsules.
        thickness: of links, a factor.
        light: direction of the light.
        brightness: of the light, in [0, 1].
        azimuth, elevation: the camera's turn from the scene's own, in degrees.
        zoom: factor of its distance.
    """

    color: str
    second: str
    floor: str
    boxy: bool
    thickness: float
    light: Rgb
    brightness: float
    azimuth: float
    elevation: float
    zoom: float

    def camera(self, lookat: Rgb, elevation: float, distance: float) -> Camera:
        """The camera of a scene whose own camera is given; 90 degrees look along the y axis."""
        return Camera(
            lookat=lookat,
            azimuth=90.0 + self.azimuth,
            elevation=elevation + self.elevation,
            distance=distance * self.zoom,
        )


def draw_look(rng: np.random.Generator, looks: str, camera_range: float) -> Look:
    """A random look.

    Args:
        rng: the only source of randomness.
        looks: "seen", "unseen" or "all".
        camera_range: factor of how far the camera wanders.
    """
    unseen = looks == "unseen" or (looks == "all" and rng.random() < 0.1)
    seen = [name for name in COLORS if name not in HELD_OUT_COLORS]
    names = HELD_OUT_COLORS if unseen else seen
    color = names[rng.integers(len(names))]
    others = [name for name in (COLORS if unseen else seen) if name != color]
    turn = (HELD_OUT_AZIMUTH, AZIMUTH[1]) if unseen else (AZIMUTH[0], HELD_OUT_AZIMUTH)
    return Look(
        color=color,
        second=others[rng.integers(len(others))],
        floor=tuple(FLOORS)[rng.integers(len(FLOORS))],
        boxy=bool(rng.random() < 0.5),
        thickness=rng.uniform(0.8, 1.25),
        light=(rng.uniform(-0.5, 0.5), rng.uniform(-0.2, 0.6), -1.0),
        brightness=rng.uniform(0.45, 0.75),
        azimuth=camera_range * rng.uniform(*turn),
        elevation=camera_range * rng.uniform(-4.0, 4.0),
        zoom=1.0 + camera_range * rng.uniform(-0.06, 0.06),
    )
