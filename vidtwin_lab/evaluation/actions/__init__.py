"""What a latent knows of the actions behind a video: probes, baselines, swaps."""
