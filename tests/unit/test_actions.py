"""Actions as a condition: where they enter, what leaves them out, and what the pipeline refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diffusion import FlowConfig, FlowObjective, TwinDiT, VidTwinPipeline
from diffusion.action_files import read_actions
from diffusion.conditions import ActionCondition, ActionEmbedder
from diffusion.config import InputsConfig
from diffusion.latent_sources import CachedLatents
from diffusion.training import TrainingInputs, build_transformer
from vidtwin import VidTwinLatents, draw_noise
from vidtwin_lab.evaluation.actions.config import WorldConfig
from vidtwin_lab.evaluation.actions.world import Played, _features, _fit_linear

NAMES = ["left", "right"]


@pytest.fixture(scope="module")
def pipeline(build_pipeline) -> VidTwinPipeline:
    """With weights for actions that are not zero."""
    pipe = build_pipeline()
    model = TwinDiT(**vars(pipe.transformer.sizes) | {"action_size": len(NAMES)}).eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(model.actions.weight, std=0.5)
    model.load_state_dict(model.added_state() | pipe.transformer.state_dict())
    pipe.register_modules(transformer=model)
    pipe.register_to_config(action_names=NAMES)
    return pipe


def acted(pipeline: VidTwinPipeline, seed: int = 0, rows: int = 1) -> torch.Tensor:
    frames = pipeline.autoencoder.sizes.num_frames
    return torch.randn(rows, frames, len(NAMES), generator=torch.Generator().manual_seed(seed))


def ask(pipeline: VidTwinPipeline, **changes: Any) -> VidTwinLatents:
    options = {"prompt": "a star", "num_inference_steps": 2, "seed": 5, "output_type": "latent"}
    return pipeline(**options | changes).latents


def same(one: VidTwinLatents, other: VidTwinLatents) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors()))


def test_an_action_enters_at_the_dynamics_of_its_own_frame(pipeline) -> None:
    model, actions = pipeline.transformer, acted(pipeline)
    changed = actions.clone()
    changed[:, 3] += 1
    gap = model._embed_actions(changed, None) - model._embed_actions(actions, None)
    moved = gap[0].abs().sum(1) > 0  # (N,)
    structure, along_x, along_y = model.sizes.token_counts
    steps = model.sizes.dynamics_frames
    step = 3 // model.sizes.dynamics_patch_size
    assert not moved[:structure].any()
    for part, count in zip(moved[structure:].split([along_x, along_y]), (along_x, along_y)):
        by_step = part.reshape(steps, count // steps)
        assert by_step[step].all()
        assert by_step.sum() == count // steps


def test_left_out_is_as_none(pipeline) -> None:
    model, actions = pipeline.transformer, acted(pipeline, rows=2)
    condition = ActionEmbedder(NAMES).embed(actions)
    dropped = condition.drop(torch.tensor([True, False]))
    assert isinstance(dropped, ActionCondition)
    embedded = model._embed_actions(dropped.actions, dropped.has_actions)
    assert embedded[0].abs().max() == 0
    assert embedded[1].abs().max() > 0


def test_a_call_by_actions(pipeline, tmp_path) -> None:
    plain, pushed = ask(pipeline), ask(pipeline, actions=acted(pipeline))
    assert not torch.allclose(plain.dynamics_x, pushed.dynamics_x)
    assert not same(pushed, ask(pipeline, actions=acted(pipeline, seed=1)))
    both = ask(pipeline, actions=acted(pipeline)[0], prompt=["a star", "a star"], seed=[5, 5])
    assert_close(both.dynamics_x[1:], pushed.dynamics_x, rtol=1e-4, atol=1e-4)
    pipeline.save_pretrained(tmp_path)
    loaded = VidTwinPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config["action_names"] == NAMES
    assert same(ask(loaded, actions=acted(pipeline)), pushed)


def test_guidance_by_the_prompt_never_hides_them(pipeline) -> None:
    seen = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["has_actions"]), with_kwargs=True
    )
    ask(pipeline, actions=acted(pipeline), guidance_scale=3.0)
    hook.remove()
    assert [len(rows) for rows in seen] == [2, 2]
    assert all(rows.all() for rows in seen)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda actions: actions[:, 1:], "must be of shape (B, "),
        (lambda actions: actions[..., :1], "(left, right)"),
        (lambda actions: actions.long(), "must be a float tensor"),
        (lambda actions: actions * torch.nan, "not finite"),
    ],
)
def test_what_is_refused(pipeline, change, reason) -> None:
    with pytest.raises(ValueError, match="`actions`") as caught:
        ask(pipeline, actions=change(acted(pipeline)))
    assert reason in str(caught.value)


def test_a_pipeline_without_and_several_windows(pipeline, build_pipeline) -> None:
    with pytest.raises(ValueError, match="not trained with actions"):
        ask(build_pipeline(), actions=acted(pipeline))
    frames = 2 * pipeline.autoencoder.sizes.num_frames
    with pytest.raises(ValueError, match="leave out `num_frames`"):
        ask(pipeline, actions=acted(pipeline), num_frames=frames)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("left\n1\n2\n", "expected the columns left, right, got left"),
        ("left,right,up\n1,2,3\n1,2,3\n", "got left, right, up"),
        ("left,right\n1,2\n", "expected a row for each of the 2 frames, got 1"),
        ("left,right\n1,2\n1,full\n", "line 3: right must be a number, got 'full'"),
        ("left,right\n1,2\n1,nan\n", "line 3: right must be a number, got 'nan'"),
        ("", "expected the columns left, right, got none"),
    ],
)
def test_a_table_of_actions_that_does_not_fit(tmp_path, text, reason) -> None:
    file = tmp_path / "actions.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match="--actions") as caught:
        read_actions(file, NAMES, num_frames=2)
    assert reason in str(caught.value)


def test_a_table_of_actions_by_their_names(tmp_path) -> None:
    file = tmp_path / "actions.csv"
    file.write_text("right,left\n2,1\n-4,3e-1\n")
    assert read_actions(file, NAMES, num_frames=2) == [[1.0, 2.0], [0.3, -4.0]]
    with pytest.raises(ValueError, match="not trained with actions"):
        read_actions(file, (), num_frames=2)


def test_training_on_begins_as_the_saved_one(build_pipeline, tmp_path) -> None:
    saved = build_pipeline().transformer
    saved.save_pretrained(tmp_path)
    sizes = type(saved.sizes)(**vars(saved.sizes) | {"action_size": 2, "given_frames": True})
    model = build_transformer(sizes, str(tmp_path)).eval()
    shapes = [getattr(saved.sizes, f"{name}_shape") for name in VidTwinLatents.names]
    latents = [torch.randn(1, *shape) for shape in shapes]
    level, frames = torch.tensor([300.0]), saved.sizes.dynamics_x_shape[1]
    with torch.no_grad():
        before = saved(*latents, level, level)
        after = model(*latents, level, level, actions=torch.randn(1, frames, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_a_clip_is_learned_with_several_noises(build_autoencoder) -> None:
    source = CachedLatents.__new__(CachedLatents)
    source.autoencoder = build_autoencoder()
    batch = dict(draw_noise(source.autoencoder.sizes, range(3)).items())
    frames = source.autoencoder.sizes.num_frames
    batch |= {"noise_seed": torch.arange(3) + 9, "actions": torch.randn(3, frames, 2)}
    embedders = [ActionEmbedder(NAMES, dropout=0.5)]
    read = [
        TrainingInputs(source, FlowObjective(FlowConfig()), embedders, noise_draws=n).read(batch)
        for n in (1, 3)
    ]
    once, often = read
    assert torch.equal(often.latents.structure[::3], once.latents.structure)
    assert torch.equal(often.noise.structure[::3], once.noise.structure)
    assert torch.equal(often.levels.dynamics[::3], once.levels.dynamics)
    assert len(often.levels.dynamics.unique()) == 9
    arguments = often.conditions.arguments()
    assert torch.equal(arguments["actions"], batch["actions"].repeat_interleave(3, 0))
    assert 0 < arguments["has_actions"].sum() < 9


def test_a_cache_holds_no_actions() -> None:
    with pytest.raises(ValueError, match="a cache holds no actions"):
        InputsConfig(action_conditional=True, cache="latents")
    with pytest.raises(ValueError, match=r"data.source must be physics"):
        WorldConfig(data=InputsConfig().data)


def test_the_linear_baseline_finds_what_is_linear() -> None:
    """Places that are a start and the sum of pushes, read by a judge that errs nowhere."""
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(300, 6, 2))
    starts = rng.normal(size=(300, 1, 2))
    sums = np.pad(actions.cumsum(1)[:, :-1], ((0, 0), (1, 0), (0, 0)))
    places = starts + sums

    class Judge:
        def read(self, frames: Any) -> Any:
            return frames

    weights = _fit_linear(Judge(), Played(places[:200], actions[:200], places[:200]), 2)  # type: ignore[arg-type]
    guessed = _features(places[200:], actions[200:], 2) @ weights
    wanted = places[200:, 2:].reshape(100, -1)
    assert np.abs(guessed - wanted).max() < 0.1 * np.abs(wanted).std()
