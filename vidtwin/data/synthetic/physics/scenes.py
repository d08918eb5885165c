"""The scenes: what a body is, how its motion is drawn, and both as MJCF.

A clip is drawn in three independent parts: its body (what the simulation depends on and never
changes), its motion (start and controls) and its look. Geoms of group 3 are those that collide
and weigh, and are never drawn; the others are seen, weigh nothing and touch nothing, so that a
look can't change a motion.
Axes: T frames, A actions. Metres, radians, seconds; x to the right, y away from the viewer, z up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vidtwin.data.synthetic.physics.engine import Recording
from vidtwin.data.synthetic.physics.looks import COLORS, FLOORS, Look

__all__ = ["DIRECTIONS", "SCENES_BY_NAME", "Motion", "Scene", "Simulated"]

DIRECTIONS = ("left", "right", "away", "towards", "in place")
Body = Mapping[str, Any]
HIDDEN = 'group="3" rgba="0 0 0 0"'
SEEN = 'mass="0" contype="0" conaffinity="0"'
TIME_STEP = 0.005  # at most


@dataclass(frozen=True, eq=False)
class Motion:
    """What happens in a clip, whatever it looks like.

    Args:
        qpos, qvel: MuJoCo's coordinates at the first frame.
        actions: (T, A) in [-1, 1], each held from its frame to the next.
        controls: (T, actuators) of the simulation, from the actions.
        gravity: (T, 3) in m/s².
    """

    qpos: np.ndarray
    qvel: np.ndarray
    actions: np.ndarray
    controls: np.ndarray
    gravity: np.ndarray


@dataclass(frozen=True, eq=False)
class Simulated:
    """A clip after its simulation.

    Args:
        positions: (T, P) joint coordinates; sine and cosine of an angle that has no limits.
        velocities: (T, V) of the joints, m/s and rad/s; linear ones alone of a free body.
        direction: of DIRECTIONS, where the body that acts ends up.
        recording: as the simulation gave it.
    """

    positions: np.ndarray
    velocities: np.ndarray
    direction: str
    recording: Recording


def smooth_controls(rng: np.random.Generator, frames: int, count: int, fps: float) -> np.ndarray:
    """(T, count) in [-1, 1]: sums of three slow waves."""
    times = np.arange(frames)[:, None, None] / fps
    frequency, phase = rng.uniform(0.1, 0.9, (3, count)), rng.uniform(0, 2 * np.pi, (3, count))
    size = rng.normal(0.0, 0.8, (3, count))
    return np.tanh((size * np.sin(2 * np.pi * frequency * times + phase)).sum(1))


def _level(frames: int) -> np.ndarray:
    """(T, 3): gravity straight down."""
    return np.tile([0.0, 0.0, -9.81], (frames, 1))


def _color(name: str, shade: float = 1.0) -> str:
    return 'rgba="{} {} {} 1"'.format(*(shade * each for each in COLORS[name]))


def _floor(look: Look, size: float = 3.0) -> str:
    """Ten planks that are seen, and a plane that is touched."""
    _, *colors = FLOORS[look.floor]
    width = size / 5
    planks = [
        f'<geom type="box" size="{size} {width / 2} .05" pos="0 {(n - 4.5) * width} -.05" {SEEN} '
        'rgba="{} {} {} 1"/>'.format(*colors[n % 2])
        for n in range(10)
    ]
    return "".join(planks) + f'<geom type="plane" size="5 5 1" {HIDDEN}/>'


def _rim(half: float) -> str:
    """A low rim around a square table."""
    gray = 'rgba=".3 .3 .32 1"'
    long, thick, high = half + 0.04, 0.03, 0.05
    sides = [(long, thick, 0.0, half), (long, thick, 0.0, -half)]
    sides += [(thick, long, half, 0.0), (thick, long, -half, 0.0)]
    return "".join(
        f'<geom type="box" size="{sx} {sy} {high}" pos="{x} {y} {high}" {SEEN} {gray}/>'
        for sx, sy, x, y in sides
    )


def _link(look: Look, end: str, radius: float, color: str) -> str:
    """A capsule or a box from the body's origin to `end`."""
    kind = "box" if look.boxy else "capsule"
    size = radius * look.thickness
    return f'<geom type="{kind}" fromto="0 0 0 {end}" size="{size}" {SEEN} {color}/>'


