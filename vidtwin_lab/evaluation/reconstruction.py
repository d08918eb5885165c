"""How well an autoencoder reconstructs videos, at what rate, beside H.264 at the same rate and a
cosine transform of as many numbers.

Each window of T frames is measured by itself; a video's value is the mean over its windows, the
data set's value the mean over its videos. Posteriors are taken at their mode: nothing is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from vidtwin import VidTwinAutoencoder
from vidtwin.data import BadFileLog, DataConfig, SkippedFile, VideoDataset, build_dataset
from vidtwin.media import contact_sheet
from vidtwin.metrics import SSIM_WINDOW
from vidtwin.reconstruction import load_autoencoder, weights_digest
from vidtwin_lab.evaluation.codec import check_encoder, formats_for
from vidtwin_lab.evaluation.features import load_features
from vidtwin_lab.evaluation.intervals import interval_text
from vidtwin_lab.evaluation.measurement_configs import ReconstructionConfig
from vidtwin_lab.evaluation.reconstruction_windows import (
    Metrics,
    WindowMeter,
    add_codec_at_rates,
    codec_curve,
    mean_values,
    measure_distance,
    pixels_of,
    plain_row,
    rows_of_videos,
    summarize,
)
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    data_protocol,
    fields_of,
    merge_skipped,
    model_protocol,
    new_figure,
    save_figure,
    software_protocol,
)
from vidtwin_lab.evaluation.windows import Window, iterate_windows, list_windows

__all__ = ["describe", "measure"]

EXAMPLES_SHOWN = 4


def prepare(config: ReconstructionConfig) -> tuple[VidTwinAutoencoder, Path, VideoDataset]:
    """The model, its folder and the videos; checks what can be checked before the work.

    Raises:
        ValueError: if the model or the data set can't be used, or something is not installed.
    """
    if config.codec is not None or config.reencode is not None:
        check_encoder()
    model, found = load_autoencoder(config.autoencoder)
    dataset = build_dataset(config.data_for(model.sizes))
    return model.float().eval(), found, dataset


def describe(config: ReconstructionConfig) -> dict[str, Any]:
    """What would be measured: sizes, counts and the protocol that is known beforehand."""
    model, found, dataset = prepare(config)
    sizes = model.sizes
    codec = config.codec
    if config.features is not None and not config.features.download:
        load_features(config.features)  # says how to get it where it isn't there
    return {
        "autoencoder": str(found),
        "weights_digest": weights_digest(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "videos": len(dataset),
        "windows": "one of each video" if config.windows == "one" else "all without overlap",
        "window": list(sizes.video_shape[1:]),
        "latent_values": sizes.numel_per_clip,
        "compression_rate": sizes.compression_rate,
        "bits_per_pixel": {
            f"{bits}_bit": (sizes.numel_per_clip * bits + range_bits(model)) / pixels_of(model)
            for bits in config.bits
        },
        "metrics": metrics_of(config, sizes.height, sizes.width),
        "h264": codec
        and {"crfs": codec.crfs, "pixel_formats": formats_for(codec, sizes.height, sizes.width)},
        "reencode": config.reencode,
        "features": config.features and config.features.name,
    }


def metrics_of(config: ReconstructionConfig, height: int, width: int) -> list[str]:
    """The metrics that frames of this size can have."""
    return [
        "psnr",
        *(["ssim"] if min(height, width) >= SSIM_WINDOW else []),
        *([f"lpips ({config.lpips}), if its weights can be had"] if config.lpips else []),
    ]


def range_bits(model: VidTwinAutoencoder) -> int:
    """Bits that the ranges of the quantised channels take, see `codec.quantize`."""
    sizes = model.sizes
    return 64 * (sizes.structure_channels + 2 * sizes.dynamics_channels)


def measure(config: ReconstructionConfig, processes: Processes) -> Report:
    """Measures an autoencoder; every process takes part, each gets the whole report.

    Raises:
        ValueError: for input that can't be used.
        TooManyBadFiles: when more than `data.max_bad_fraction` of the files can't be used.
    """
    model, _, dataset = prepare(config)
    nn.Module.to(model, processes.device).requires_grad_(False)
    extractor = None
    if config.features is not None:
        load = partial(load_features, config.features, processes.device)
        extractor = processes.main_first(load)
    metrics = Metrics(config, model, processes.device)
    windows, skipped = list_windows(dataset, config.windows, processes)
    meter = WindowMeter(config, model, metrics, extractor, places_to_show(windows))
    rows, unread = measure_windows(meter, dataset, windows, processes)
    skipped += [SkippedFile(*item) for item in unread]
    BadFileLog(len(dataset), dataset.config.max_bad_fraction).add(skipped)
    if not rows:
        raise ValueError("no video could be used: each was skipped, for the reasons above")
    videos = rows_of_videos(rows)
    add_codec_at_rates(videos, config, dataset.config)
    found: dict[str, Any] = {
        "videos": len(videos),
        "windows": len(rows),
        "compression_rate": model.compression_rate,
        **summarize(videos, config, dataset.config),
        "not_measured": metrics.reasons,
    }
    if extractor is not None:
        found["rfvd"] = measure_distance(rows, extractor, config)
    examples = examples_of(rows)
    protocol = {
        **model_protocol(config.autoencoder, model),
        **protocol_of(config, dataset.config, videos, len(rows)),
        "features": extractor.protocol() if extractor is not None else None,
        **software_protocol(processes),
    }
    return Report(
        name="reconstruction",
        protocol=protocol,
        found=found,
        rows=[plain_row(video) for video in videos],
        skipped=merge_skipped(skipped),
        markdown=markdown_row(found, protocol),
        draw=partial(draw, videos, config, dataset.config),
        pictures={"examples": partial(contact_sheet, examples)} if examples else {},
    )


def places_to_show(windows: Sequence[Window]) -> list[int]:
    """The first windows of a few videos, evenly over all; chosen before anything is seen."""
    first: dict[int, int] = {}
    for place, window in enumerate(windows):
        first.setdefault(window.video, place)
    places = list(first.values())
    number = min(EXAMPLES_SHOWN, len(places))
    return [places[len(places) * part // number] for part in range(number)]


def examples_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Label -> video of all the windows that are shown."""
    return {
        f"{row['video']} {name}": frames for row in rows for name, frames in row["frames"].items()
    }


