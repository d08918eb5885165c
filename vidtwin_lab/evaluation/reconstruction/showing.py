"""The row of a table and the figure of a reconstruction's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtwin.data import DataConfig
from vidtwin_lab.evaluation.codec import formats_for
from vidtwin_lab.evaluation.reconstruction.config import ReconstructionConfig
from vidtwin_lab.evaluation.reconstruction.summary import codec_curve, mean_values
from vidtwin_lab.evaluation.report import COLORS, new_figure, save_figure


def cell(found: Mapping[str, Any] | None, digits: int, videos: int | None = None) -> str:
    """A value and its interval in a cell of a table, and n where it isn't all the videos."""
    if found is None or found["value"] is None:
        return "-"
    text = f"{found['value']:.{digits}f}"
    if found.get("low") is not None:
        text += f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
    return text if videos in (None, found["n"]) else f"{text}, n = {found['n']}"


def markdown_row(found: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The row for a table: one protocol, so tables of several rows compare like with like."""
    height, width = protocol["resolution"]
    pace = f"{protocol['fps']:g} fps" if protocol["fps"] else f"stride {protocol['stride']}"
    row = [
        ("model", protocol["checkpoint"]),
        ("videos", str(found["videos"])),
        ("windows", f"{found['windows']} of {protocol['frames']} x {height} x {width}, {pace}"),
        ("rate", f"{found['compression_rate']:.3%}"),
        ("PSNR", cell(found["both"]["psnr"], 2)),
        ("SSIM", cell(found["both"]["ssim"], 4)),
        ("LPIPS", cell(found["both"]["lpips"], 4)),
        ("PSNR structure only", cell(found["structure_only"]["psnr"], 2)),
        ("PSNR dynamics only", cell(found["dynamics_only"]["psnr"], 2)),
    ]
    if "rfvd" in found:
        row.append((found["rfvd"]["name"], cell(found["rfvd"], 1)))
    # One size in the row, the first that was asked for; the others are in the JSON.
    for name, quantized in list(found["quantized"].items())[:1]:
        size = name.replace("_", "-")
        row.append((f"PSNR {size}", cell(quantized["psnr"], 2)))
        row.append((f"bits per pixel {size}", f"{quantized['bits_per_pixel']['value']:.4f}"))
        for pixel_format, codec in found.get("h264", {}).items():
            at = codec["at_the_size_of"][name.replace("_", "")]
            column = f"PSNR H.264 {pixel_format} at that size"
            row.append((column, cell(at["psnr"], 2, found["videos"])))
    return row


def draw(
    videos: Sequence[Mapping[str, Any]], config: ReconstructionConfig, data: DataConfig, path: Path
) -> None:
    """Rate against PSNR and against SSIM, of the latents and of H.264; and PSNR video by video."""
    averages = mean_values(videos)
    metrics = [name for name in ("psnr", "ssim") if name in averages]
    has_rates = bool(config.bits) or config.codec is not None
    panels = metrics if has_rates else []
    figure, axes = new_figure(1, len(panels) + 1)
    for metric, panel in zip(panels, axes, strict=False):
        draw_rates(panel, averages, metric, config, data)
    panel = axes[-1]
    names = {"psnr": "structure and dynamics", "psnr_structure": "structure only"}
    names["psnr_dynamics"] = "dynamics only"
    order = sorted(range(len(videos)), key=lambda place: videos[place]["values"]["psnr"])
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        values = [videos[place]["values"][name] for place in order]
        panel.plot(range(1, len(order) + 1), values, color=color, label=label, marker=".", ms=3)
    panel.set(xlabel="videos, from worst to best", ylabel="PSNR (dB)", title="Each video")
    panel.legend(fontsize=7)
    save_figure(figure, path)


def draw_rates(
    panel: Any,
    averages: Mapping[str, float],
    metric: str,
    config: ReconstructionConfig,
    data: DataConfig,
) -> None:
    """One panel of rate and distortion, of the means over videos."""
    if config.codec is not None:
        for color, name in zip(
            COLORS[1:], formats_for(config.codec, data.height, data.width), strict=False
        ):
            curve = codec_curve(averages, config.codec, name)
            rates = [point["bpp"] for point in curve]
            qualities = [point[metric] for point in curve]
            panel.plot(rates, qualities, color=color, marker=".", label=f"H.264 {name}")
    for ending, marker, label in (("", "o", "latents"), ("_lzma", "s", "latents, LZMA")):
        rates = [averages[f"bpp_{bits}bit{ending}"] for bits in config.bits]
        qualities = [averages[f"{metric}_{bits}bit"] for bits in config.bits]
        if not rates:
            continue
        panel.plot(rates, qualities, color=COLORS[0], marker=marker, ms=4, ls=":", label=label)
        if ending:
            continue  # the same qualities: the labels of one of the two are enough
        for bits, rate, quality in zip(config.bits, rates, qualities, strict=True):
            panel.annotate(
                f"{bits} bit", (rate, quality), textcoords="offset points", xytext=(0, 6),
                fontsize=6,
            )  # fmt: skip
    label = {"psnr": "PSNR (dB)", "ssim": "SSIM"}[metric]
    panel.set(xscale="log", xlabel="bits per pixel", ylabel=label, title="Rate and quality")
    panel.legend(fontsize=7)
