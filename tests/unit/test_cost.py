"""The count of what a transformer costs on a tokenizer's latents, against arithmetic and a run."""

from __future__ import annotations

import pytest
import torch

from vidtwin.files import root_folder


@pytest.fixture(scope="module")
def cost():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root_folder() / "benchmarks")
        import cost

        return cost


def test_the_paper_counts_the_feed_forwards_and_norms(cost) -> None:
    with torch.device("meta"):
        layers = cost.Transformer(cost.vidtwin_latents(4)).layers
    sizes = {name: p.numel() for name, p in layers.named_parameters()}
    assert sum(sizes.values()) == 18_914_304
    assert sum(n for name, n in sizes.items() if "self_attn" not in name) == 12_610_560


def test_patches_hold_every_value_once_and_padding_is_zero(cost) -> None:
    latent = torch.arange(1.0, 1 + 2 * 3 * 2 * 5).reshape(1, 2, 3, 2, 5)
    tokens = cost.patchify(latent, cost.patch_of((2, 3, 2, 5)))
    assert tokens.shape == (1, 2 * 1 * 3, 2 * 8) and cost.tokens_of((2, 3, 2, 5)) == 6
    assert sorted(tokens[tokens > 0].tolist()) == latent.flatten().tolist()
    first = latent[0, :, :2, :2, :2]
    assert sorted(tokens[0, 0].tolist()) == sorted(first.flatten().tolist())


def test_flops_are_those_of_the_matrix_products(cost) -> None:
    latents = [(4, 4, 8, 8), (8, 1, 4, 6)]
    found = cost.costs(latents)
    tokens, width = 2 * 4 * 4 + 2 * 3, 512
    assert found["tokens"] == tokens
    weights = 6 * (4 * width**2 + 2 * width * 2048)
    embeddings = 32 * 4 * 8 * width + 6 * 8 * 4 * width
    expected = 2 * (tokens * weights + embeddings) + 6 * 4 * tokens**2 * width
    assert found["forward_flops"] == expected
    assert 2.9 * expected < found["training_flops"] < 3.2 * expected


def test_activations_are_those_that_a_real_pass_leaves(cost) -> None:
    found = cost.costs([(4, 4, 8, 8), (8, 1, 4, 6)], real=True)
    assert found["measured_activation_bytes"] == pytest.approx(found["activation_bytes"], rel=1e-3)
    counted = cost.costs([(4, 4, 8, 8), (8, 1, 4, 6)])
    assert all(found[key] == value for key, value in counted.items())


def test_shapes_are_those_of_the_classes(cost) -> None:
    assert cost.tokenizer_latents("AutoencoderKLLTXVideo") == (16, [(128, 2, 7, 7)])
    assert cost.vidtwin_latents(8) == [(8, 16, 7, 7), (8, 1, 16, 14)]