def measure_windows(
    meter: WindowMeter, dataset: VideoDataset, windows: Sequence[Window], processes: Processes
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The rows of all windows in order, and (path, reason) of what can't be read; on each process.

    A file of which some windows can be read and others can't counts among both.
    """
    config = meter.config
    rows: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    batches = iterate_windows(dataset, windows, config.batch_size, processes, config.num_workers)
    number = len(windows[processes.rank * config.batch_size :: config.batch_size * processes.count])
    for batch in tqdm(batches, total=number, unit="batch", disable=not processes.main):
        skipped += [tuple(item) for item in batch["skipped"]]
        if "video" in batch:
            rows += meter.rows(batch, windows)
    return processes.gather_sorted(rows), processes.gather(skipped)


def protocol_of(
    config: ReconstructionConfig,
    data: DataConfig,
    videos: Sequence[Mapping[str, Any]],
    num_windows: int,
) -> dict[str, Any]:
    """How the numbers were measured."""
    readers = sorted({str(video["reader"]) for video in videos if video["reader"]})
    codec = config.codec
    return {
        "metric": "PSNR, SSIM and LPIPS on float frames, the reconstruction clipped to [-1, 1]: "
        "mean over a window's frames, a video's windows, the videos; see docs/evaluation.md",
        **data_protocol(data, len(videos)),
        "readers_used": readers,
        "windows": config.windows,
        "windows_measured": num_windows,
        "batch_size": config.batch_size,
        "lpips_net": config.lpips,
        "posterior": "mode",
        "blockiness": "mean step between neighbouring pixels across the model's patch borders over "
        "that inside the patches",
        "dct": "as many coefficients of a 3-D DCT of the window as there are latent values, those "
        "of the lowest frequency in cycles per frame and pixel, float; clipped to [-1, 1]"
        if config.dct
        else None,
        "quantization": "even levels between the least and the greatest value of each channel of "
        "each window, whose float32 values are counted; lzma: LZMA2 at its strongest, raw",
        "h264": codec
        and {
            "encoder": "libx264, one thread, no assembly",
            **fields_of(codec, "preset", "tune", "crfs"),
            "pixel_formats": formats_for(codec, data.height, data.width),
            "size": "of the stream without container and without SEI; one key frame a window",
        },
        "reencode": config.reencode,
        "intervals": f"95 %, {config.resamples} resamples of the videos, seed {config.seed}",
    }


def markdown_row(found: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The row for a table: one protocol, so tables of several rows compare like with like."""
    height, width = protocol["resolution"]
    pace = f"{protocol['fps']:g} fps" if protocol["fps"] else f"stride {protocol['stride']}"
    row = [
        ("model", protocol["checkpoint"]),
        ("videos", str(found["videos"])),
        ("windows", f"{found['windows']} of {protocol['frames']} x {height} x {width}, {pace}"),
        ("rate", f"{found['compression_rate']:.3%}"),
        ("PSNR", interval_text(found["both"]["psnr"], ".2f")),
        ("SSIM", interval_text(found["both"]["ssim"], ".4f")),
        ("LPIPS", interval_text(found["both"]["lpips"], ".4f")),
        ("PSNR structure only", interval_text(found["structure_only"]["psnr"], ".2f")),
        ("PSNR dynamics only", interval_text(found["dynamics_only"]["psnr"], ".2f")),
    ]
    if "dct" in found:
        row.append(("PSNR DCT, as many values", interval_text(found["dct"]["psnr"], ".2f")))
        row.append(("SSIM DCT, as many values", interval_text(found["dct"]["ssim"], ".4f")))
    row.append(("blockiness", interval_text(found["blockiness"], ".2f")))
    row.append(("blockiness original", interval_text(found["blockiness_original"], ".2f")))
    if "rfvd" in found:
        row.append((found["rfvd"]["name"], interval_text(found["rfvd"])))
    # One size in the row, the first that was asked for; the others are in the JSON.
    for name, quantized in list(found["quantized"].items())[:1]:
        size = name.replace("_", "-")
        row.append((f"PSNR {size}", interval_text(quantized["psnr"], ".2f")))
        row.append((f"bits per pixel {size}", f"{quantized['bits_per_pixel']['value']:.4f}"))
        for pixel_format, codec in found.get("h264", {}).items():
            quality = codec["at_the_size_of"][name.replace("_", "")]["psnr"]
            text = interval_text(quality, ".2f")
            if text != "-" and quality["n"] != found["videos"]:
                text += f", n = {quality['n']}"
            row.append((f"PSNR H.264 {pixel_format} at that size", text))
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
