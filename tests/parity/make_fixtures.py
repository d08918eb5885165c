"""Writes the small fixtures that travel with the tests, from the model as it is now.

    python tests/parity/make_fixtures.py --structure FOLDER

FOLDER holds the fixtures of the released code, whose three models' structure (depth, grids,
downsampling, causality, released key names) is kept at a fraction of their width and patch size.
Run it only while test_autoencoder.py passes against those: what it writes is then equal to the
released model.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
from pathlib import Path

import torch
from cases import OWN, gradient_norms, load_case, run_stages
from safetensors.torch import save_file

from vidtwin import VidTwinAutoencoder
from vidtwin.convert import DEAD_KEYS, our_key
from vidtwin.latents import VidTwinLatents
from vidtwin.transformer import spatial_table, temporal_table


def small_config(name: str, official) -> dict:
    """The case's official_params at a fraction of the width and patch size."""
    params = copy.deepcopy(official)
    hidden = {"case_a": 16, "case_b": 12, "case_c": 24}[name]
    query = {"case_a": 8, "case_b": 16, "case_c": 8}[name]
    patch = {"case_a": (2, 2), "case_b": (2, 3), "case_c": (2, 2)}[name]
    for side in ("encoder_config", "decoder_config"):
        sizes = params[side]["params"]
        sizes["hidden_size"] = hidden
        # The same grid of smaller patches.
        sizes["input_size"][1] = sizes["input_size"][1] // sizes["patch_size"][1] * patch[0]
        sizes["input_size"][2] = sizes["input_size"][2] // sizes["patch_size"][2] * patch[1]
        sizes["patch_size"] = [1, *patch]
    params["temporal_qformer_config"]["params"] |= {
        "query_hidden_size": query,
        "encoder_hidden_size": hidden,
        "intermediate_size": 2 * query,
    }
    params["init_ch"] = 4
    params.pop("loss_config")
    return params


def ours(params) -> dict:
    """Our keywords for a released model's parameters."""
    encoder, decoder = params["encoder_config"]["params"], params["decoder_config"]["params"]
    query = params["temporal_qformer_config"]["params"]
    frames, height, width = encoder["input_size"]
    return {
        "num_frames": frames,
        "height": height,
        "width": width,
        "patch_size": tuple(encoder["patch_size"]),
        "hidden_size": encoder["hidden_size"],
        "encoder_depth": encoder["depth"],
        "decoder_depth": decoder["depth"],
        "encoder_heads": encoder["num_heads"],
        "decoder_heads": decoder["num_heads"],
        "mlp_ratio": encoder["mlp_ratio"],
        "encoder_causal": encoder["temporal_casual"],
        "decoder_causal": decoder["temporal_casual"],
        "num_queries": query["num_query_tokens"],
        "query_hidden_size": query["query_hidden_size"],
        "query_layers": query["num_hidden_layers"],
        "query_heads": query["num_attention_heads"],
        "query_intermediate_size": query["intermediate_size"],
        "structure_base_channels": params["init_ch"],
        "structure_channels": params["expect_ch"],
        "structure_downsamples": params["cont_num_blocks"],
        "dynamics_channels": params["d_dim"],
        "dynamics_downsamples": params["motion_num_blocks"] if params["downsample_motion"] else 0,
    }


def shaken(model: VidTwinAutoencoder, generator: torch.Generator) -> VidTwinAutoencoder:
    """Weights of ordinary size everywhere: zeros and ones at the start would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 2 * torch.rand(parameter.shape, generator=generator) - 1
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (3 / fan_in) ** 0.5)
            else:
                parameter.add_(0.25 * noise)
    return model


def official_weights(model, keys) -> dict[str, torch.Tensor]:
    """The model's weights under released names, with dead ones and tables."""
    state, sizes = model.state_dict(), model.sizes
    weights = {}
    for key in keys:
        if key in DEAD_KEYS:
            mirror = {"decoder.x": "encoder.x", "encoder.f": "decoder.f"}[key[:9]] + key[9:]
            weights[key] = torch.zeros_like(state[our_key(mirror)])
        elif key.endswith("pos_embed"):
            weights[key] = spatial_table(*sizes.grid, sizes.hidden_size)[None]
        elif key.endswith("pos_embed_temporal"):
            weights[key] = temporal_table(sizes.num_frames, sizes.hidden_size)[None]
        else:
            weights[key] = state[our_key(key)].float()
    return weights


