"""Writes a trained pipeline or autoencoder to be shipped: in half precision, without local paths.

python tools/ship_pipeline.py --pipeline outputs/diffusion_shapes/pipeline \
    --output checkpoints/shapes
python tools/ship_pipeline.py --autoencoder outputs/clips/autoencoder_ema --output checkpoints/clips
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from diffusion import VidTwinPipeline
from vidtwin.reconstruction import load_autoencoder, weights_digest
from vidtwin_lab import runtime


def main() -> None:
    """Writes the pipeline, or the autoencoder where there is no pipeline."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipeline", help="folder")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument(
        "--autoencoder",
        help="folder: of one with a further trained decoder (freeze_encoder=true) for the "
        "pipeline, or of what is written where there is no pipeline",
    )
    arguments = parser.parse_args()
    if arguments.pipeline is not None:
        ship_pipeline(arguments)
    elif arguments.autoencoder is not None:
        autoencoder, _ = load_autoencoder(arguments.autoencoder)
        autoencoder.half().save_pretrained(arguments.output)
    else:
        parser.error("give --pipeline, --autoencoder or both")
    for path in arguments.output.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in arguments.output.rglob("*") if path.is_file())
    print(f"{arguments.output}: {size / 1e6:.1f} MB")


def ship_pipeline(arguments: argparse.Namespace) -> None:
    """Writes the pipeline, with the decoder that is asked for."""
    pipeline = VidTwinPipeline.from_pretrained(arguments.pipeline)
    if arguments.autoencoder is not None:
        autoencoder, _ = load_autoencoder(arguments.autoencoder)
        models = (autoencoder, pipeline.autoencoder)
        new, trained_with = (weights_digest(model.encoder_parts()) for model in models)
        if new != trained_with:
            raise ValueError(
                f"the encoder of {arguments.autoencoder} differs from the pipeline's, so its "
                "decoder expects other latents; train it with freeze_encoder=true"
            )
        pipeline.register_modules(autoencoder=autoencoder)
    # The latent statistics stay float32: a few numbers that scale every latent.
    for name in ("autoencoder", "transformer", "text_encoder"):
        part = getattr(pipeline, name)
        if part is not None:
            part.to(torch.float16)
    pipeline.save_pretrained(arguments.output)


if __name__ == "__main__":
    runtime.run_main(main)