class Scene(ABC):
    """One kind of clip.

    A joint is "slide", "hinge" (with limits), "turn" (an angle without limits) or "free".
    """

    name: ClassVar[str]
    action_names: ClassVar[tuple[str, ...]]
    joints: ClassVar[Mapping[str, str]]  # name -> kind, in the order of qpos
    lookat: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.1)
    elevation: ClassVar[float] = -62.0
    distance: ClassVar[float]
    threshold: ClassVar[float] = 0.25  # metres, below it a motion is "in place"

    @abstractmethod
    def draw_body(self, rng: np.random.Generator) -> Body:
        """What the simulation depends on."""

    @abstractmethod
    def draw_motion(self, rng: np.random.Generator, body: Body, frames: int, fps: float) -> Motion:
        """A start and controls."""

    @abstractmethod
    def world(self, body: Body, look: Look) -> tuple[str, str]:
        """(bodies, actuators) in MJCF; the first site is the one that acts."""

    @abstractmethod
    def clause(self, body: Body, look: Look, clip: Simulated) -> tuple[str, str]:
        """(subject, what it does), "a red arm", "reaches to the left"."""

    def mjcf(self, body: Body, look: Look, fps: float) -> tuple[str, int]:
        """The whole scene, and how many of its time steps lie between two frames."""
        substeps = int(np.ceil(1 / fps / TIME_STEP))
        bodies, actuators = self.world(body, look)
        bright = f"{look.brightness} {look.brightness} {look.brightness}"
        light = "{} {} {}".format(*look.light)
        text = (
            f'<mujoco><compiler angle="radian"/><option timestep="{1 / fps / substeps!r}" '
            'integrator="implicitfast"/><visual><quality shadowsize="0" offsamples="4" '
            'numslices="12" numstacks="8" numquads="1"/>'
            '<headlight ambient=".4 .4 .4" diffuse="0 0 0" specular="0 0 0"/></visual>'
            f'<worldbody><light directional="true" castshadow="false" dir="{light}" '
            f'diffuse="{bright}" specular="0 0 0" ambient="0 0 0"/>{_floor(look)}{bodies}'
            f"</worldbody><actuator>{actuators}</actuator></mujoco>"
        )
        return text, substeps

    def state_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the columns of `Simulated.positions` and of `velocities`."""
        axes = {"turn": (" sine", " cosine"), "free": (" x", " y", " z")}
        positions = [n + axis for n, kind in self.joints.items() for axis in axes.get(kind, ("",))]
        speeds = {"free": axes["free"]}
        velocities = [
            f"{name}{axis} velocity"
            for name, kind in self.joints.items()
            for axis in speeds.get(kind, ("",))
        ]
        return tuple(positions), tuple(velocities)

    def read(self, recording: Recording) -> Simulated:
        """Positions, velocities and the direction of a recording."""
        positions, velocities = [], []
        q = v = 0
        for kind in self.joints.values():
            size = 3 if kind == "free" else 1
            place = recording.qpos[:, q : q + size]
            if kind == "turn":
                place = np.concatenate([np.sin(place), np.cos(place)], axis=1)
            positions.append(place)
            velocities.append(recording.qvel[:, v : v + size])
            q, v = q + (7 if kind == "free" else 1), v + (6 if kind == "free" else 1)
        return Simulated(
            np.concatenate(positions, axis=1),
            np.concatenate(velocities, axis=1),
            self.direction(recording.sites[-1, 0] - recording.sites[0, 0]),
            recording,
        )

    def direction(self, moved: np.ndarray) -> str:
        """Where a displacement (3,) goes, as the viewer sees it."""
        x, y = moved[:2]
        if max(abs(x), abs(y)) < self.threshold:
            return "in place"
        if abs(x) >= abs(y):
            return "right" if x > 0 else "left"
        return "away" if y > 0 else "towards"


def _towards(direction: str) -> str:
    return {
        "left": "to the left",
        "right": "to the right",
        "away": "away from the viewer",
        "towards": "towards the viewer",
        "in place": "about in place",
    }[direction]


class Arm(Scene):
    """Two links that turn above the floor, by the torques of two motors."""

    name = "arm"
    action_names = ("shoulder torque", "elbow torque")
    joints: ClassVar = {"shoulder": "turn", "elbow": "hinge"}
    distance = 2.8

    def draw_body(self, rng: np.random.Generator) -> Body:
        return {"upper": rng.uniform(0.5, 0.6), "lower": rng.uniform(0.4, 0.5)}

    def draw_motion(self, rng: np.random.Generator, body: Body, frames: int, fps: float) -> Motion:
        actions = smooth_controls(rng, frames, 2, fps)
        qpos = np.array([rng.uniform(-np.pi, np.pi), rng.uniform(-2.0, 2.0)])
        return Motion(qpos, rng.uniform(-1.5, 1.5, 2), actions, actions, _level(frames))

    def world(self, body: Body, look: Look) -> tuple[str, str]:
        upper, lower = body["upper"], body["lower"]
        first, second = _color(look.color), _color(look.second)
        hinge = 'type="hinge" axis="0 0 1" armature=".02"'
        mass = f'type="capsule" size=".05" mass=".3" contype="0" conaffinity="0" {HIDDEN}'
        bodies = (
            f'<body pos="0 0 .12"><joint name="shoulder" {hinge} damping=".7"/>'
            f'<geom fromto="0 0 0 {upper} 0 0" {mass}/>{_link(look, f"{upper} 0 0", 0.09, first)}'
            f'<geom type="cylinder" size=".12 .08" {SEEN} rgba=".25 .25 .27 1"/>'
            f'<body pos="{upper} 0 .06"><joint name="elbow" {hinge} damping=".2" '
            f'limited="true" range="-2.5 2.5"/>'
            f'<geom fromto="0 0 0 {lower} 0 0" {mass}/>'
            f"{_link(look, f'{lower} 0 0', 0.08, _color(look.color, 0.8))}"
            f'<geom type="sphere" size="{0.14 * look.thickness}" pos="{lower} 0 .05" '
            f'{SEEN} {second}/><site pos="{lower} 0 0"/></body></body>'
        )
        return bodies, '<motor joint="shoulder" gear="1.6"/><motor joint="elbow" gear=".5"/>'

    def clause(self, body: Body, look: Look, clip: Simulated) -> tuple[str, str]:
        subject = f"a {look.color} arm with a {look.second} hand"
        if clip.direction == "in place":
            return subject, "waves about in place"
        return subject, f"reaches {_towards(clip.direction)}"


class Pusher(Scene):
    """A ball that two motors move over a table, and an object that it pushes."""

    name = "pusher"
    action_names = ("force to the right", "force away")
    joints: ClassVar = {
        "ball x": "slide",
        "ball y": "slide",
        "object x": "slide",
        "object y": "slide",
        "object angle": "turn",
    }
    distance = 2.9
    threshold = 0.2

    def draw_body(self, rng: np.random.Generator) -> Body:
        return {"shape": ("box", "puck")[rng.integers(2)], "size": rng.uniform(0.15, 0.2)}

    def draw_motion(self, rng: np.random.Generator, body: Body, frames: int, fps: float) -> Motion:
        place = rng.uniform(-0.45, 0.45, 2)
        angle, away = rng.uniform(-np.pi, np.pi, 2)
        ball = place + rng.uniform(0.4, 0.6) * np.array([np.cos(away), np.sin(away)])
        ball = np.clip(ball, -0.8, 0.8)
        waves = smooth_controls(rng, frames, 2, fps)
        # Towards the object at first, so that most clips push it.
        fade = np.exp(-np.arange(frames) / fps / 0.8)[:, None]
        aim = (place - ball) / np.linalg.norm(place - ball)
        actions = np.clip(waves * (1 - 0.7 * fade) + 1.2 * fade * aim, -1, 1)
        qpos = np.array([*ball, *place, angle])
        return Motion(qpos, np.zeros(5), actions, actions, _level(frames))

    def world(self, body: Body, look: Look) -> tuple[str, str]:
        size, high = body["size"], 0.12
        shape, sizes = ("cylinder", f"{size} {high}")
        if body["shape"] == "box":
            shape, sizes = "box", f"{size} {size} {high}"
        slides = "".join(
            f'<joint name="{{name}} {axis}" type="slide" axis="{along}" damping="{{damping}}" '
            'limited="true" range="-.85 .85"/>'
            for axis, along in (("x", "1 0 0"), ("y", "0 1 0"))
        )
        mark = f'<geom type="box" size="{size * 0.7} .04 .01" pos="0 0 {high}" {SEEN} '
        bodies = (
            f'{_rim(1.06)}<body pos="0 0 .13">{slides.format(name="ball", damping=2)}'
            f'<geom type="sphere" size=".12" mass=".5" friction=".3 0 0" {HIDDEN}/>'
            f'<geom type="sphere" size=".12" {SEEN} {_color(look.color)}/><site/></body>'
            f'<body pos="0 0 .13">{slides.format(name="object", damping=0.9)}'
            f'<joint type="hinge" axis="0 0 1" damping=".015"/>'
            f'<geom type="{shape}" size="{sizes}" mass=".3" friction=".3 0 0" {HIDDEN}/>'
            f'<geom type="{shape}" size="{sizes}" {SEEN} {_color(look.second)}/>'
            f'{mark} rgba=".15 .15 .15 1"/><site/></body>'
        )
        return bodies, '<motor joint="ball x" gear="2"/><motor joint="ball y" gear="2"/>'

    def clause(self, body: Body, look: Look, clip: Simulated) -> tuple[str, str]:
        moved = clip.recording.sites[-1, 1] - clip.recording.sites[0, 1]
        thing = f"a {look.second} {body['shape']}"
        if self.direction(moved) == "in place":
            return f"a {look.color} ball", f"moves {_towards(clip.direction)} beside {thing}"
        return f"a {look.color} ball", f"pushes {thing} {_towards(self.direction(moved))}"


class Runner(Scene):
    """A body on two legs seen from the side, by the angles that four joints are told to take."""

    name = "runner"
    action_names = ("back hip", "back knee", "front hip", "front knee")
    joints: ClassVar = {
        "x": "slide",
        "z": "slide",
        "pitch": "hinge",
        "back hip angle": "hinge",
        "back knee angle": "hinge",
        "front hip angle": "hinge",
        "front knee angle": "hinge",
    }
    lookat = (0.0, 0.0, 0.42)
    elevation = -12.0
    distance = 2.5
    threshold = 0.2
    rest: ClassVar = np.array([0.45, -0.9, 0.45, -0.9])
    reach: ClassVar = np.array([0.6, 0.5, 0.6, 0.5])

    def draw_body(self, rng: np.random.Generator) -> Body:
        return {"half": rng.uniform(0.26, 0.34), "leg": rng.uniform(0.22, 0.27)}

    def draw_motion(self, rng: np.random.Generator, body: Body, frames: int, fps: float) -> Motion:
        times = np.arange(frames)[:, None] / fps
        hip, legs = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5) * np.pi
        knee = rng.uniform(0.2, 0.8) * np.pi * (-1, 1)[rng.integers(2)]
        phases = np.array([hip, hip + knee, hip + legs, hip + legs + knee])
        stride = rng.uniform(0.4, 0.9) * np.sin(2 * np.pi * rng.uniform(0.8, 1.8) * times + phases)
        actions = np.clip(stride + 0.3 * smooth_controls(rng, frames, 4, fps), -1, 1)
        controls = self.rest + self.reach * actions
        qpos = np.array([rng.uniform(-0.3, 0.3), 0.0, 0.0, *controls[0]])
        return Motion(qpos, np.zeros(7), actions, controls, _level(frames))

    def world(self, body: Body, look: Look) -> tuple[str, str]:
        half, leg = body["half"], body["leg"]
        first = _color(look.color)
        mass = f'type="capsule" contype="0" conaffinity="0" {HIDDEN}'
        hinge = 'type="hinge" axis="0 1 0" damping=".6" armature=".02" limited="true"'

        def limb(side: str, x: float, shade: float) -> str:
            color = _color(look.color, shade)
            return (
                f'<body pos="{x} 0 0"><joint name="{side} hip" {hinge} range="-.6 1.5"/>'
                f'<geom fromto="0 0 0 0 0 {-leg}" size=".05" mass=".3" {mass}/>'
                f"{_link(look, f'0 0 {-leg}', 0.07, color)}"
                f'<body pos="0 0 {-leg}"><joint name="{side} knee" {hinge} range="-1.8 0"/>'
                f'<geom fromto="0 0 0 0 0 {-leg}" size=".04" mass=".2" {mass}/>'
                f"{_link(look, f'0 0 {-leg}', 0.06, color)}"
                f'<geom type="sphere" size=".06" pos="0 0 {-leg}" mass=".05" friction="1.2 0 0" '
                f'{HIDDEN}/><geom type="sphere" size=".09" pos="0 0 {-leg}" {SEEN} '
                f"{_color(look.second)}/></body></body>"
            )

        bodies = (
            f'<geom type="box" size="6 .05 2" pos="0 2.4 0" {SEEN} rgba=".62 .68 .75 1"/>'
            f'<body pos="0 0 {2 * leg * np.cos(0.45) + 0.06}">'
            '<joint type="slide" axis="1 0 0" damping=".2" limited="true" range="-.9 .9"/>'
            '<joint type="slide" axis="0 0 1"/>'
            '<joint type="hinge" axis="0 1 0" stiffness="30" damping="3"/>'
            f'<geom fromto="{-half} 0 0 {half} 0 0" size=".08" mass="2" {mass}/>'
            f'<geom type="{"box" if look.boxy else "capsule"}" fromto="{-half} 0 0 {half} 0 0" '
            f'size="{0.085 * look.thickness}" {SEEN} {first}/><site/>'
            f"{limb('back', -half + 0.04, 0.75)}{limb('front', half - 0.04, 0.9)}</body>"
        )
        motors = (f'<position joint="{name}" kp="30"/>' for name in self.action_names)
        return bodies, "".join(motors)

    def clause(self, body: Body, look: Look, clip: Simulated) -> tuple[str, str]:
        subject = f"a {look.color} runner with {look.second} feet"
        if clip.direction == "in place":
            return subject, "steps about in place"
        return subject, f"runs {_towards(clip.direction)}"


class Bodies(Scene):
    """Two bodies that fall, roll and collide on a table that tilts to two sides."""

    name = "bodies"
    action_names = ("tilt to the right", "tilt away")
    joints: ClassVar = {"first": "free", "second": "free"}
    elevation = -48.0
    distance = 3.0
    threshold = 0.2
    shapes: ClassVar = {"ball": "sphere", "box": "box", "capsule": "capsule"}
    pull: ClassVar = 4.0  # m/s² at full tilt

    def draw_body(self, rng: np.random.Generator) -> Body:
        shapes = [tuple(self.shapes)[rng.integers(3)] for _ in range(2)]
        return {"shapes": shapes, "sizes": rng.uniform(0.13, 0.18, 2)}

    def draw_motion(self, rng: np.random.Generator, body: Body, frames: int, fps: float) -> Motion:
        actions = smooth_controls(rng, frames, 2, fps)
        angle = rng.uniform(-np.pi, np.pi)
        apart = rng.uniform(0.3, 0.55) * np.array([np.cos(angle), np.sin(angle)])
        qpos = []
        for side in (-1, 1):
            turn = rng.normal(size=4)
            place = [*(side * apart), rng.uniform(0.3, 0.8)]
            qpos += [*place, *(turn / np.linalg.norm(turn))]
        qvel = np.concatenate([[*rng.uniform(-1, 1, 2), 0, *rng.normal(0, 1, 3)] for _ in "12"])
        gravity = _level(frames)
        gravity[:, :2] = self.pull * actions
        return Motion(np.array(qpos), qvel, actions, np.zeros((frames, 0)), gravity)

    def world(self, body: Body, look: Look) -> tuple[str, str]:
        walls = "".join(
            f'<geom type="plane" size="3 3 1" zaxis="{x} {y} 0" pos="{-x} {-y} 0" {HIDDEN}/>'
            for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
        )
        bodies = ""
        for name, size, color in zip(
            body["shapes"], body["sizes"], (look.color, look.second), strict=True
        ):
            sizes = {"ball": f"{size}", "box": f"{size} {size * 0.8} {size * 0.8}"}
            form = f'type="{self.shapes[name]}" size="{sizes.get(name, f"{size * 0.8} {size}")}"'
            bodies += (
                f'<body><freejoint/><geom {form} mass=".4" {HIDDEN}/>'
                f"<geom {form} {SEEN} {_color(color)}/><site/></body>"
            )
        return _rim(1.03) + walls + bodies, ""

    def clause(self, body: Body, look: Look, clip: Simulated) -> tuple[str, str]:
        first, second = body["shapes"]
        subject = f"a {look.color} {first} and a {look.second} {second}"
        return subject, f"fall, and the {first} moves {_towards(clip.direction)}"


SCENES_BY_NAME: dict[str, Scene] = {
    scene.name: scene for scene in (Arm(), Pusher(), Runner(), Bodies())
}
