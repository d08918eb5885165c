"""From noise to scaled latents: the loop over solver steps, and over the windows of a long video.

Some latents may be given while the others are sampled. The solver steps the sampled ones alone,
packed into one (B, values) tensor, so that a solver that remembers its steps does so once.

Axes: B batch, C channels, T frames of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion.conditions import Conditions
from diffusion.config import GuidanceScales
from diffusion.dit import TwinDiT
from diffusion.flow import timestep_of
from diffusion.guidance import guidance_terms, guided_prediction
from diffusion.inputs import check_length, seed_list
from diffusion.schedulers import LatentSolver, is_flow, prediction_of
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
        windows = [self.sample_window(noises[0])]
        for number in range(1, len(starts)):
            if self.interrupted():
                break
            self.given, self.given_names = windows[0], frozenset(["structure"])
            shift = starts[number] - starts[number - 1]
            windows.append(self.sample_window(noises[number], windows[-1], shift))
        return windows

    def sample_window(
        self, noise: VidTwinLatents, before: VidTwinLatents | None = None, shift: int = 0
    ) -> VidTwinLatents:
        """The scaled latents of one window.

        Args:
            noise: of all latents.
            before: the window before. The dynamics of the frames that both have follow the noise
                level as if they were sampled, and come out as they are.
            shift: frames from that window's start to this one's.
        """
        solver = LatentSolver(
            self.scheduler,
            self.num_inference_steps,
            self.device,
            self.generators,
            self.prediction,
        )
        flat_noise = noise.pack(self.sampled_names)
        sample = solver.start(flat_noise)
        if before is not None:
            clean, is_known = self.known_values(before, shift)
        with self.progress_bar(total=len(solver)) as bar:
            for index in range(len(solver)):
                if self.interrupted():
                    break
                if before is not None:
                    noised = solver.noised(clean, flat_noise, index)
                    sample = torch.where(is_known, noised, sample)
                seen = solver.model_input(sample, index)
                prediction = self.predict(seen, solver.timestep(index), noise)
                sample = solver.step(prediction, sample, index)
                sample = self.call_back(sample, solver.timesteps[index])
                bar.update()
        if before is not None:
            sample = torch.where(is_known, clean, sample)
        return self.unpacked(sample, self.given)

    def unpacked(self, sample: Tensor, others: VidTwinLatents) -> VidTwinLatents:
        """The sampled latents of (B, values), and those of `others` that are not sampled."""
        return VidTwinLatents.unpack(sample, others, self.sampled_names)

    def known_values(self, before: VidTwinLatents, shift: int) -> tuple[Tensor, Tensor]:
        """(B, values) clean values, 0 where not known; (B, values) bool, True where known."""

        def first_frames(dynamics: Tensor) -> Tensor:
            frames, nothing = dynamics[:, :, shift:], torch.zeros_like(dynamics[:, :, :shift])
            return torch.cat([frames, nothing], dim=2)  # (B, C, T, w or h)

        known = before.map(first_frames).pack(self.sampled_names)
        mask = before.map(torch.ones_like).map(first_frames).pack(self.sampled_names)
        return known, mask.bool()

    def predict(self, sample: Tensor, timestep: Tensor, noise: VidTwinLatents) -> Tensor:
        """(B, values): the guided prediction for the latents that are sampled.

        Args:
            sample: (B, values) those latents at their noise level.
            timestep: of that level; what is given enters clean, at timestep 0.
            noise: what enters in place of what is given, at the last timestep, where the
                prediction is not to know it.
        """
        with_given, without = self.unpacked(sample, self.given), self.unpacked(sample, noise)

        def predict(conditions: Conditions, knows: Sequence[bool]) -> VidTwinLatents:
            inputs = VidTwinLatents.cat([with_given if known else without for known in knows])
            own = timestep.expand(len(inputs))
            levels = torch.tensor([0.0 if known else 1.0 for known in knows], device=own.device)
            flow = is_flow(self.prediction or prediction_of(self.scheduler))
            of_given = timestep_of(flow, levels).to(own).repeat_interleave(len(sample))
            timesteps = (
                of_given if name in self.given_names else own
                for name in ("structure", "dynamics_x")
            )
            inputs = inputs.to(dtype=self.transformer.dtype)
            predictions = self.transformer(*inputs.tensors(), *timesteps, **conditions.arguments())
            # The solver's small steps add up in float32, whatever the transformer's dtype.
            return VidTwinLatents(*predictions).map(Tensor.float)

        terms = guidance_terms(self.conditions, self.scales, bool(self.given_names))
        guided = guided_prediction(predict, self.conditions, terms, self.negative)
        return guided.pack(self.sampled_names)

    def call_back(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """(B, values): the sample, after the callback could change it."""
        step = self.steps_done
        self.steps_done += 1
        if self.after_step is None:
            return sample
        latents = self.unpacked(sample, self.given)
        changed = self.after_step(step, timestep, dict(latents.items()))
        self.check_changed(latents, changed)
        return replace(latents, **changed).pack(self.sampled_names)

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
        check_length("generator", len(generator), batch_size)
        return list(generator)
    if seed is None:
        seed = torch.randint(2**62, (batch_size,)).tolist()
    return [torch.Generator().manual_seed(one) for one in seed_list(seed, batch_size)]