def make(name: str, structure: Path, index: int) -> None:
    """One fixture."""
    case = load_case(structure, name)
    params = small_config(name, case.record["official_params"])
    generator = torch.Generator().manual_seed(200 + index)
    model = shaken(VidTwinAutoencoder(**ours(params)), generator).eval()
    keys = [key.removeprefix("weights.") for key in case.tensors if key.startswith("weights.")]
    weights = official_weights(model, keys)
    batch = case.record["batch"]
    video = torch.rand((batch, *model.sizes.video_shape), generator=generator) * 2 - 1
    tensors = {f"weights.{key}": value for key, value in weights.items()} | {"input": video}
    tables_free = {"encoder_causal": False, "decoder_causal": False}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_file({k: v.contiguous() for k, v in weights.items()}, f"{folder}/model.safetensors")
        for prefix, changes in (("causal", {}), ("noncausal", tables_free)):
            config = ours(params) | changes
            model = VidTwinAutoencoder.from_official(f"{folder}/model.safetensors", **config)
            stages = run_stages(model.double(), video.double())
            wanted = [
                k.removeprefix(f"{prefix}.") for k in case.tensors if k.startswith(f"{prefix}.")
            ]
            tensors |= {f"{prefix}.{key}": stages[key].float() for key in wanted}
        model = VidTwinAutoencoder.from_official(f"{folder}/model.safetensors", **ours(params))
        model = model.double()
        posterior = model.encode(video.double())
        noise = VidTwinLatents(
            *(torch.randn(part.mean.shape, generator=generator) for part in posterior.parts())
        )
        sampled = model(video.double(), sample_posterior=True, noise=noise)
    tensors |= {
        f"causal_sampled.eps_{key}": getattr(noise, key)
        for key in ("structure", "dynamics_x", "dynamics_y")
    }
    tensors |= {
        "causal_sampled.recon": sampled.reconstruction.float(),
        "causal_sampled.dynamics_x_latent": sampled.latents.dynamics_x.float(),
        "causal_sampled.dynamics_y_latent": sampled.latents.dynamics_y.float(),
    }
    norms = gradient_norms(model, video.double())
    dead = sum(weights[key].numel() for key in DEAD_KEYS)
    record = {
        "official_params": params,
        "batch": batch,
        "kl_loss_causal": posterior.kl().mean().item(),
        "kl_parts_causal": {
            key: getattr(posterior, key).kl().mean().item()
            for key in ("structure", "dynamics_x", "dynamics_y")
        },
        "grad_l2": {
            key: norms[our_key(key)]
            for key in keys
            if key not in DEAD_KEYS and "pos_embed" not in key
        },
        "n_params_no_loss": sum(p.numel() for p in model.parameters()) + dead,
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, OWN / f"{name}.safetensors")
    (OWN / f"{name}.json").write_text(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structure", type=Path, required=True)
    arguments = parser.parse_args()
    OWN.mkdir(exist_ok=True)
    for index, name in enumerate(("case_a", "case_b", "case_c")):
        make(name, arguments.structure, index)
    with torch.device("meta"):
        model = VidTwinAutoencoder()
    keys = {
        re.sub(r"(blocks|layer)\.\d+\.", lambda m: f"{m[1]}.N.", key) for key in model.state_dict()
    }
    (OWN / "state_dict_keys.txt").write_text("\n".join(sorted(keys)) + "\n")


if __name__ == "__main__":
    main()
