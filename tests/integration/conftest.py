"""What several tests of the scripts start from: a saved autoencoder, and folders of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.media import write_video


@pytest.fixture(scope="session")
def autoencoder(build_autoencoder: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """A saved model of 4 x 16 x 16 with weights away from special values."""
    folder = tmp_path_factory.mktemp("model") / "autoencoder"
    build_autoencoder(
        num_frames=4, height=16, width=16, patch_size=(1, 4, 4), query_layers=2,
        structure_base_channels=8, structure_channels=3, structure_downsamples=1,
        dynamics_downsamples=1, jitter=0.2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def write_clips() -> Callable[..., Path]:
    """Writes a folder of moving shapes: clip00.mp4 and so on."""

    def write(
        folder: Path,
        lengths: Sequence[int],
        *,
        size: tuple[int, int] = (24, 32),
        bad: str | None = None,
        captions: bool = False,
    ) -> Path:
        """The folder.

        Args:
            lengths: frames of each clip.
            size: H, W of all.
            bad: name of one more file, which is no video.
            captions: whether each clip's caption lies beside it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        height, width = size
        shapes = MovingShapes(ShapesConfig(num_frames=max(lengths), height=height, width=width))
        for index, length in enumerate(lengths):
            clip = shapes.clip(index)
            write_video(folder / f"clip{index:02d}.mp4", clip.video[:length], 8.0)
            if captions:
                (folder / f"clip{index:02d}.txt").write_text(clip.caption)
        if bad is not None:
            (folder / bad).write_text("not a video")
        return folder

    return write
