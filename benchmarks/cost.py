"""What a transformer costs on the latents of different video tokenizers (VidTwin, Fig. 5).

    python benchmarks/cost.py --output docs/results

One clip of 16 frames of 224 x 224, batch 1, patches of 2 in every dimension (an odd axis is
padded), and the transformer of appendix C.2: 6 layers, 8 heads, 512 wide, feed-forward 2,048. The
shapes of other tokenizers' latents are what diffusers' classes give with their default configs.
Everything is counted on fake tensors, without weights or data; --check also runs one row for real.
Writes cost.json, .csv, .md and .png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vidtwin import AutoencoderConfig
from vidtwin_lab import runtime
from vidtwin_lab.evaluation.report import (
    COLORS,
    Report,
    markdown_table,
    new_figure,
    save_figure,
    write_report,
)

LAYERS, HEADS, WIDTH, FEED_FORWARD = 6, 8, 512, 2048
FRAMES, SIZE, PATCH = 16, 224, 2
CLASSES = (
    "AutoencoderKLCogVideoX",
    "AutoencoderKLWan",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLHunyuanVideo15",
    "AutoencoderKLMochi",
    "AutoencoderKLAllegro",
    "AutoencoderKLCosmos",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLLTX2Video",
)
aten = torch.ops.aten
# The counter knows attention's kernels of GPUs alone: those of CPUs -> those that it knows.
KERNELS = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}
# A baseline of the paper, made anew by its authors: the shape follows from its rate of 0.65 %.
MAGVIT_V2 = (4, 5, 28, 28)
Shapes = Sequence[tuple[int, int, int, int]]  # (C, T, H, W) of each latent


class Transformer(nn.Module):
    """Patches of each latent, one linear map for each, and layers over the joint tokens.

    The paper's 12,610,560 parameters are exactly the feed-forwards and norms of these layers: with
    the projections of their attention they are 18,914,304, as counted here.
    """

    def __init__(self, latents: Shapes) -> None:
        super().__init__()
        self.patches = [patch_of(shape) for shape in latents]
        self.embeddings = nn.ModuleList(
            nn.Linear(shape[0] * math.prod(patch), WIDTH)
            for shape, patch in zip(latents, self.patches, strict=True)
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, FEED_FORWARD, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """(B, C, T, H, W) of each latent to (B, N, WIDTH)."""
        embedded = [
            embedding(patchify(latent, patch))
            for embedding, latent, patch in zip(self.embeddings, latents, self.patches, strict=True)
        ]
        tokens = torch.cat(embedded, dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


def patch_of(shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    """(t, h, w) of a patch: 2 in every dimension that has more than one value."""
    return tuple(min(PATCH, size) for size in shape[1:])


def patchify(latent: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, T, H, W) to (B, N, C t h w); axes that the patch doesn't divide are padded."""
    padding = [(-size % part) for size, part in zip(latent.shape[2:], patch, strict=True)]
    latent = nn.functional.pad(latent, [n for pad in reversed(padding) for n in (0, pad)])
    for axis, part in enumerate(patch):
        latent = latent.unfold(2 + axis, part, part)  # (B, C, T/t, H/h, W/w, t, h, w)
    return latent.movedim(1, -1).flatten(4).flatten(1, 3)


def vidtwin_latents(structure_channels: int) -> Shapes:
    """VidTwin's: the structure is a video, both dynamics are one frame (D.3)."""
    sizes = AutoencoderConfig(structure_channels=structure_channels)
    channels, frames, width = sizes.dynamics_x_shape
    both = width + sizes.dynamics_y_shape[2]
    return [sizes.structure_shape, (channels, 1, frames, both)]


