"""From noise to scaled latents: the loop over solver steps, and over the windows of a long video.

Some latents may be given while the others are sampled. The solver steps the sampled ones alone,
packed into one (B, values) tensor, so that a solver that remembers its steps does so once; where
one latent leads the other, each has a solver of its own (`diffusion.tracks`).

Axes: B batch, C channels, T frames of a window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion.caching import caches_of_a_call, empty_cache
from diffusion.conditions import Conditions
from diffusion.config import ALWAYS_KNOWN, GuidanceScales
from diffusion.dit import TwinDiT
from diffusion.flow import timestep_of
from diffusion.given_frames import GivenFrames
from diffusion.guidance import guidance_terms, guided_prediction
from diffusion.guiders import guide_tracks
from diffusion.inputs import check_length, lead_steps, seed_list
from diffusion.scheduler_names import is_flow
from diffusion.schedulers import LatentSolver, prediction_of
from diffusion.tracks import Track
from vidtwin import AutoencoderConfig, VidTwinLatents, standard_normal_latents

# A callback's view: (step, timestep, name -> scaled latents) -> those of them that it changed.
AfterStep = Callable[[int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(kw_only=True)
class LatentSampler:
    """One call of the pipeline: what stays the same from its first step to its last.

    Args:
        transformer: predicts.
        prediction: what; None for what the scheduler takes.
        scheduler: steps; fits the transformer's objective.
        num_inference_steps: solver steps of each window.
        generators: one for each sample, or one for all.
        device: of the transformer.
        conditions: what the B videos are to show.
        negative: what they are not to show.
        scales: how strongly.
        given: scaled latents; only the named ones count.
        given_names: of the latents that are given, not sampled.
        after_step: called after each step.
        interrupted: whether to stop before the next step.
        progress_bar: makes one, from `total`.
        structure_lead: see `diffusion.tracks`; of windows that sample both.
        guider: see `diffusion.guiders`; then `scales` counts for what is given alone.
        noise: that the first window starts from; None to draw it.
        going_on: gives the frames that the next window starts with, from a window and the frames
            from its start to the next one's; None to keep the first window's structure instead.
        known, known_frames: dynamics that the first window starts with, and of how many frames.
    """

    transformer: TwinDiT
    scheduler: Any
    num_inference_steps: int
    generators: list[torch.Generator] | torch.Generator
    device: torch.device
    conditions: Conditions
    negative: Conditions | None
    scales: GuidanceScales
    given: VidTwinLatents
    given_names: frozenset[str]
    after_step: AfterStep | None
    interrupted: Callable[[], bool]
    progress_bar: Callable[..., Any]
    structure_lead: float = 0.0
    guider: Any = None
    noise: VidTwinLatents | None = None
    going_on: Callable[[VidTwinLatents, int], GivenFrames] | None = None
    known: VidTwinLatents | None = None
    known_frames: int = 0
    prediction: str | None = None
    steps_done: int = 0

    @property
    def sampled_names(self) -> frozenset[str]:
        """Of the latents that are sampled."""
        return frozenset(VidTwinLatents.names) - self.given_names

    def sample(self, starts: Sequence[int], batch_size: int) -> list[VidTwinLatents]:
        """The scaled latents of each window; after an interrupt, of those that were begun.

        Args:
            starts: the first frame of each window.
            batch_size: B.
        """
        sizes = self.transformer.sizes
        # All noise first: what a scheduler draws on its way then changes no later window's.
        noises = [
            standard_normal_latents(sizes, batch_size, self.generators, self.device) for _ in starts
        ]
        if self.noise is not None:
            noises[0] = self.noise
        windows = [self.sample_window(noises[0], self.known, self.known_frames)]
        for number in range(1, len(starts)):
            if self.interrupted():
                break
            shift = starts[number] - starts[number - 1]
            if self.going_on is None:
                self.given, self.given_names = windows[0], frozenset(["structure"])
                known, count = carried_on(windows[-1], shift)
            else:
                frames = self.going_on(windows[-1], shift)
                known, count = frames.latents, frames.num_known
                self.conditions = self.conditions.replaced(frames.condition())
            windows.append(self.sample_window(noises[number], known, count))
        return windows

    def sample_window(
        self, noise: VidTwinLatents, known: VidTwinLatents | None = None, known_frames: int = 0
    ) -> VidTwinLatents:
        """The scaled latents of one window.

        Args:
            noise: of all latents.
            known: its dynamics of the first frames follow the noise level as if they were sampled,
                and come out as they are.
            known_frames: how many of them.
        """
        empty_cache(self.transformer)
        tracks = self.tracks(noise)
        if known is not None and known_frames:
            for track in tracks:
                track.known, track.is_known = known_values(known, known_frames, track.names)
        calls = max(track.end for track in tracks)
        with self.progress_bar(total=calls) as bar:
            for call in range(calls):
                if self.interrupted():
                    break
                predictions = self.predict(tracks, call, noise)
                moving = [track for track in tracks if track.moves(call)]
                for track in moving:
                    track.step(predictions.pack(track.names), call)
                # With a lead, the timestep is that of the latents behind, once they move.
                behind = max(moving, key=lambda track: track.delay)
                self.call_back(tracks, behind.solver.timesteps[behind.index(call)])
                bar.update()
        for track in tracks:
            track.finish()
        return self.unpacked(tracks)

    def tracks(self, noise: VidTwinLatents) -> list[Track]:
        """Of the latents that are sampled: one, or two where both are sampled and one leads."""
        names = self.sampled_names
        lead = 0.0 if self.given_names else self.structure_lead
        steps, delay = lead_steps(lead, self.num_inference_steps)
        # A scheduler of the second order calls the model twice in a step.
        delay *= getattr(self.scheduler, "order", 1)
        groups = {names: 0}
        if delay:
            structure = frozenset(["structure"])
            groups = {structure: max(0, -delay), names - structure: max(0, delay)}
        tracks: list[Track] = []
        for group, wait in groups.items():
            scheduler = copy.deepcopy(self.scheduler) if tracks else self.scheduler
            solver = LatentSolver(scheduler, steps, self.device, self.generators, self.prediction)
            wait = min(wait, len(solver))  # Heun's last step calls the model once
            guider, packed = copy.deepcopy(self.guider), noise.pack(group)
            tracks.append(
                Track(names=group, solver=solver, delay=wait, noise=packed, guider=guider)
            )
        return tracks

    def unpacked(self, tracks: Sequence[Track]) -> VidTwinLatents:
        """The latents as they are now."""
        return self.joined(self.given, {track.names: track.sample for track in tracks})

    @staticmethod
    def joined(others: VidTwinLatents, packed: dict[frozenset[str], Tensor]) -> VidTwinLatents:
        """The latents of (B, values) tensors by the names packed in them, and the others."""
        for names, values in packed.items():
            others = VidTwinLatents.unpack(values, others, names)
        return others

    def predict(self, tracks: Sequence[Track], call: int, noise: VidTwinLatents) -> VidTwinLatents:
        """The guided predictions; those of latents that are given mean nothing.

        Args:
            tracks: of the latents that are sampled.
            call: of the model, in this window.
            noise: what enters in place of what is given, at the last timestep, where the
                prediction is not to know it.
        """
        seen = {track.names: track.model_input(call) for track in tracks}
        with_given, without = self.joined(self.given, seen), self.joined(noise, seen)
        # Clean latents, and given ones that a prediction is not to know.
        flow = is_flow(self.prediction or prediction_of(self.scheduler))
        clean, hidden = timestep_of(flow, torch.tensor([0.0, 1.0], device=self.device)).unbind()
        told = {name: track.timestep(call) for track in tracks for name in track.names}

        def predict(conditions: Conditions, knows: Sequence[bool]) -> VidTwinLatents:
            inputs = VidTwinLatents.cat([with_given if known else without for known in knows])

            def timesteps(name: str) -> Tensor:
                """(V x B,)"""
                of_given = [clean if known else hidden for known in knows]
                each = of_given if name in self.given_names else [told[name]] * len(knows)
                levels = torch.stack([clean if level is None else level for level in each])
                return levels.to(clean).repeat_interleave(with_given.batch_size)

            inputs = inputs.to(dtype=self.transformer.dtype)
            levels = (timesteps(name) for name in ("structure", "dynamics_x"))
            predictions = self.transformer(*inputs.tensors(), *levels, **conditions.arguments())
            # The solver's small steps add up in float32, whatever the transformer's dtype.
            return VidTwinLatents(*predictions).map(Tensor.float)

        if self.guider is not None:
            return self.predict_by_guider(predict, tracks, call)
        terms = guidance_terms(self.conditions, self.scales, bool(self.given_names))
        with caches_of_a_call(self.transformer, "all"):
            return guided_prediction(predict, self.conditions, terms, self.negative)

    def predict_by_guider(
        self,
        predict: Callable[[Conditions, Sequence[bool]], VidTwinLatents],
        tracks: Sequence[Track],
        call: int,
    ) -> VidTwinLatents:
        """The predictions as each track's guider combines them, see `diffusion.guiders`."""
        without = self.conditions.keep(ALWAYS_KNOWN, self.negative)

        def of(known: bool) -> VidTwinLatents:
            return predict(self.conditions if known else without, [True])

        guided = guide_tracks(tracks, call, of, self.transformer)
        if self.given_names and self.scales.given != 1:
            with caches_of_a_call(self.transformer, "nothing"):
                nothing = predict(self.conditions.keep(ALWAYS_KNOWN), [False])
            with caches_of_a_call(self.transformer, "known"):
                pushed = VidTwinLatents.combine(torch.sub, of(False), nothing)
            for names in guided:
                guided[names] = guided[names] + (self.scales.given - 1) * pushed.pack(names)
        return self.joined(self.given, guided)

    def call_back(self, tracks: Sequence[Track], timestep: Tensor) -> None:
        """Lets the callback see the latents, and change those that are sampled."""
        step = self.steps_done
        self.steps_done += 1
        if self.after_step is None:
            return
        latents = self.unpacked(tracks)
        changed = self.after_step(step, timestep, dict(latents.items()))
        self.check_changed(latents, changed)
        latents = replace(latents, **changed)
        for track in tracks:
            track.sample = latents.pack(track.names)

    def check_changed(self, latents: VidTwinLatents, changed: dict[str, Tensor]) -> None:
        """Raises ValueError for what a callback returned and nothing can be done with."""
        for name, value in changed.items():
            if name in self.sampled_names:
                expected, came = tuple(getattr(latents, name).shape), tuple(value.shape)
                if came != expected:
                    raise ValueError(
                        f"the callback returned `{name}` of shape {came}, expected {expected}"
                    )
            elif value is not getattr(latents, name, None):
                may_change = [name for name in latents.names if name in self.sampled_names]
                raise ValueError(
                    f"the callback returned `{name}`, which is not sampled here; it may change "
                    f"{', '.join(may_change)}"
                )


