"""The autoencoder's objective: reconstruction, perceptual, adversarial and KL terms.

Axes: B batch, C channels, T frames, H W pixels.

    error = |x - x_hat| + perceptual_weight * LPIPS(frame)          (LPIPS added to every pixel)
    nll   = sum(error / exp(s) + s) / (B T)                         s = logvar, learned
    total = nll + kl_weight * mean_B(KL) + adaptive * (-mean D(x_hat))
          + alignment.weight * C H W * alignment                    (off by default)
    adaptive = discriminator_weight * min(|d nll / dW| / (|d adversarial / dW| + 1e-4), maximum)

with W the decoder's last Linear weight. Source: VidTwin (arXiv 2412.17726) as released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import relu

from vidtwin.alignment import StructureAlignment
from vidtwin.config import RECONSTRUCTIONS, LossConfig
from vidtwin.metrics import Lpips

__all__ = [
    "AutoencoderLoss",
    "LossConfig",
    "adaptive_weight",
    "hinge_loss",
    "lecam_penalty",
    "negative_log_likelihood",
    "reconstruction_error",
]

Reduce = Callable[[Tensor], Tensor]
FrameDistance = Callable[[Tensor, Tensor], Tensor]


class _HasKL(Protocol):
    def kl(self) -> Tensor: ...


class _HasMean(_HasKL, Protocol):
    @property
    def mean(self) -> Tensor: ...


class Posterior(Protocol):
    """What the loss needs of the posterior: the KL of each latent, (B,), and the structure's mean
    for an alignment."""

    @property
    def structure(self) -> _HasMean: ...
    @property
    def dynamics_x(self) -> _HasKL: ...
    @property
    def dynamics_y(self) -> _HasKL: ...


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def reconstruction_error(video: Tensor, reconstruction: Tensor, kind: str = "l1") -> Tensor:
    """Error of every value, in the shape of the video.

    Args:
        video: (B, C, T, H, W).
        reconstruction: the same shape.
        kind: "l1" or "l2".
    Returns:
        (B, C, T, H, W).
    Raises:
        ValueError: if the shapes differ (broadcasting would hide it) or kind is unknown.
    """
    if video.shape != reconstruction.shape:
        raise ValueError(
            "the reconstruction must have the video's shape "
            f"{tuple(video.shape)}, got {tuple(reconstruction.shape)}"
        )
    if kind not in RECONSTRUCTIONS:
        raise ValueError(f"reconstruction must be one of {RECONSTRUCTIONS}, got {kind!r}")
    difference = video - reconstruction
    return difference.abs() if kind == "l1" else difference.square()


def negative_log_likelihood(error: Tensor, logvar: Tensor) -> Tensor:
    """sum(error / exp(logvar) + logvar) / (B T): summed over C, H, W, averaged over frames.

    Args:
        error: (B, C, T, H, W), not negative.
        logvar: scalar.
    Returns:
        Scalar.
    """
    return (error / logvar.exp() + logvar).sum() / (error.shape[0] * error.shape[2])


def hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """The discriminator's loss: half of mean relu(1 - real) + mean relu(1 + fake)."""
    return 0.5 * (relu(1 - logits_real).mean() + relu(1 + logits_fake).mean())


def lecam_penalty(
    logits_real: Tensor, logits_fake: Tensor, average_real: Tensor, average_fake: Tensor
) -> Tensor:
    """Pulls the logits towards the moving average of the opposite side.

    Args:
        logits_real: of videos.
        logits_fake: of reconstructions.
        average_real: moving average of the mean logit of videos.
        average_fake: the same on reconstructions.
    Returns:
        Scalar.
    Source: LeCAM (Tseng et al. 2021, arXiv 2104.03310); one-sided, as its authors' code.
    """
    return (
        relu(logits_real - average_fake).square().mean()
        + relu(average_real - logits_fake).square().mean()
    )


