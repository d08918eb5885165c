"""Dynamics as a robot learner uses them: a vector for each clip, and what it knows of the motors.

    pip install -e ".[all,physics]"
    python examples/robot_actions.py --autoencoder outputs/physics_paired/autoencoder_ema

Simulates arms, encodes each clip into one vector, reads the joints' velocities off it by linear
regression, and lets the motion of one arm be done by another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vidtwin import load_autoencoder
from vidtwin.data import DataConfig, PhysicsOptions, build_dataset
from vidtwin.media import to_uint8, write_video


def main() -> None:
    """Encodes, regresses, swaps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--autoencoder", default="outputs/physics_paired/autoencoder_ema")
    parser.add_argument("--clips", type=int, default=1000, help="a fifth of them for testing")
    parser.add_argument("--output", type=Path, default=Path("outputs/robot_actions"))
    arguments = parser.parse_args()

    model, _ = load_autoencoder(arguments.autoencoder)
    sizes = model.sizes
    options = PhysicsOptions(scenes=("arm",), size=arguments.clips, camera_range=0.3, looks="seen")
    data = DataConfig(source="physics", part="validation", sections={"physics": options})
    dataset = build_dataset(data.sized(sizes.num_frames, sizes.height, sizes.width))

    vectors, velocities = [], []
    moving = [name.endswith("velocity") for name in dataset.state_names]
    for index in range(len(dataset)):
        sample = dataset[index]
        with torch.no_grad():  # (1, N), the posterior's mode
            vectors.append(model.encode_dynamics(sample["video"][None])[0].numpy())
        velocities.append(sample["states"].numpy()[:, moving].ravel())  # (T * joints,)
    x, y = np.stack(vectors), np.stack(velocities)

    train = len(x) * 4 // 5
    mean, spread = x[:train].mean(0), x[:train].std(0) + 1e-6
    x, center = (x - mean) / spread, y[:train].mean(0)
    ridge = x[:train].T @ x[:train] + 0.1 * train * np.eye(x.shape[1])
    weights = np.linalg.solve(ridge, x[:train].T @ (y[:train] - center))
    error = np.square(x[train:] @ weights + center - y[train:]).sum()
    r_squared = 1 - error / np.square(y[train:] - y[train:].mean(0)).sum()
    told = f"R² of the joints' velocities on {len(x) - train} clips: {r_squared:.3f}"
    print(f"{x.shape[1]} values; {told}")

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
