"""Where the tokens of the transformer lie.

Axes: Q structure queries, T frames, h w latent grid, N tokens, D width.
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from einops import repeat
from torch import Tensor

from diffusion.config import DiTConfig


def position_codes(config: DiTConfig) -> Tensor:
    """(N, D) fixed codes: half of D for the frame, a quarter for the row, a quarter for the column.

    A coordinate that a token does not have is zero there (dynamics_x has no row); the half of the
    frame is zero for structure tokens, whose queries have learned codes. Rows and columns are
    counted in the finest of the grids, so that a code means the same place in every latent.
    """
    width = config.hidden_size
    rows = max(config.structure_grid[1], config.dynamics_y_shape[2])
    columns = max(config.structure_grid[2], config.dynamics_x_shape[2])
    steps = config.dynamics_frames

    def codes(size: int, along: int, share: int) -> Tensor:
        """(along, D / share): of the centres of `along` cells that cover `size` units."""
        centers = (torch.arange(along, dtype=torch.float64) + 0.5) * (size / along) - 0.5
        table = get_1d_sincos_pos_embed_from_grid(width // share, centers, output_type="pt")
        return table.float()

    queries, height, wide = config.structure_grid
    row, column = codes(rows, height, 4), codes(columns, wide, 4)
    structure = torch.cat(
        [
            torch.zeros(queries * height * wide, width // 2),
            repeat(row, "h d -> (q h w) d", q=queries, w=wide),
            repeat(column, "w d -> (q h w) d", q=queries, h=height),
        ],
        dim=-1,
    )
    frame = codes(steps, steps, 2)
    axis_x = codes(columns, config.dynamics_x_shape[2], 4)
    axis_y = codes(rows, config.dynamics_y_shape[2], 4)
    dynamics = []
    for axis, slot in ((axis_x, 1), (axis_y, 0)):
        places = repeat(axis, "n d -> (t n) d", t=steps)
        quarters = [torch.zeros_like(places), torch.zeros_like(places)]
        quarters[slot] = places
        frames = repeat(frame, "t d -> (t n) d", n=len(axis))
        dynamics.append(torch.cat([frames, *quarters], dim=-1))
    return torch.cat([structure, *dynamics])
