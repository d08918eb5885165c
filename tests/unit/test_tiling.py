"""Laws of the tiling: what goes in comes out, every tile is seen once, memory stays flat."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from vidtwin.latents import VidTwinLatents
from vidtwin.tiling import (
    Layout,
    decode_windows,
    encode_windows,
    iter_decode_windows,
    iter_encode_windows,
    tile_starts,
    tiled_reconstruct,
)

WINDOW = (5, 8, 12)


@dataclass
class Identity:
    """A model of one size whose latents are its input, and which counts what it sees."""

    window: tuple[int, int, int] = WINDOW
    batches: list[int] = field(default_factory=list)
    decoded: int = 0

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(
            num_frames=self.window[0], height=self.window[1], width=self.window[2]
        )

    def parameters(self):
        return iter(())

    def encode(self, video: torch.Tensor) -> SimpleNamespace:
        assert tuple(video.shape[2:]) == self.window
        self.batches.append(video.shape[0])
        latents = VidTwinLatents(video, video + 1, video + 2)
        return SimpleNamespace(mode=lambda: latents)

    def decode(self, latents: VidTwinLatents, part: str = "both") -> torch.Tensor:
        self.decoded += latents.batch_size
        index = {"both": 0, "structure": 1, "dynamics": 2}
        return latents.tensors()[index[part]].clone()


class Constant(Identity):
    """Gives tile k of the video the value k everywhere: the blending weights become visible."""

    def decode(self, latents: VidTwinLatents, part: str = "both") -> torch.Tensor:
        first = self.decoded
        self.decoded += latents.batch_size
        values = torch.arange(first, self.decoded, dtype=latents.structure.dtype)
        return torch.ones_like(latents.structure) * values.reshape(-1, 1, 1, 1, 1)


def random_video(*sizes: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, *sizes, generator=generator) * 2 - 1


@pytest.mark.parametrize("overlap", [(0, 0, 0), (1, 3, 5), (4, 7, 11), (2, 0, 9), None])
@pytest.mark.parametrize(
    "sizes",
    [
        (5, 8, 12),  # the window itself
        (1, 1, 1),
        (3, 5, 7),  # smaller everywhere
        (2, 8, 31),
        (6, 9, 13),  # one more
        (10, 16, 24),  # whole windows
        (23, 11, 17),
        (7, 29, 3),
        (13, 37, 41),
    ],
)
def test_a_model_that_returns_its_input_gives_it_back_exactly(sizes, overlap) -> None:
    video = random_video(*sizes, batch=2)
    model = Identity()
    assert torch.equal(tiled_reconstruct(model, video, overlap, tile_batch_size=3), video)

    overlap = Layout.of_model(model, overlap).overlap
    counts = [
        len(tile_starts(size, window, shared))
        for size, window, shared in zip(sizes, WINDOW, overlap, strict=True)
    ]
    tiles = counts[0] * counts[1] * counts[2]
    assert sum(model.batches) == model.decoded == 2 * tiles, "every tile is seen exactly once"
    assert max(model.batches) <= 2 * 3, "at most tile_batch_size tiles, each of two videos"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_exact_in_other_dtypes(dtype) -> None:
    video = random_video(11, 19, 23).to(dtype)
    out = tiled_reconstruct(Identity(), video, (2, 3, 4))
    assert out.dtype == dtype
    assert torch.equal(out, video)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_streamed_chunks_give_the_same_as_the_whole(chunk) -> None:
    video = random_video(23, 11, 17)
    out = list(tiled_reconstruct(Identity(), video.split(chunk, dim=2), (2, 3, 4)))
    assert torch.equal(torch.cat(out, dim=2), video)
    assert all(piece.shape[2] > 0 for piece in out)


def test_streaming_lags_the_input_by_a_window_and_two_strides_at_most() -> None:
    lead, read = [], 0

    def chunks():
        nonlocal read
        for _ in range(200):
            read += 1
            yield torch.zeros(1, 3, 1, 8, 12)

    written = 0
    for piece in tiled_reconstruct(Identity(), chunks(), (2, 0, 0)):
        lead.append(read - written)
        written += piece.shape[2]
    assert written == read == 200
    assert max(lead) <= WINDOW[0] + 2 * (WINDOW[0] - 2)


def test_frames_are_final_in_order_of_time() -> None:
    video = random_video(17, 8, 12)
    done = 0
    for piece in tiled_reconstruct(Identity(), iter(video.split(1, dim=2)), (3, 0, 0)):
        assert torch.equal(piece, video[:, :, done : done + piece.shape[2]])
        done += piece.shape[2]
    assert done == 17


def test_blending_is_linear_in_each_axis() -> None:
    # Two windows in time that share three frames: 0 before, 1 after, and quarters between.
    video = torch.zeros(1, 3, 7, 8, 12)
    out = tiled_reconstruct(Constant(), video, (3, 0, 0))
    expected = torch.tensor([0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert torch.equal(out[0, 0, :, 0, 0], expected)
    assert torch.equal(out[0, 2, :, 7, 11], expected)

    out = tiled_reconstruct(Constant(), torch.zeros(1, 3, 5, 8, 21), (0, 0, 3))
    expected = torch.tensor([0.0] * 9 + [0.25, 0.5, 0.75] + [1.0] * 9)
    assert torch.equal(out[0, 0, 0, 0], expected)

    out = tiled_reconstruct(Constant(), torch.zeros(1, 3, 5, 13, 12), (0, 3, 0))
    expected = torch.tensor([0.0] * 5 + [0.25, 0.5, 0.75] + [1.0] * 5)
    assert torch.equal(out[0, 0, 0, :, 0], expected)


def test_blend_stays_between_the_tiles() -> None:
    model = Constant()
    out = tiled_reconstruct(model, torch.zeros(1, 3, 13, 19, 29), (4, 7, 11))
    assert out[0, 0, 0, 0, 0] == 0
    assert out[0, 0, -1, -1, -1] == model.decoded - 1
    assert out.min() == 0
    assert out.max() == model.decoded - 1


@pytest.mark.parametrize(
    ("size", "window", "overlap", "starts"),
    [
        (1, 16, 4, [0]),
        (16, 16, 4, [0]),
        (17, 16, 4, [0, 1]),
        (28, 16, 4, [0, 12]),
        (29, 16, 4, [0, 12, 13]),
        (32, 16, 0, [0, 16]),
        (20, 4, 3, list(range(17))),
    ],
)
def test_starts(size, window, overlap, starts) -> None:
    assert tile_starts(size, window, overlap) == starts


def test_last_window_is_shifted_back_in_streams_too() -> None:
    windows = encode_windows(Identity(), random_video(12, 8, 12), (1, 0, 0))
    assert [window.start[0] for window in windows] == tile_starts(12, 5, 1) == [0, 4, 7]


def test_short_axes_are_mirrored() -> None:
    seen = []

    class Spy(Identity):
        def encode(self, video):
            seen.append(video)
            return super().encode(video)

    video = random_video(3, 1, 12)
    out = tiled_reconstruct(Spy(), video, (0, 0, 0))
    assert torch.equal(out, video)
    (tile,) = seen
    assert torch.equal(tile[:, :, :, 0], video[:, :, [0, 1, 2, 1, 0], 0])
    assert torch.equal(tile[:, :, :, 7], tile[:, :, :, 0])


def test_windows_travel_as_a_list() -> None:
    model, video = Identity(), random_video(9, 11, 31, batch=2)
    windows = encode_windows(model, video, (2, 3, 4), tile_batch_size=5)
    assert [w.start for w in windows] == sorted(w.start for w in windows)
    assert all(w.latents.batch_size == 2 for w in windows)
    assert torch.equal(decode_windows(model, windows), video)
    assert torch.equal(decode_windows(model, windows[::-1], tile_batch_size=4), video)
    assert torch.allclose(decode_windows(model, windows, part="structure"), video + 1)
    assert torch.allclose(tiled_reconstruct(model, video, part="dynamics"), video + 2)
    low = decode_windows(model, windows, dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16


def test_window_covers_what_it_says() -> None:
    video = random_video(3, 11, 31)
    for window in encode_windows(Identity(), video, (0, 3, 4)):
        (t, y, x), (frames, rows, columns) = window.start, window.size
        assert torch.equal(
            window.latents.structure[:, :, :frames, :rows, :columns],
            video[:, :, t : t + frames, y : y + rows, x : x + columns],
        )


def test_missing_windows_are_an_error() -> None:
    model = Identity()
    windows = encode_windows(model, random_video(15, 16, 36), (0, 0, 0))
    last_of_a_row, middle_of_a_row, first = windows[2], windows[1], windows[0]
    for missing in (last_of_a_row, middle_of_a_row, first):
        with pytest.raises(ValueError, match="windows are missing"):
            decode_windows(model, [w for w in windows if w is not missing])
    with pytest.raises(ValueError, match="windows are missing"):
        decode_windows(model, [w for w in windows if w.start[0] != 5])
    with pytest.raises(ValueError, match="no windows to decode"):
        decode_windows(model, [])
    with pytest.raises(ValueError, match="out of order"):
        list(iter_decode_windows(model, windows[:6] * 2))
    with pytest.raises(ValueError, match="the first one starts at 5, not at 0"):
        list(iter_decode_windows(model, windows[6:]))


@pytest.mark.parametrize(
    ("overlap", "message"),
    [
        ((5, 0, 0), "`tile_overlap` in frames must be from 0 to 4 .* got 5"),
        ((0, 8, 0), "in rows must be from 0 to 7"),
        ((0, 0, -1), "in columns must be from 0 to 11 .* got -1"),
        ((1, 2), "three numbers"),
    ],
)
def test_bad_overlap(overlap, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiled_reconstruct(Identity(), random_video(5, 8, 12), overlap)


def test_bad_input() -> None:
    model = Identity()
    with pytest.raises(ValueError, match="`tile_batch_size` must be at least 1, got 0"):
        tiled_reconstruct(model, random_video(5, 8, 12), tile_batch_size=0)
    with pytest.raises(ValueError, match="tile_batch_size"):
        iter_encode_windows(model, [], tile_batch_size=0)
    with pytest.raises(ValueError, match=r"expected a float video \(B, C, T, H, W\)"):
        tiled_reconstruct(model, random_video(5, 8, 12)[0])
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        tiled_reconstruct(model, torch.zeros(1, 3, 5, 8, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no frames"):
        tiled_reconstruct(model, random_video(0, 8, 12))
    with pytest.raises(ValueError, match="no frames"):
        list(tiled_reconstruct(model, iter(())))
    with pytest.raises(ValueError, match="the chunk at frame 2 has shape"):
        list(tiled_reconstruct(model, [random_video(2, 8, 12), random_video(2, 8, 13)]))


def test_gradients_are_not_recorded() -> None:
    video = random_video(5, 8, 12).requires_grad_()
    windows = encode_windows(Identity(), video.detach())
    assert not decode_windows(Identity(), windows).requires_grad
