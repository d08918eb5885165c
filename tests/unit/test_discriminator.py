"""The PatchGANs: shapes, names, norms, and independence where there should be some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vidtwin.discriminator import DiscriminatorConfig, PatchDiscriminator, SynchronizedBatchNorm

# Names in released checkpoints: loss.discriminator.<name>. They may not change.
RELEASED_SHAPES = {
    "main.0.weight": (64, 3, 4, 4),
    "main.0.bias": (64,),
    "main.2.weight": (128, 64, 4, 4),
    "main.5.weight": (256, 128, 4, 4),
    "main.8.weight": (512, 256, 4, 4),
    "main.11.weight": (1, 512, 4, 4),
    "main.11.bias": (1,),
} | {
    f"main.{layer}.{name}": () if name == "num_batches_tracked" else (width,)
    for layer, width in ((3, 128), (6, 256), (9, 512))
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny(**keywords) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(DiscriminatorConfig(channels=4, layers=2, **keywords))


def test_default_has_the_released_names_and_shapes() -> None:
    state = PatchDiscriminator().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == RELEASED_SHAPES
    trained = sum(parameter.numel() for parameter in PatchDiscriminator().parameters())
    assert trained == 2_765_633


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("kind", "shape"), [("2d", (5, 4, 2)), ("3d", (2, 4, 2))])
def test_every_parameter_gets_a_finite_gradient(
    kind: str, norm: str, shape: tuple[int, int, int]
) -> None:
    discriminator = tiny(kind=kind, norm=norm)
    logits = discriminator(clips(2, 3, 5, 24, 16))
    assert logits.shape == (2, 1, *shape)
    logits.square().mean().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("frames", [1, 2, 3, 16])
def test_3d_takes_any_number_of_frames(frames: int) -> None:
    logits = tiny(kind="3d")(clips(1, 3, frames, 12, 12))
    assert logits.shape == (1, 1, -(-frames // 4), 1, 1)


def test_2d_judges_frames_alone_and_3d_together() -> None:
    video = clips(1, 3, 4, 12, 12)
    changed = video.clone()
    changed[:, :, 3] = 0
    flat, deep = tiny(norm="none"), tiny(kind="3d", norm="none")
    assert torch.equal(flat(video)[:, :, :3], flat(changed)[:, :, :3])
    assert not torch.equal(flat(video)[:, :, 3], flat(changed)[:, :, 3])
    assert not torch.equal(deep(video)[:, :, 0], deep(changed)[:, :, 0])


@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_norm_videos_are_independent(norm: str) -> None:
    discriminator = tiny(norm=norm)
    video = clips(2, 3, 2, 12, 12)
    alone = torch.cat([discriminator(video[:1]), discriminator(video[1:])])
    assert torch.allclose(discriminator(video), alone, atol=1e-6)


@pytest.mark.parametrize(("norm", "groups"), [("group", [4, 8]), ("batch", [None, None])])
def test_positions_in_main_do_not_depend_on_the_norm(norm: str, groups: list) -> None:
    discriminator = tiny(norm=norm)
    assert [getattr(discriminator.main[i], "num_groups", None) for i in (3, 6)] == groups
    assert isinstance(discriminator.main[8], nn.Conv2d)


@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (3, 4, 2, 5, 5)])
def test_batch_norm_is_torch_batch_norm_in_one_process(shape: tuple[int, ...]) -> None:
    ours = SynchronizedBatchNorm(4)
    theirs = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm3d)(4)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    values = clips(*shape)
    assert torch.equal(ours(values), theirs(values))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    assert torch.equal(ours.eval()(values), theirs.eval()(values))


def test_bfloat16_autocast_stays_close() -> None:
    discriminator, video = tiny(), clips(2, 3, 2, 24, 24)
    exact = discriminator(video)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = discriminator(video)
    assert coarse.dtype == torch.bfloat16
    assert torch.allclose(
        coarse.float(), exact, atol=0.02 * float(exact.detach().abs().max()) + 0.02
    )


def test_save_and_load_are_equal(tmp_path) -> None:
    discriminator, other = tiny(), tiny(kind="2d")
    torch.save(discriminator.state_dict(), tmp_path / "d.pt")
    torch.nn.init.zeros_(next(other.parameters()))
    other.load_state_dict(torch.load(tmp_path / "d.pt", weights_only=True), strict=True)
    video = clips(1, 3, 2, 12, 12)
    assert torch.equal(discriminator.eval()(video), other.eval()(video))


def test_bad_input_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match="at least 12 pixels, got 8x16; set fewer"):
        tiny()(torch.zeros(1, 3, 2, 8, 16))
    with pytest.raises(ValueError, match=r"expects \(B, 3, T, H, W\), got \(1, 3, 16, 16\)"):
        tiny()(torch.zeros(1, 3, 16, 16))
    smallest = tiny().minimum_size
    assert tiny()(torch.zeros(1, 3, 1, smallest, smallest)).numel() == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kind": "4d"}, "kind must be one of .*got '4d'"),
        ({"norm": "layer"}, "norm must be one of .*got 'layer'"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_bad_config_is_refused(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**keywords)