def adaptive_weight(
    nll: Tensor,
    adversarial: Tensor,
    last_weight: Tensor,
    *,
    maximum: float = 1e4,
    reduce_gradient: Reduce | None = None,
) -> Tensor:
    """Ratio of the reconstruction's gradient norm to the adversarial one.

    Args:
        nll: scalar that depends on last_weight; its graph is kept.
        adversarial: likewise.
        last_weight: the decoder's last Linear weight.
        maximum: upper bound of the ratio.
        reduce_gradient: averages a tensor over the processes, so that all get the ratio that a
            single process would get for the whole batch.
    Returns:
        Scalar in [0, maximum], without gradient.
    Source: VQGAN (arXiv 2012.09841), Eq. 7, with 1e-4 as released.
    """
    gradients = []
    for loss in (nll, adversarial):
        # Only the last Linear is differentiated: no checkpointed block is recomputed, and
        # autograd.grad neither fills .grad nor fires DDP's hooks.
        (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
        gradient = at_least_float32(gradient.detach())
        gradients.append(reduce_gradient(gradient) if reduce_gradient else gradient)
    ratio = gradients[0].norm() / (gradients[1].norm() + 1e-4)
    return ratio.clamp(0, maximum)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """The module's parameters get no gradients from graphs built in this context."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class AutoencoderLoss(nn.Module):
    """The objective with its state: the log-variance and LeCAM's moving averages.

    The state dict holds only these and, where there is an alignment, its projection; it belongs in
    every checkpoint. The parameters, the log-variance and the projection, are for the autoencoder's
    optimizer.

    Args:
        config: see `LossConfig`.
        frame_distance: replaces LPIPS: (B, 3, T, H, W) twice -> (B, T), differentiable.
        structure_shape: (C, Q, h', w') of the structure latent, which an alignment needs.
    Raises:
        ValueError: if LPIPS or an alignment is on and its weights can't be loaded.
    """

    lecam_real: Tensor
    lecam_fake: Tensor
    lecam_updates: Tensor

    def __init__(
        self,
        config: LossConfig | None = None,
        *,
        frame_distance: FrameDistance | None = None,
        structure_shape: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or LossConfig()
        self.logvar = nn.Parameter(
            torch.tensor(float(config.initial_logvar)), requires_grad=config.learn_logvar
        )
        for name in ("lecam_real", "lecam_fake"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("lecam_updates", torch.zeros((), dtype=torch.long))
        self.lpips: Lpips | None = None
        if config.perceptual_weight > 0 and frame_distance is None:
            self.lpips = Lpips(config.perceptual_net)
        self._frame_distance = frame_distance
        self.alignment: StructureAlignment | None = None
        if config.alignment.encoder is not None:
            if structure_shape is None:
                raise ValueError("loss.alignment needs the structure_shape of the autoencoder")
            self.alignment = StructureAlignment(config.alignment, structure_shape)

    def discriminator_active(self, step: int) -> bool:
        """Whether the adversarial term and the discriminator's training are on.

        Args:
            step: number of batches before this one.
        """
        return self.config.discriminator_weight > 0 and step >= self.config.discriminator_start

    def generator_loss(
        self,
        video: Tensor,
        reconstruction: Tensor,
        posterior: Posterior,
        *,
        step: int,
        discriminator: nn.Module | None = None,
        last_weight: Tensor | None = None,
        reduce_gradient: Reduce | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The autoencoder's loss on a batch.

        Before discriminator_start, with weight 0, or without gradients (validation) the
        discriminator isn't called and there is no adversarial term.

        Args:
            video: (B, 3, T, H, W), in [-1, 1].
            reconstruction: the same shape.
            posterior: the `kl()` of each of its three parts is (B,).
            step: number of batches before this one.
            discriminator: a `PatchDiscriminator`, possibly wrapped by DDP; gets no gradient.
            last_weight: the decoder's last Linear weight, for `adaptive_weight`.
            reduce_gradient: averages a tensor over the processes. It makes the adaptive weight and
                the gradient of the log-variance, which DDP doesn't wrap, those of the whole batch.
        Returns:
            The total to minimize, and every term for the log, detached scalars.
        Raises:
            ValueError: if shapes differ, or the discriminator or last_weight is missing when on.
        """
        # In float32 even if the networks run in bf16: nll sums 150,000 values per frame, too many
        # for the 8 bits of bf16.
        with torch.autocast(video.device.type, enabled=False):
            error, logs = self._error(video, reconstruction)
            nll = negative_log_likelihood(error, self._shared_logvar(error, reduce_gradient))
            kl, kl_logs = self._kl(posterior)
            total = nll + self.config.kl_weight * kl
            if self.alignment is not None:
                mean = posterior.structure.mean
                logs["alignment"] = distance = self.alignment(video, mean, reduce_gradient)
                # nll sums the values of a frame, too: the weight is one of means.
                scale = error[0, :, 0].numel()
                total = total + self.config.alignment.weight * scale * distance
        logs |= {"nll": nll, "logvar": self.logvar, **kl_logs}
        if self.discriminator_active(step) and torch.is_grad_enabled():
            if discriminator is None or last_weight is None:
                raise ValueError(
                    f"from step {self.config.discriminator_start} on the loss needs a "
                    "discriminator and last_weight; pass both, or set loss.discriminator_weight=0"
                )
            adversarial = self._adversarial(discriminator, reconstruction)
            weight = self.config.discriminator_weight * adaptive_weight(
                nll,
                adversarial,
                last_weight,
                maximum=self.config.adaptive_weight_max,
                reduce_gradient=reduce_gradient,
            )
            total = total + weight * adversarial
            logs |= {"adversarial": adversarial, "adaptive_weight": weight}
        logs["total"] = total
        return total, {name: value.detach().clone() for name, value in logs.items()}

    def discriminator_loss(
        self,
        discriminator: nn.Module,
        video: Tensor,
        reconstruction: Tensor,
        step: int,
        *,
        reduce_mean: Reduce | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on a batch; updates LeCAM's averages in training.

        Args:
            discriminator: a `PatchDiscriminator`, possibly wrapped by DDP.
            video: (B, 3, T, H, W), in [-1, 1].
            reconstruction: the same shape; gets no gradient.
            step: number of batches before this one.
            reduce_mean: averages a tensor over the processes, for LeCAM's averages.
        Returns:
            The loss and its terms for the log. Before discriminator_start the loss is a
            constant 0 without a graph; check `discriminator_active` first.
        """
        if not self.discriminator_active(step):
            return torch.zeros((), device=video.device), {}
        real = discriminator(video.detach())
        fake = discriminator(reconstruction.detach())
        with torch.autocast(video.device.type, enabled=False):
            real, fake = at_least_float32(real), at_least_float32(fake)
            total = hinge_loss(real, fake)
            logs = {"hinge": total, "logits_real": real.mean(), "logits_fake": fake.mean()}
            if self.config.lecam_weight > 0:
                if self.training and torch.is_grad_enabled():
                    self._update_lecam(real.detach().mean(), fake.detach().mean(), reduce_mean)
                penalty = lecam_penalty(real, fake, self.lecam_real, self.lecam_fake)
                total = total + self.config.lecam_weight * penalty
                logs["lecam"] = penalty
        logs["total"] = total
        return total, {name: value.detach().clone() for name, value in logs.items()}

    def _error(self, video: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        video, reconstruction = at_least_float32(video), at_least_float32(reconstruction)
        error = reconstruction_error(video, reconstruction, self.config.reconstruction)
        logs = {"reconstruction": error.mean()}
        if self.config.perceptual_weight > 0:
            distance = self._frame_distance or (self.lpips.frames if self.lpips else None)
            assert distance is not None
            perceptual = distance(video, reconstruction)  # (B, T)
            spread = rearrange(perceptual, "b t -> b 1 t 1 1").to(error.dtype)
            error = error + self.config.perceptual_weight * spread
            logs["perceptual"] = perceptual.mean()
        return error, logs

    def _adversarial(self, discriminator: nn.Module, reconstruction: Tensor) -> Tensor:
        # Unwrapped from DDP, whose gradient reducer would wait for gradients that this pass
        # doesn't compute.
        unwrapped = discriminator.module if hasattr(discriminator, "module") else discriminator
        assert isinstance(unwrapped, nn.Module)
        with _frozen(unwrapped):
            logits = unwrapped(reconstruction)
        return -at_least_float32(logits).mean()

    def _kl(self, posterior: Posterior) -> tuple[Tensor, dict[str, Tensor]]:
        parts = {
            name: at_least_float32(getattr(posterior, name).kl()).mean()
            for name in ("structure", "dynamics_x", "dynamics_y")
        }
        weighted = self.config.kl_structure * parts["structure"] + self.config.kl_dynamics * (
            parts["dynamics_x"] + parts["dynamics_y"]
        )
        logs = {f"kl_{name}": value for name, value in parts.items()}
        logs["kl"] = parts["structure"] + parts["dynamics_x"] + parts["dynamics_y"]
        return weighted, logs

    def _shared_logvar(self, error: Tensor, reduce_gradient: Reduce | None) -> Tensor:
        logvar = self.logvar.to(error.dtype)
        if reduce_gradient is not None and logvar.requires_grad and torch.is_grad_enabled():
            logvar = logvar.clone()  # a hook on the parameter itself would stay after this batch
            logvar.register_hook(reduce_gradient)
        return logvar

    @torch.no_grad()
    def _update_lecam(self, real: Tensor, fake: Tensor, reduce_mean: Reduce | None) -> None:
        means = torch.stack([real, fake])
        if reduce_mean is not None:
            means = reduce_mean(means)
        # The training loop skips a batch that isn't finite; it must not change the averages either.
        # Computed with tensors, to avoid waiting for the GPU.
        finite = means.isfinite().all()
        self.lecam_updates += finite
        # Corrects the bias of starting at 0: after one update the average is that batch's mean.
        decay = self.config.lecam_decay
        rate = finite * (1 - decay) / (1 - decay ** self.lecam_updates.clamp_min(1))
        means = means.nan_to_num(0.0, 0.0, 0.0).to(self.lecam_real.dtype)
        self.lecam_real.lerp_(means[0], rate.to(means.dtype))
        self.lecam_fake.lerp_(means[1], rate.to(means.dtype))
