"""The autoencoder equals the released one, stage by stage; see cases.py for the fixtures."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch
from cases import OWN, RELEASED, Case, error, gradient_norms, load_case, run_stages
from safetensors.torch import load_file, save_file

from vidtwin import VidTwinAutoencoder
from vidtwin.convert import DEAD_KEYS, TABLE_KEYS, our_key, read_official_discriminator
from vidtwin.discriminator import PatchDiscriminator
from vidtwin.latents import VidTwinLatents

CASES = ("case_a", "case_b", "case_c")
FLOAT64_TOLERANCE = 3e-7  # each of 21 planted mistakes exceeds it
FLOAT32_TOLERANCE = 2e-5
ABSENT = "the fixtures of the released code are not beside the repository"


@pytest.fixture(
    scope="module",
    params=[(folder, name) for folder in (OWN, RELEASED) for name in CASES],
    ids=[f"{folder}-{name}" for folder in ("own", "released") for name in CASES],
)
def case(request) -> Case:
    folder, name = request.param
    if not (folder / f"{name}.safetensors").exists():
        pytest.skip(ABSENT)
    return load_case(folder, name)


@pytest.fixture(scope="module")
def official_file(case, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "model.safetensors"
    weights = {k.removeprefix("weights."): v for k, v in case.tensors.items() if "weights." in k}
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def model(case, official_file) -> VidTwinAutoencoder:
    return VidTwinAutoencoder.from_official(official_file, **case.overrides)


def compare(stages, case: Case, prefix: str, tolerance: float) -> None:
    expected = {
        key.removeprefix(f"{prefix}."): value
        for key, value in case.tensors.items()
        if key.startswith(f"{prefix}.")
    }
    assert len(expected) > 12
    errors = {}
    for name, reference in expected.items():
        # The fixtures hold log-variances before the clamp.
        reference = reference.clamp(-30, 20) if name.endswith("_logvar") else reference
        errors[name] = error(stages[name], reference)
    assert max(errors.values()) <= tolerance, {k: v for k, v in errors.items() if v > tolerance}


def test_every_stage_in_float64(model, case):
    with torch.no_grad():
        stages = run_stages(model.double(), case.tensors["input"].double())
    compare(stages, case, "causal", FLOAT64_TOLERANCE)


def test_every_stage_in_float32(model, case):
    with torch.no_grad():
        stages = run_stages(model.float(), case.tensors["input"].float())
    compare(stages, case, "causal", FLOAT32_TOLERANCE)


def test_the_noncausal_variant(official_file, case):
    overrides = case.overrides | {"encoder_causal": False, "decoder_causal": False}
    model = VidTwinAutoencoder.from_official(official_file, **overrides).double()
    with torch.no_grad():
        stages = run_stages(model, case.tensors["input"].double())
    compare(stages, case, "noncausal", FLOAT64_TOLERANCE)


def test_the_name_that_diffusers_has_for_it(official_file, case, model) -> None:
    other = VidTwinAutoencoder.from_single_file(official_file, **case.overrides)
    assert dict(other.config) == dict(model.config) and not other.training
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name].to(weight), weight)
    half = VidTwinAutoencoder.from_single_file(
        str(official_file), torch_dtype=torch.float16, **case.overrides
    )
    assert half.dtype == torch.float16


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("https://huggingface.co/x/y/blob/main/z.ckpt", {}, "download it"),
        ({}, {}, "got dict"),
        ("x.ckpt", {"original_config": "a.yaml"}, "takes no `original_config`"),
        ("x.ckpt", {"encoder_head": 2}, "nearest size of the model is `encoder_heads`"),
    ],
)
def test_what_a_single_file_is_not(source, options, told) -> None:
    with pytest.raises(ValueError, match=told):
        VidTwinAutoencoder.from_single_file(source, **options)


def test_sampling_with_the_stored_noise(model, case):
    stored = {k.removeprefix("causal_sampled."): v for k, v in case.tensors.items()}
    noise = VidTwinLatents(
        stored["eps_structure"], stored["eps_dynamics_x"], stored["eps_dynamics_y"]
    )
    with torch.no_grad():
        out = model.double()(case.tensors["input"].double(), sample_posterior=True, noise=noise)
    assert error(out.reconstruction, stored["recon"]) <= FLOAT64_TOLERANCE
    assert error(out.latents.dynamics_x, stored["dynamics_x_latent"]) <= FLOAT64_TOLERANCE
    assert error(out.latents.dynamics_y, stored["dynamics_y_latent"]) <= FLOAT64_TOLERANCE


def test_kl_in_float64_is_exact(model, case):
    with torch.no_grad():
        posterior = model.double().encode(case.tensors["input"].double())
    assert posterior.kl().mean().item() == pytest.approx(case.record["kl_loss_causal"], rel=1e-12)
    for name, value in case.record["kl_parts_causal"].items():
        part = getattr(posterior, name)
        assert part.kl().mean().item() == pytest.approx(value, rel=1e-12)


def test_every_parameter_gradient(model, case):
    norms = gradient_norms(model.double(), case.tensors["input"].double())
    expected = {
        our_key(key): value for key, value in case.record["grad_l2"].items() if key not in DEAD_KEYS
    }
    assert norms.keys() == expected.keys()
    # Softmax ignores a shift of all its logits, so the true gradient of a key's bias is zero and
    # what is stored is rounding: those are compared on the scale of their sibling, the query.
    for name, value in expected.items():
        sibling = name.replace(".key.bias", ".query.bias")
        scale = max(abs(value), abs(expected[sibling]))
        assert abs(norms[name] - value) <= FLOAT64_TOLERANCE * max(scale, 1e-12), name


def test_parameters_are_the_released_ones_without_the_dead(model, case):
    dead = sum(
        case.tensors[f"weights.{key}"].numel()
        for key in DEAD_KEYS
        if f"weights.{key}" in case.tensors
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == case.record["n_params_no_loss"] - dead


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "state_dict"])
def test_ckpt_file_with_loss_keys(case, official_file, tmp_path, caplog, wrapped):
    weights = load_file(official_file)
    discriminator = PatchDiscriminator()
    weights |= {f"loss.discriminator.{k}": v for k, v in discriminator.state_dict().items()}
    weights["loss.logvar"] = torch.tensor(0.3)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights, "epoch": 3} if wrapped else weights, path)
    with caplog.at_level(logging.INFO, logger="vidtwin.convert"):
        model = VidTwinAutoencoder.from_official(path, **case.overrides)
    for key in ("loss.logvar", "loss.discriminator.main.0.weight", *DEAD_KEYS, *TABLE_KEYS):
        assert key in caplog.text
    assert not model.training
    state, logvar = read_official_discriminator(path)
    discriminator.load_state_dict(state)
    assert logvar.item() == pytest.approx(0.3)


class TestRefusals:
    """Whatever does not fit is an error that names it."""

    @pytest.fixture
    def weights(self):
        case = load_case(OWN, "case_a")
        return case, {
            k.removeprefix("weights."): v for k, v in case.tensors.items() if "weights." in k
        }

    def load(self, tmp_path, weights, **overrides):
        save_file(weights, tmp_path / "model.safetensors")
        return VidTwinAutoencoder.from_official(tmp_path / "model.safetensors", **overrides)

    def test_missing_key(self, weights, tmp_path):
        case, state = weights
        del state["motion_head.bias"]
        with pytest.raises(ValueError, match=r"missing.*dynamics_encoder\.to_moments\.bias"):
            self.load(tmp_path, state, **case.overrides)

    def test_unexpected_key(self, weights, tmp_path):
        case, state = weights
        state["motion_hat.bias"] = torch.zeros(3)
        with pytest.raises(ValueError, match=r"unexpected.*motion_hat\.bias"):
            self.load(tmp_path, state, **case.overrides)

    def test_other_shape(self, weights, tmp_path):
        case, state = weights
        with pytest.raises(ValueError, match=r"other shape.*to_moments\.bias: file \(6,\), model"):
            self.load(tmp_path, state, **case.overrides, structure_channels=2)

    def test_not_a_checkpoint(self, tmp_path):
        with pytest.raises(ValueError, match="no VidTwin checkpoint: missing"):
            self.load(tmp_path, {"weight": torch.zeros(2)})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint file at .*absent\.ckpt"):
            VidTwinAutoencoder.from_official(tmp_path / "absent.ckpt")
        for text in ("not a checkpoint", "a text\n", "0", "(lp0\n."):
            (tmp_path / "text.ckpt").write_text(text)
            with pytest.raises(ValueError, match=r"can't be read as weights|no state dict"):
                VidTwinAutoencoder.from_official(tmp_path / "text.ckpt")
        torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.ckpt")
        with pytest.raises(ValueError, match="holds no state dict"):
            VidTwinAutoencoder.from_official(tmp_path / "numbers.ckpt")

    def test_objects_are_not_unpickled(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (print, ("the trap ran",))

        torch.save({"state_dict": {}, "callback": Trap()}, tmp_path / "trap.ckpt")
        with pytest.raises(ValueError, match="objects are never unpickled"):
            VidTwinAutoencoder.from_official(tmp_path / "trap.ckpt")

    def test_no_discriminator(self, weights, tmp_path):
        _, state = weights
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="holds no discriminator"):
            read_official_discriminator(tmp_path / "model.safetensors")


def test_official_key_list_maps_onto_the_default_model():
    path = RELEASED / "official_state_dict.json"
    if not path.exists():
        pytest.skip(ABSENT)
    record = json.loads(path.read_text())
    with torch.device("meta"):
        model = VidTwinAutoencoder()
    wanted = {key: list(value.shape) for key, value in model.state_dict().items()}
    came = {
        our_key(entry["key"]): entry["shape"]
        for entry in record["state_dict"]
        if entry["key"] not in (*DEAD_KEYS, *TABLE_KEYS)
    }
    assert came == wanted
    assert sum(p.numel() for p in model.parameters()) == record["n_parameters_used"]


def test_golden_key_list_of_our_state_dict():
    """These names are in people's checkpoints: renaming one breaks them all."""
    with torch.device("meta"):
        model = VidTwinAutoencoder()
    # Blocks and layers are alike; the first of each kind stands for the others.
    keys = {
        re.sub(r"(blocks|layer)\.\d+\.", lambda m: f"{m[1]}.N.", key) for key in model.state_dict()
    }
    golden = set((OWN / "state_dict_keys.txt").read_text().split())
    assert keys == golden
    assert len(model.state_dict()) == 578
