"""Feature networks: what reaches them, what comes out, what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from vidtwin_lab.evaluation.config import FeaturesConfig
from vidtwin_lab.evaluation.features import check_finite, load_features

RANDOM = "vidtwin_lab.evaluation.features:random_convolutions"

FRAMES, SIZE = 9, 20


class TinyI3d(nn.Module):
    """Takes what the standard file takes; gives sizes and moments of what came."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        options = torch.tensor([float(rescale), float(resize), float(return_features)])
        sizes = torch.tensor([float(x.shape[2]), float(x.shape[3]), float(x.shape[4])])
        known = torch.cat([options, sizes]).repeat(x.shape[0], 1)
        return torch.cat([known, x.mean([2, 3, 4]), x.amax([2, 3, 4])], 1)


class TinyC3d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        return x.float().mean([2, 3, 4]).div(255.0).softmax(1)


@pytest.fixture(scope="module")
def videos() -> Tensor:
    return torch.rand(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def i3d(tmp_path: Path) -> FeaturesConfig:
    torch.jit.script(TinyI3d()).save(str(tmp_path / "i3d.pt"))
    return FeaturesConfig(path=str(tmp_path / "i3d.pt"), run_program=True)


@pytest.fixture(scope="module")
def videomae(tmp_path_factory) -> Path:
    """A folder with a classifier, and one with the network alone."""
    folder = tmp_path_factory.mktemp("videomae")
    config = VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={index: str(index) for index in range(5)},
    )
    torch.manual_seed(0)
    VideoMAEForVideoClassification(config).save_pretrained(folder / "classifier")
    VideoMAEModel(config).save_pretrained(folder / "alone")
    return folder


def test_i3d_gets_what_the_standard_file_expects(i3d, videos) -> None:
    extractor = load_features(i3d)
    features = extractor(videos * 1.5)
    assert features.dtype == torch.float32
    # rescale and resize off, features on; every frame at 224x224, clipped to [-1, 1].
    assert features[0, :6].tolist() == [0, 0, 1, FRAMES, 224, 224]
    means = (videos * 1.5).clamp(-1, 1).mean((2, 3, 4))
    torch.testing.assert_close(features[:, 6:9], means, atol=0.02, rtol=0)
    assert features[:, 9:].amax() < 1.0001
    assert (extractor.name, extractor.probabilities, extractor.size) == ("i3d", False, 12)
    assert len(extractor.digest) == 16
    assert extractor.both(videos)[1] is None


def test_c3d_gets_eight_bits_and_gives_probabilities(tmp_path, videos) -> None:
    torch.jit.script(TinyC3d()).save(str(tmp_path / "c3d.pt"))
    extractor = load_features(
        FeaturesConfig(name="c3d", path=str(tmp_path / "c3d.pt"), run_program=True)
    )
    features, probabilities = extractor.both(videos)
    assert extractor.probabilities and probabilities is not None
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    torch.testing.assert_close(features, probabilities)


def test_a_missing_file_says_how_to_get_it(tmp_path, monkeypatch, videos) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"i3d_torchscript\.pt.*dropbox.*features\.download=true"):
        load_features(FeaturesConfig())

    def no_network(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(ValueError, match=r"could not be downloaded .*no network"):
        load_features(FeaturesConfig(download=True, run_program=True))

    def fetch(url: str, path: str, progress: bool) -> None:
        assert url.startswith("https://")
        torch.jit.script(TinyI3d()).save(path)

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    assert load_features(FeaturesConfig(download=True, run_program=True))(videos).shape == (2, 12)
    assert (tmp_path / "hub" / "checkpoints" / "i3d_torchscript.pt").is_file()


def test_another_file_is_noticed(tmp_path, i3d) -> None:
    digest = load_features(i3d).digest
    load_features(FeaturesConfig(path=i3d.path, run_program=True, digest=digest[:8]))
    with pytest.raises(ValueError, match=f"digest {digest}, expected 0000"):
        load_features(FeaturesConfig(path=i3d.path, run_program=True, digest="0000"))
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match="is not the TorchScript file"):
        load_features(FeaturesConfig(path=str(tmp_path / "text.pt"), run_program=True))