def tokenizer_latents(name: str) -> tuple[int, Shapes]:
    """(frames, latents) of a class of diffusers: 17 frames where 16 are not taken (1 + 4 n)."""
    import diffusers

    reasons, tokenizer = [], getattr(diffusers, name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = tokenizer().eval()
        if name == "AutoencoderKLAllegro":
            model.enable_tiling()  # it encodes in no other way
        for frames in (FRAMES, FRAMES + 1):
            try:
                found = model.encode(torch.zeros(1, 3, frames, SIZE, SIZE)).latent_dist.mode()
            except (RuntimeError, ValueError) as error:
                reasons.append(f"{frames} frames: {error}")
                continue
            return frames, [tuple(found.shape[1:])]
    raise ValueError(f"{name} encodes no clip of {SIZE} x {SIZE}: {'; '.join(reasons)}")


@contextmanager
def counted_activations() -> Iterator[dict[int, int]]:
    """Bytes of every storage that is kept for the backward pass, by its identity."""
    kept: dict[int, int] = {}
    alive = []  # so that no identity is used twice

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not is_view_of_parameter(tensor):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def is_view_of_parameter(tensor: Tensor) -> bool:
    """Whether it is a parameter seen otherwise, such as transposed."""
    return isinstance(tensor._base, nn.Parameter)


def costs(latents: Shapes, *, real: bool = False) -> dict[str, Any]:
    """Tokens, parameters, FLOPs (a multiplication and an addition are 2) and bytes of training.

    Args:
        real: on real tensors, with the bytes that the allocator says the forward pass left.
    """
    mode: Any = FakeTensorMode() if not real else torch.random.fork_rng()
    with mode:
        model = Transformer(latents)
        inputs = [torch.randn(1, *shape) for shape in latents]
        counter = FlopCounterMode(display=False)
        counter.flop_registry |= {
            own: counter.flop_registry[known] for own, known in KERNELS.items()
        }
        with counter, counted_activations() as kept:
            loss = model(inputs).square().mean()
            forward = counter.get_total_flops()
            loss.backward()
            total = counter.get_total_flops()
        parameters = sum(p.numel() for p in model.parameters())
        row = {
            "tokens": sum(tokens_of(shape) for shape in latents),
            "parameters": parameters,
            "forward_flops": forward,
            "training_flops": total,
            "activation_bytes": sum(kept.values()),
            # Float32 weights, their gradients, and the two moments of Adam.
            "training_bytes": sum(kept.values()) + 4 * 4 * parameters,
        }
        if real:
            row["measured_activation_bytes"] = left_by_forward(model, inputs)
    return row


def left_by_forward(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Bytes that a forward pass allocated and did not free, as the allocator counts them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = model(inputs).square().mean()
    del kept
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def tokens_of(shape: tuple[int, int, int, int]) -> int:
    """N of a latent."""
    pairs = zip(shape[1:], patch_of(shape), strict=True)
    return math.prod(math.ceil(size / part) for size, part in pairs)


def measure() -> Iterator[dict[str, Any]]:
    """A row for each tokenizer."""
    own = {"VidTwin, paper": 4, "VidTwin, official": 8}
    found = [(name, FRAMES, vidtwin_latents(channels)) for name, channels in own.items()]
    found.append(("MAGVIT-v2, by its rate", FRAMES, [MAGVIT_V2]))
    found += [(name.removeprefix("AutoencoderKL"), *tokenizer_latents(name)) for name in CLASSES]
    for name, frames, latents in found:
        yield {
            "tokenizer": name,
            "frames": frames,
            "latents": " + ".join(" x ".join(map(str, shape)) for shape in latents),
            "values": sum(math.prod(shape) for shape in latents),
            **costs(latents),
        }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, beside how often VidTwin's (paper) they are."""
    first = rows[0]
    return markdown_table(
        [
            [
                ("tokenizer", row["tokenizer"]),
                ("frames", str(row["frames"])),
                ("latents (C x T x H x W)", row["latents"]),
                ("values", f"{row['values']:,}"),
                ("tokens", f"{row['tokens']:,}"),
                ("GFLOPs, forward", f"{row['forward_flops'] / 1e9:.2f}"),
                ("x", f"{row['forward_flops'] / first['forward_flops']:.2f}"),
                ("activations, MiB", f"{row['activation_bytes'] / 2**20:.1f}"),
                ("x ", f"{row['activation_bytes'] / first['activation_bytes']:.2f}"),
                ("training, MiB", f"{row['training_bytes'] / 2**20:.1f}"),
            ]
            for row in rows
        ]
    )


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """FLOPs and memory of each row as bars."""
    figure, panels = new_figure(1, 2, size=(4.2, 3.4))
    names = [row["tokenizer"] for row in rows]
    bars = (
        ("GFLOPs of a forward pass", "forward_flops", 1e9),
        ("activations of a training step, MiB", "activation_bytes", 2**20),
    )
    for panel, (title, key, unit) in zip(panels, bars, strict=True):
        colors = [COLORS[0] if name.startswith("VidTwin") else COLORS[1] for name in names]
        panel.barh(names, [row[key] / unit for row in rows], color=colors)
        panel.invert_yaxis()
        panel.set_title(title)
    panels[1].set_yticklabels([])
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--check", action="store_true", help="also run VidTwin's row for real")
    arguments = parser.parse_args()
    rows = list(measure())
    checked = costs(vidtwin_latents(4), real=True) if arguments.check else None
    report = Report(
        name="cost",
        protocol={
            "clip": [3, FRAMES, SIZE, SIZE],
            "patch": PATCH,
            "batch_size": 1,
            "dtype": "float32",
            "transformer": {
                "layers": LAYERS,
                "heads": HEADS,
                "width": WIDTH,
                "feed_forward": FEED_FORWARD,
            },
            "counted": "torch.utils.flop_counter, tensors saved for backward, on fake tensors",
            "checked": checked,
        },
        found={row["tokenizer"]: row for row in rows},
        rows=rows,
        draw=lambda path: draw(rows, path),
    )
    files = write_report(report, arguments.output)
    text = table(rows)
    files[0].with_suffix(".md").write_text(text, encoding="utf-8")
    print(text, end="")
    if checked is not None:
        print({key: f"{value:,}" for key, value in checked.items()})


if __name__ == "__main__":
    runtime.run_main(main)
