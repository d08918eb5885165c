"""The encoder as one graph, for those who run it without this library.

Axes: B batch, C channels, T frames, H W pixels, N values of the dynamics.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vidtwin.autoencoder import VidTwinAutoencoder
from vidtwin.files import written_whole

__all__ = ["DynamicsEncoderGraph", "export_onnx", "export_program"]


class DynamicsEncoderGraph(nn.Module):
    """`VidTwinAutoencoder.encode_dynamics` at the posterior's mode, with the weights it needs."""

    def __init__(self, autoencoder: VidTwinAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) in [-1, 1] to (B, N)."""
        return self.autoencoder.encode_dynamics(video)


def export_program(autoencoder: VidTwinAutoencoder) -> torch.export.ExportedProgram:
    """The encoder of dynamics as a program of PyTorch, for any batch size.

    `torch.export.save` writes it, `torch.export.load` reads it.
    """
    graph = DynamicsEncoderGraph(autoencoder).eval()
    parameter = next(graph.parameters())
    # Two clips: a batch of one would be taken for a constant.
    video = torch.zeros(2, *autoencoder.sizes.video_shape).to(parameter)
    with torch.no_grad():
        return torch.export.export(
            graph, (video,), dynamic_shapes={"video": {0: torch.export.Dim("batch")}}
        )


def export_onnx(autoencoder: VidTwinAutoencoder, path: str | Path) -> None:
    """Writes the encoder of dynamics as ONNX: input "video", output "vector", any batch size.

    Needs the packages onnx and onnxscript (the extra "onnx").
    """
    program = export_program(autoencoder)
    with written_whole(path) as partial:
        torch.onnx.export(
            program,
            f=str(partial),
            input_names=["video"],
            output_names=["vector"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