def test_videomae_gives_the_mean_of_its_tokens_and_its_classes(videomae, videos) -> None:
    config = FeaturesConfig(name="videomae", path=str(videomae / "classifier"))
    extractor = load_features(config)
    assert (extractor.name, extractor.probabilities) == ("videomae-classifier", True)
    features, probabilities = extractor.both(videos)
    assert features.shape == (2, 16) and probabilities is not None
    # The same by transformers' own forward, of frames chosen and prepared here.
    frames = torch.nn.functional.interpolate(
        videos[:, :, [0, 3, 5, 8]].transpose(1, 2).flatten(0, 1),
        size=(16, 16),
        mode="bilinear",
        antialias=True,
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((frames + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    model = VideoMAEForVideoClassification.from_pretrained(videomae / "classifier").eval()
    with torch.no_grad():
        expected = model(pixels.unflatten(0, (2, 4))).logits.softmax(-1)
    torch.testing.assert_close(probabilities, expected)
    alone = load_features(FeaturesConfig(name="videomae", path=str(videomae / "alone")))
    assert alone(videos).shape == (2, 16) and not alone.probabilities
    assert alone.digest != extractor.digest


def test_videomae_without_a_weight_is_refused(videomae, tmp_path) -> None:
    for file in (videomae / "alone").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        load_features(FeaturesConfig(name="videomae", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"features\.path"):
        load_features(FeaturesConfig(name="videomae", path=str(tmp_path / "nothing")))


def test_any_function(tmp_path, monkeypatch, videos) -> None:
    (tmp_path / "someones_features.py").write_text(
        "import torch\n"
        "def colours(): return lambda video: video.mean((2, 3, 4))\n"
        "def judge(path):\n"
        "    def run(video):\n"
        "        return video.mean((2, 3, 4)), torch.eye(3)[: len(video)]\n"
        "    run.probabilities = True\n"
        "    return run\n"
        "def flat(): return lambda video: video.mean()\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    colours = load_features(FeaturesConfig(name="someones_features:colours"))
    torch.testing.assert_close(colours(videos), videos.mean((2, 3, 4)))
    assert colours.name == "someones_features:colours" and len(colours.digest) == 16
    judge = load_features(FeaturesConfig(name="someones_features:judge", path="x"))
    assert judge.probabilities and judge.both(videos)[1] is not None
    with pytest.raises(ValueError, match="one row for each video"):
        load_features(FeaturesConfig(name="someones_features:flat"))(videos)
    for name, reason in {
        "someones_features:nothing": "got int",
        "someones_features:missing": "can't be imported",
        "no_such_module:function": "can't be imported",
    }.items():
        with pytest.raises(ValueError, match=reason):
            load_features(FeaturesConfig(name=name))


def test_a_video_has_the_same_features_in_any_company(videos) -> None:
    extractor = load_features(FeaturesConfig(name=RANDOM))
    together = extractor(videos)
    assert together.shape == (2, 64) and extractor.size == 64
    torch.testing.assert_close(together[1:], extractor(videos[1:]))
    again = load_features(FeaturesConfig(name=RANDOM))
    assert torch.equal(again(videos), together) and again.digest == extractor.digest


def test_bad_input_is_named(i3d, videos) -> None:
    extractor = load_features(i3d)
    for bad in (videos[0], videos[:, :2], (videos * 100).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
            extractor(bad)
    convolutions = load_features(FeaturesConfig(name=RANDOM))
    with pytest.raises(ValueError, match="can't take videos of 9 frames, 1x1 pixels"):
        convolutions(videos[..., :1, :1])
    with pytest.raises(ValueError, match="MODULE:FUNCTION"):
        FeaturesConfig(name="i3dd")
    with pytest.raises(ValueError, match=r"features\.path"):
        FeaturesConfig(name="videomae")
    values = torch.zeros(3, 4)
    check_finite(values, ["a", "b", "c"])
    values[1, 2] = torch.nan
    with pytest.raises(ValueError, match="the features of b are not finite"):
        check_finite(values, ["a", "b", "c"])
