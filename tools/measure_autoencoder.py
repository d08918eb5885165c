"""Measures an autoencoder on the validation part of a data set; writes metrics and protocol.

    python tools/measure_autoencoder.py --model checkpoints/shapes/autoencoder \
        --samples 256 --output docs/results/shapes_autoencoder.json source=shapes

Overrides are keys of `vidtwin.data.DataConfig`; its sizes are set to the model's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from vidtwin.data import DataConfig, TooManyBadFiles, build_dataset, build_evaluation_loader
from vidtwin.metrics import mean_measures, measure_reconstructions
from vidtwin.reconstruction import load_autoencoder, software_versions, weights_digest
from vidtwin_lab import runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder, run folder or released checkpoint")
    parser.add_argument("--samples", type=int, default=256, help="clips to measure")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the data config")
    arguments = parser.parse_intermixed_args()
    model, path = load_autoencoder(arguments.model)
    model = model.float().eval()
    sizes = model.sizes
    data = runtime.load_config(DataConfig, None, ["part=validation", *arguments.overrides])
    data = data.centered().sized(sizes.num_frames, sizes.height, sizes.width)
    loader = build_evaluation_loader(
        build_dataset(data), batch_size=arguments.batch_size, max_samples=arguments.samples
    )
    rows, _ = measure_reconstructions(model, loader)
    values = [measures["psnr"] for _, measures in rows]
    record = {
        "mean": mean_measures(rows),
        "psnr_quantiles": dict(
            zip(
                ("min", "25%", "50%", "75%", "max"),
                torch.tensor(values).quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1.0])).tolist(),
                strict=True,
            )
        ),
        "compression_rate": sizes.compression_rate,
        "latent_values": sizes.numel_per_clip,
        "protocol": {
            "posterior": "mode",
            "metrics": "of float tensors, per frame, then the mean over frames, then over clips",
            "data": runtime.config_to_dict(data),
            "weights_sha256": weights_digest(model),
            "model": str(path),
            "software": software_versions(),
        },
        "skipped": [tuple(item) for item in loader.bad_file_log.files.items()],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("mean", "psnr_quantiles")}, indent=1))


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