def carried_on(before: VidTwinLatents, shift: int) -> tuple[VidTwinLatents, int]:
    """What the next window knows of a window: its latents, the dynamics' later frames first.

    Args:
        shift: frames from that window's start to the next one's.
    Returns:
        The latents, zero after the last frame that both have, and how many they both have.
    """

    def moved(dynamics: Tensor) -> Tensor:
        frames, nothing = dynamics[:, :, shift:], torch.zeros_like(dynamics[:, :, :shift])
        return torch.cat([frames, nothing], dim=2)  # (B, C, T, w or h)

    dynamics_x, dynamics_y = moved(before.dynamics_x), moved(before.dynamics_y)
    return VidTwinLatents(before.structure, dynamics_x, dynamics_y), dynamics_x.shape[2] - shift


def known_values(known: VidTwinLatents, count: int, names: frozenset[str]) -> tuple[Tensor, Tensor]:
    """(B, values) of the named latents, and bool, True for the dynamics' first frames."""
    mask = known.map(torch.zeros_like)
    mask.dynamics_x[:, :, :count], mask.dynamics_y[:, :, :count] = 1, 1
    return known.pack(names), mask.pack(names).bool()


def given_latents(
    structure: VidTwinLatents | Tensor | None,
    dynamics: VidTwinLatents | Tensor | None,
    sizes: AutoencoderConfig,
    encode: Callable[[Tensor], VidTwinLatents],
    device: torch.device,
) -> tuple[VidTwinLatents, frozenset[str]]:
    """Raw float32 latents of one video or more, and the names of those that are given.

    The others are zero.

    Args:
        structure: latents or a video whose structure is given; None to sample it.
        dynamics: the same of the dynamics.
        sizes: of the autoencoder.
        encode: gives the latents of a video.
        device: of the result.
    Raises:
        ValueError: for both, or for what these sizes do not fit.
    """
    if structure is not None and dynamics is not None:
        raise ValueError(
            "`structure` and `dynamics` are both given, so there is nothing to sample; leave "
            "one out, or decode them with the autoencoder"
        )
    kind, came = ("dynamics", dynamics) if structure is None else ("structure", structure)
    names = [name for name in VidTwinLatents.names if name.startswith(kind)]
    if came is None:
        names, rows = [], 1
    elif isinstance(came, VidTwinLatents | Tensor):
        came = came if isinstance(came, VidTwinLatents) else encode(came)
        rows = len(getattr(came, names[0]))
    else:
        raise ValueError(
            f"`{kind}` must be latents or a video as a tensor (B, 3, T, H, W) in [-1, 1], "
            f"got {type(came).__name__}; vidtwin.media.read_first_window reads a file"
        )
    tensors = {}
    for name in VidTwinLatents.names:
        shape = getattr(sizes, f"{name}_shape")
        if name not in names:
            tensors[name] = torch.zeros(rows, *shape, device=device)
            continue
        value = getattr(came, name)
        if tuple(value.shape[1:]) != shape or not len(value):
            raise ValueError(
                f"expected `{name}` of shape (B, {', '.join(map(str, shape))}), got "
                f"{tuple(value.shape)}: it comes from another autoencoder"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"the `{name}` that is given holds values that are not finite")
        tensors[name] = value.to(device, torch.float32)
    return VidTwinLatents(**tensors), frozenset(names)


def repeated_to(values: Tensor, batch_size: int) -> Tensor:
    """(n, ...) to (B, ...), the repeats of each beside each other; n divides B."""
    return values.repeat_interleave(batch_size // len(values), dim=0)


def generators_of(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    batch_size: int,
) -> list[torch.Generator] | torch.Generator:
    """The source of each sample's noise: a generator on the CPU of its own, unless one was given.

    Args:
        seed: see `seed_list`; None draws seeds from torch's own generator.
        generator: instead of a seed.
        batch_size: B.
    Raises:
        ValueError: for both, or another number of them than samples.
    """
    if generator is not None:
        if seed is not None:
            raise ValueError("give `seed` or `generator`, got both")
        if isinstance(generator, torch.Generator):
            return generator
        given = list(generator) if isinstance(generator, Sequence) else [generator]
        if not all(isinstance(one, torch.Generator) for one in given):
            raise ValueError(
                f"`generator` must be a torch.Generator, or one for each video, got {generator!r}; "
                "a number is a `seed`"
            )
        check_length("generator", len(given), batch_size)
        return given
    if seed is None:
        seed = torch.randint(2**62, (batch_size,)).tolist()
    return [torch.Generator().manual_seed(one) for one in seed_list(seed, batch_size)]
