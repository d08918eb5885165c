"""Dynamics as a robot learner uses them: a vector for each clip, and what it knows of the motors.

    pip install -e ".[all,physics]"
    python examples/robot_actions.py

Simulates arms, encodes each clip into one vector, reads where the shoulder points off its frames by
linear regression, and lets the motion of one arm be done by another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vidtwin import load_autoencoder
from vidtwin.data import DataConfig, PhysicsOptions, build_dataset
from vidtwin.files import shipped_path
from vidtwin.media import to_uint8, write_video


def main() -> None:
    """Encodes, regresses, swaps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--autoencoder", default="checkpoints/physics")
    parser.add_argument("--clips", type=int, default=200, help="a fifth of them for testing")
    parser.add_argument("--output", type=Path, default=Path("outputs/robot_actions"))
    arguments = parser.parse_args()

    model, _ = load_autoencoder(shipped_path(arguments.autoencoder))
    sizes = model.sizes
    options = PhysicsOptions(scenes=("arm",), size=arguments.clips, camera_range=0.3, looks="seen")
    data = DataConfig(source="physics", part="validation", sections={"physics": options})
    dataset = build_dataset(data.sized(sizes.num_frames, sizes.height, sizes.width))

    frames, places = [], []  # of each frame of each clip
    seen = [index for index, name in enumerate(dataset.state_names) if "shoulder" in name][:2]
    for index in range(len(dataset)):
        sample = dataset[index]
        with torch.no_grad():  # (1, N), the posterior's mode; a frame's values lie together
            vector = model.encode_dynamics(sample["video"][None])
        frames.append(vector.reshape(sizes.num_frames, -1).numpy())
        places.append(sample["states"].numpy()[:, seen])  # sine and cosine of the shoulder
    train = len(frames) * 4 // 5
    x, y = np.concatenate(frames[:train]), np.concatenate(places[:train])
    held_out, truth = np.concatenate(frames[train:]), np.concatenate(places[train:])

    # Ridge regression, with a column of ones for the mean.
    x, held_out = (np.pad(each, ((0, 0), (0, 1)), constant_values=1.0) for each in (x, held_out))
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    error = np.square(held_out @ weights - truth).sum()
    r_squared = 1 - error / np.square(truth - truth.mean(0)).sum()
    told = f"R² of the shoulder's direction on {len(dataset) - train} clips: {r_squared:.3f}"
    print(f"{x.shape[1] - 1} values a frame; {told}")

    look, motion = dataset[train]["video"][None], dataset[train + 1]["video"][None]
    with torch.no_grad():
        swap = model.decode_dynamics(model.encode_dynamics(motion), structure_from=look)
    clips = [to_uint8(video[0].clamp(-1, 1)) for video in (look, motion, swap)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = write_video(
        arguments.output / "look_motion_swap.mp4", np.concatenate(clips, axis=2), 8.0
    )
    print(file)


if __name__ == "__main__":
    main()
