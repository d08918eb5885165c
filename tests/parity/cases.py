"""Reading parity fixtures: weights under released names, an input, and every stage's output.

Two sets have the same structure: small ones that travel with the tests (written by
make_fixtures.py from the model once it was equal to the released one), and those computed with
the released code itself, which lie beside the repository where they are at hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file

from vidtwin import VidTwinAutoencoder

OWN = Path(__file__).parent / "fixtures"
RELEASED = Path(__file__).parents[3] / "shared" / "parity"


@dataclass
class Case:
    """One fixture: `tensors` has weights.*, input, causal.*, causal.stage.*, noncausal.*."""

    path: Path
    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]

    @property
    def overrides(self) -> dict[str, Any]:
        """What the weights' shapes can't tell about the model."""
        params = self.record["official_params"]
        encoder = params["encoder_config"]["params"]
        decoder = params["decoder_config"]["params"]
        return {
            "height": encoder["input_size"][1],
            "width": encoder["input_size"][2],
            "encoder_heads": encoder["num_heads"],
            "decoder_heads": decoder["num_heads"],
            "query_heads": params["temporal_qformer_config"]["params"]["num_attention_heads"],
            "encoder_causal": encoder["temporal_casual"],
            "decoder_causal": decoder["temporal_casual"],
        }


def load_case(folder: Path, name: str) -> Case:
    """The fixture `name` of a folder."""
    path = folder / f"{name}.safetensors"
    record = json.loads(path.with_suffix(".json").read_text())
    return Case(path, load_file(path), record)


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| / max |reference|, in float64."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    difference = (ours.double() - reference.double()).abs().max()
    return (difference / reference.double().abs().max()).item()


def run_stages(model: VidTwinAutoencoder, video: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every intermediate result under its name in the fixtures, and the output."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            seen[name] = output

        return hook

    modules = {
        "enc_patch_tokens": model.patch_embedding,
        "enc_block0": model.encoder.blocks[0],
        "qformer_out": model.structure_encoder.temporal,
        "content_up_precrop": model.structure_decoder.conv_out,
        "dec_block0": model.decoder.blocks[0],
        "dec_block_last": model.decoder.blocks[-1],
    }
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    out = model(video)
    for handle in handles:
        handle.remove()
    posterior, latents = out.posterior, out.latents
    batch = video.shape[0]
    stages = {f"stage.{name}": value for name, value in seen.items()}
    stages["stage.enc_patch_tokens"] = rearrange(seen["enc_patch_tokens"], "b t s d -> b (t s) d")
    stages["stage.qformer_out"] = rearrange(
        seen["qformer_out"], "(b q) c h w -> (b h w) q c", b=batch
    )
    stages["stage.decoder_in"] = model.decoder_features(latents)
    stages["stage.decoder_in_content"] = model.decoder_features(latents, "structure")
    stages["stage.decoder_in_motion"] = model.decoder_features(latents, "dynamics")
    stages["z"] = model.features(video)
    for name in ("structure", "dynamics_x", "dynamics_y"):
        part = getattr(posterior, name)
        stages |= {f"{name}_mean": part.mean, f"{name}_logvar": part.logvar}
        stages[f"{name}_kl"] = part.kl().mean()
        stages[f"{name}_latent"] = getattr(latents, name)
    stages["structure_latent"] = rearrange(latents.structure, "b c q h w -> b q h w c")
    stages["kl_loss"] = posterior.kl().mean()
    stages["recon"] = out.reconstruction
    stages["recon_content"] = model.decode(latents, "structure")
    stages["recon_motion"] = model.decode(latents, "dynamics")
    return stages


def gradient_norms(model: VidTwinAutoencoder, video: torch.Tensor) -> dict[str, float]:
    """L2 norm of each parameter's gradient of mean |x - x_hat| + 1e-4 KL, posterior at its mode."""
    model.zero_grad()
    out = model(video)
    loss = (out.reconstruction - video).abs().mean() + 1e-4 * out.posterior.kl().mean()
    loss.backward()
    norms = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        norms[name] = parameter.grad.norm().item()
    return norms
