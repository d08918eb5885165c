"""The dynamics as one vector: its order, its inverse, long videos, exported encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidtwin import VidTwinAutoencoder, VidTwinLatents
from vidtwin.exporting import export_onnx, export_program

Build = Callable[..., VidTwinAutoencoder]
Video = Callable[..., torch.Tensor]


def numbered(columns: int, rows: int, channels: int = 8, frames: int = 16) -> VidTwinLatents:
    """Two clips whose dynamics are all different numbers."""
    count = 2 * channels * frames
    numbers = torch.arange(count * (columns + rows), dtype=torch.float32)
    x, y = numbers.split((count * columns, count * rows))
    return VidTwinLatents(
        torch.zeros(2, 1, 1, 1, 1),
        x.reshape(2, channels, frames, columns),
        y.reshape(2, channels, frames, rows),
    )


def test_the_order_is_that_of_the_robot_learners() -> None:
    latents = numbered(7, 7)
    joint = torch.cat([latents.dynamics_x, latents.dynamics_y], dim=1)  # on the channel axis
    expected = joint.permute(0, 2, 3, 1).reshape(2, -1)
    assert expected.shape == (2, 1792)
    assert torch.equal(latents.to_vector(), expected)


@pytest.mark.parametrize(("columns", "rows"), [(7, 7), (5, 3), (2, 6)])
def test_a_vector_gives_its_dynamics_back(columns: int, rows: int) -> None:
    latents = numbered(columns, rows)
    vector = latents.to_vector()
    assert vector.unique().numel() == vector.numel()
    again = latents.map(torch.zeros_like).from_vector(vector)
    assert torch.equal(again.dynamics_x, latents.dynamics_x)
    assert torch.equal(again.dynamics_y, latents.dynamics_y)
    per_frame = vector.reshape(2, 16, -1)  # frames stay in order for every grid
    swapped = latents.map(lambda each: each.flip(2) if each.ndim == 4 else each).to_vector()
    assert torch.equal(swapped.reshape(2, 16, -1), per_frame.flip(1))
    with pytest.raises(ValueError, match=rf"\(B, {vector.shape[1]}\).*got \(2, 5\)"):
        latents.from_vector(vector[:, :5])


def test_encoding_and_decoding_are_those_of_the_latents(
    build_tiny: Build, random_video: Video
) -> None:
    model = build_tiny()
    video, other = random_video(model, 2), random_video(model, 2, seed=1)
    posterior = model.encode(video)
    vector = model.encode_dynamics(video)
    torch.testing.assert_close(vector, posterior.mode().to_vector())
    drawn = model.encode_dynamics(
        video, sample_posterior=True, generator=torch.Generator().manual_seed(4)
    )
    assert not torch.allclose(drawn, vector)
    swap = posterior.mode().with_structure(model.encode(other).mode())
    expected = model.decode(swap)
    torch.testing.assert_close(model.decode_dynamics(vector, structure_from=other), expected)
    latents = model.encode(other).mode()
    torch.testing.assert_close(model.decode_dynamics(vector, structure_from=latents), expected)
    one = model.decode_dynamics(vector, structure_from=other[:1])
    torch.testing.assert_close(one[:1], expected[:1])
    assert not torch.allclose(one[1:], expected[1:])


def test_a_single_frame_gives_the_structure(build_tiny: Build, random_video: Video) -> None:
    model = build_tiny(structure_frame=1)
    video, other = random_video(model, 1), random_video(model, 1, seed=1)
    vector = model.encode_dynamics(video)
    whole = model.decode_dynamics(vector, structure_from=other)
    torch.testing.assert_close(model.decode_dynamics(vector, other[:, :, 1:2]), whole)


def test_long_videos_are_encoded_window_by_window(build_tiny: Build, random_video: Video) -> None:
    model = build_tiny()
    frames = model.sizes.num_frames
    long = torch.cat([random_video(model, 2, seed=seed) for seed in range(3)], dim=2)
    vectors = model.encode_dynamics(long, stride=2, batch_size=3)
    starts = range(0, 3 * frames - frames + 1, 2)
    assert vectors.shape[:2] == (2, len(starts))
    for number, start in enumerate(starts):
        window = model.encode_dynamics(long[:, :, start : start + frames])
        torch.testing.assert_close(vectors[:, number], window)
    with pytest.raises(ValueError, match=rf"at least {frames} frames, got stride=1"):
        model.encode_dynamics(long[:, :, : frames - 1], stride=1)
    with pytest.raises(ValueError, match="expected a video of shape"):
        model.encode_dynamics(long)


def test_exported_encoders_give_the_same(
    build_tiny: Build, random_video: Video, tmp_path: Path
) -> None:
    model = build_tiny(encoder_depth=1, query_layers=1)
    video = random_video(model, 3)
    expected = model.encode_dynamics(video)
    torch.export.save(export_program(model), tmp_path / "encoder.pt2")
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    torch.testing.assert_close(program(video), expected)
    torch.testing.assert_close(program(video[:1]), expected[:1])


def test_onnx_gives_the_same(build_tiny: Build, random_video: Video, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="ONNX is written with onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX is run by onnxruntime")
    model = build_tiny(encoder_depth=1, query_layers=1)
    video = random_video(model, 3)
    expected = model.encode_dynamics(video)
    export_onnx(model, tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    for clips in (video, video[:1]):
        (vector,) = session.run(["vector"], {"video": clips.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(vector), expected[: len(clips)], atol=1e-4, rtol=1e-4
        )
