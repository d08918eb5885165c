"""The laws of the reconstruction's measurement, on tiny models and short clips.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import vidtwin_lab.evaluation.reconstruction_windows as meter
from vidtwin import VidTwinAutoencoder
from vidtwin.data import DataConfig, TooManyBadFiles, build_dataset
from vidtwin.data.frames import consecutive_windows, frames_by_stride, frames_by_time
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.media import write_video
from vidtwin.metrics import blockiness, mean_measures, measure_reconstructions, psnr, ssim
from vidtwin_lab.evaluation import Processes, adherence, write_report
from vidtwin_lab.evaluation.adherence import measure as measure_adherence
from vidtwin_lab.evaluation.config import CodecConfig, FeaturesConfig
from vidtwin_lab.evaluation.cosines import lowest_frequencies
from vidtwin_lab.evaluation.features import load_features
from vidtwin_lab.evaluation.measurement_configs import AdherenceConfig, ReconstructionConfig
from vidtwin_lab.evaluation.reconstruction import describe, measure
from vidtwin_lab.evaluation.statistics import GaussianStatistics, frechet_distance
from vidtwin_lab.evaluation.windows import Window, iterate_windows, list_windows

FRAMES, HEIGHT, WIDTH = 4, 16, 24
FEATURES = FeaturesConfig(name="vidtwin_lab.evaluation.features:random_convolutions", path="8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model with weights away from special values, and its folder."""
    torch.manual_seed(0)
    model = VidTwinAutoencoder(
        num_frames=FRAMES, height=HEIGHT, width=WIDTH, patch_size=(1, 4, 4), hidden_size=16,
        encoder_depth=1, decoder_depth=1, encoder_heads=2, decoder_heads=2, num_queries=2,
        query_hidden_size=8, query_layers=2, query_heads=2, query_intermediate_size=16,
        structure_base_channels=8, structure_channels=3, dynamics_channels=2,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder = tmp_path_factory.mktemp("model") / "autoencoder"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 14, 9, 3 (too short) and 5 frames, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    shapes = MovingShapes(ShapesConfig(num_frames=14, height=20, width=28))
    for index, length in enumerate((14, 9, 3, 5)):
        write_video(folder / f"clip{index}.mp4", shapes.clip(index).video[:length], 8.0)
    (folder / "clip9.mp4").write_text("not a video")
    return folder


def config(folder, **changes) -> ReconstructionConfig:
    settings = {
        "autoencoder": str(folder),
        "lpips": None,
        "batch_size": 3,
        "num_workers": 0,
        "codec": CodecConfig(crfs=(10, 51)),
        "resamples": 50,
        "data": DataConfig(part="validation", max_clips=5),
    }
    return ReconstructionConfig(**settings | changes)


def files(clips, **changes) -> DataConfig:
    settings = {"source": "folder", "path": str(clips), "part": "all", "fps": None, "stride": 1}
    return DataConfig(**settings | {"max_bad_fraction": 0.5} | changes)


class TestWindows:
    def test_first_of_all_windows_is_the_first_window(self) -> None:
        timestamps = np.cumsum(np.r_[0, np.random.default_rng(0).uniform(0.02, 0.06, 99)])
        duration = timestamps[-1] + 0.04
        for stride in (1, 3):
            windows = consecutive_windows(timestamps, duration, 7, None, stride)
            assert (windows[0] == frames_by_stride(100, 7, stride, 0.0)).all()
            assert (np.diff(windows.ravel()) == stride).all()
            assert len(windows) == math.ceil(100 / stride) // 7
        for fps in (6.0, 60.0):
            windows = consecutive_windows(timestamps, duration, 7, fps, None)
            assert (windows[0] == frames_by_time(timestamps, duration, 7, fps, 0.0)).all()
            assert (np.diff(windows.ravel()) >= 0).all()
            assert len(windows) == int((duration - 0.02) * fps + 1) // 7
        assert consecutive_windows(timestamps[:6], 0.3, 7, None, 1).shape == (0, 7)

    def test_every_frame_is_measured_once(self, clips) -> None:
        data = replace(files(clips), num_frames=FRAMES, height=HEIGHT, width=WIDTH)
        dataset = build_dataset(data)
        windows, skipped = list_windows(dataset, "all", Processes())
        # 14 frames have three windows, 9 two, 5 one; 3 frames are left to the data set.
        assert windows == [
            Window(0, 0), Window(0, 1), Window(0, 2), Window(1, 0), Window(1, 1),
            Window(2), Window(3, 0),
        ]  # fmt: skip
        assert [item.reason for item in skipped] == [skipped[0].reason]
        assert skipped[0].path.endswith("clip9.mp4")
        batches = list(iterate_windows(dataset, windows, 2, Processes()))
        seen = [
            tuple(frames) for b in batches if "video" in b for frames in b["frame_indices"].tolist()
        ]
        assert seen == [(k, k + 1, k + 2, k + 3) for k in (0, 4, 8, 0, 4, 0)]
        reasons = [item for batch in batches for item in batch["skipped"]]
        assert [item.reason.split(":")[0] for item in reasons] == ["too short"]

    def test_processes_share_the_windows(self, clips) -> None:
        data = replace(files(clips), num_frames=FRAMES, height=HEIGHT, width=WIDTH)
        dataset = build_dataset(data)
        windows, _ = list_windows(dataset, "all", Processes())
        whole = [b["index"].tolist() for b in iterate_windows(dataset, windows, 2, Processes())]
        parts = [
            [b["index"].tolist() for b in iterate_windows(dataset, windows, 2, processes)]
            for processes in (Processes(rank=0, count=2), Processes(rank=1, count=2))
        ]
        assert parts == [whole[0::2], whole[1::2]]


class TestMeasure:
    def test_agrees_with_the_validation_of_training(self, model) -> None:
        network, folder = model
        settings = config(folder, codec=None, bits=())
        report = measure(settings, Processes())
        dataset = build_dataset(settings.data_for(network.sizes))
        batch = torch.stack([dataset.get(index)["video"] for index in range(5)])
        rows, _ = measure_reconstructions(network, [{"video": batch, "index": torch.arange(5)}])
        means = mean_measures(rows)
        for name in ("psnr", "ssim"):
            assert report.found["both"][name]["value"] == pytest.approx(means[name], rel=1e-5)
            for (_, expected), row in zip(rows, report.rows, strict=True):
                assert row[name] == pytest.approx(expected[name], rel=1e-5)
        alone = network.decode(network.encode(batch).mode(), "structure").detach()
        expected = psnr(batch, alone).mean().item()
        assert report.found["structure_only"]["psnr"]["value"] == pytest.approx(expected, rel=1e-5)
        assert report.found["not_measured"] == {"lpips": "off"}
        assert report.found["both"]["lpips"] is None
        assert report.found["compression_rate"] == network.compression_rate

    def test_a_video_is_the_mean_of_its_windows(self, model, clips) -> None:
        report = measure(config(model[1], windows="all", data=files(clips)), Processes())
        assert [(row["index"], row["windows"]) for row in report.rows] == [(0, 3), (1, 2), (3, 1)]
        assert report.found["windows"] == 6
        # Not the mean over windows: a long video counts as much as a short one.
        values = [row["psnr"] for row in report.rows]
        assert report.found["both"]["psnr"]["value"] == pytest.approx(np.mean(values))
        assert report.found["both"]["psnr"]["n"] == 3
        assert [item["path"].rpartition("/")[2] for item in report.skipped] == [
            "clip2.mp4", "clip9.mp4",
        ]  # fmt: skip
        assert report.protocol["readers_used"] == sorted({row["reader"] for row in report.rows})
        assert report.protocol["n"] == 3

    def test_sizes_and_qualities_of_the_latents_and_of_the_codec(self, model) -> None:
        network, folder = model
        report = measure(config(folder, reencode="h264@12"), Processes())
        pixels = FRAMES * HEIGHT * WIDTH
        plain = network.sizes.numel_per_clip * 8 + 64 * (3 + 2 + 2)
        for row in report.rows:
            assert row["bpp_8bit"] == pytest.approx(plain / pixels)
            assert row["psnr_8bit"] == pytest.approx(row["psnr"], abs=0.1)
            assert row["bpp_4bit"] < row["bpp_6bit"] < row["bpp_8bit"]
            assert row["bpp_h264_yuv444p_crf10"] > row["bpp_h264_yuv444p_crf51"]
            assert row["psnr_h264_yuv444p_crf10"] > row["psnr_h264_yuv444p_crf51"]
            assert row["psnr_reencoded"] == pytest.approx(row["psnr"], abs=3.0)
        codec = report.found["h264"]["yuv420p"]
        assert [point["crf"] for point in codec["curve"]] == [10, 51]
        at = codec["at_the_size_of"]["8bit"]
        assert at["videos_below_the_curve"] + at["videos_above_the_curve"] + at["psnr"]["n"] == 5
        assert at["psnr"]["n"] == at["latents_ahead_by"]["psnr"]["n"]
        known = [row for row in report.rows if row["psnr_h264_yuv420p_at_8bit"] is not None]
        ahead = [row["psnr_8bit"] - row["psnr_h264_yuv420p_at_8bit"] for row in known]
        if known:
            assert at["latents_ahead_by"]["psnr"]["value"] == pytest.approx(np.mean(ahead))

    def test_as_many_lowest_frequencies_stand_beside_it_by_default(self, model) -> None:
        network, folder = model
        report = measure(config(folder, codec=None, bits=()), Processes())
        dataset = build_dataset(config(folder).data_for(network.sizes))
        video = torch.stack([dataset.get(index)["video"] for index in range(5)])
        plain = lowest_frequencies(video, network.sizes.numel_per_clip)
        found = report.found["dct"]
        assert found["psnr"]["value"] == pytest.approx(psnr(video, plain).mean().item(), rel=1e-6)
        gaps = [row["psnr"] - row["psnr_dct"] for row in report.rows]
        assert found["psnr_latents_ahead_by"]["value"] == pytest.approx(np.mean(gaps))
        assert dict(report.markdown)["PSNR DCT, as many values"].startswith(
            f"{found['psnr']['value']:.2f} ("
        )
        with_codec = measure(config(folder), Processes())
        assert "PSNR H.264 yuv420p at that size" in dict(with_codec.markdown)
        assert "dct" not in measure(config(folder, dct=False, codec=None), Processes()).found

    def test_seams_between_patches_are_measured(self, model) -> None:
        network, folder = model
        report = measure(config(folder, codec=None, bits=()), Processes())
        dataset = build_dataset(config(folder).data_for(network.sizes))
        video = torch.stack([dataset.get(index)["video"] for index in range(5)])
        made = network(video).reconstruction.detach()
        for name, frames in (("blockiness", made), ("blockiness_original", video)):
            expected = blockiness(frames, network.sizes.patch_size[1:])
            assert report.found[name]["value"] == pytest.approx(expected.mean().item(), rel=1e-4)

    def test_rfvd_is_the_distance_of_the_windows_features(self, model) -> None:
        network, folder = model
        settings = config(folder, codec=None, bits=(), features=FEATURES, distance_resamples=20)
        report = measure(settings, Processes())
        dataset = build_dataset(settings.data_for(network.sizes))
        batch = torch.stack([dataset.get(index)["video"] for index in range(5)])
        extractor = load_features(FEATURES)
        with torch.no_grad():
            made = network.decode(network.encode(batch).mode())
        sides = [GaussianStatistics.of(extractor(video).numpy()) for video in (batch, made)]
        found = report.found["rfvd"]
        assert found["value"] == pytest.approx(frechet_distance(*sides), rel=1e-4)
        assert found["name"].startswith("rFVD@5[")
        assert found["low"] <= found["value"] <= found["high"]
        assert report.protocol["features"]["digest"] == extractor.digest

    def test_small_frames_have_no_ssim_and_the_report_says_why(self, tmp_path) -> None:
        torch.manual_seed(0)
        small = VidTwinAutoencoder(
            num_frames=2, height=8, width=8, patch_size=(1, 4, 4), hidden_size=16,
            encoder_depth=1, decoder_depth=1, encoder_heads=2, decoder_heads=2, num_queries=2,
            query_hidden_size=8, query_layers=1, query_heads=2, query_intermediate_size=16,
            structure_base_channels=4, structure_channels=2, dynamics_channels=2,
        )  # fmt: skip
        small.save_pretrained(tmp_path / "small")
        folder = tmp_path / "clips"
        for index in range(2):
            frames = np.full((4, 16, 16, 3), 40 * index, np.uint8)
            write_video(folder / f"{index}.mp4", frames, 8.0)
        report = measure(config(tmp_path / "small", data=files(folder)), Processes())
        assert report.found["both"]["ssim"] is None
        assert "at least 11x11 pixels, got 8x8" in report.found["not_measured"]["ssim"]
        assert not any(name.startswith("ssim") for name in report.rows[0])
        write_report(report, tmp_path / "out")
        content = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
        assert content["found"]["quantized"]["8_bit"]["ssim"] is None

    def test_lpips_that_can_not_be_had_is_null_with_its_reason(self, model, monkeypatch) -> None:
        def refuse(net: str):
            raise ValueError("LPIPS needs weights: put them into /some/folder of this machine")

        monkeypatch.setattr(meter, "Lpips", refuse)
        report = measure(config(model[1], lpips="alex", codec=None, bits=()), Processes())
        assert report.found["both"]["lpips"] is None
        reason = report.found["not_measured"]["lpips"]
        assert reason == "the weights of the net alex could not be loaded"

    def test_a_model_that_overflows_is_named_with_the_video(self, model, tmp_path) -> None:
        network = VidTwinAutoencoder.from_pretrained(model[1])
        with torch.no_grad():
            next(network.parameters()).fill_(math.nan)
        network.save_pretrained(tmp_path / "broken")
        with pytest.raises(ValueError, match=r"reconstructions of shapes/test/0/0.* not finite"):
            measure(config(tmp_path / "broken"), Processes())

    def test_too_many_bad_files_stop_it(self, model, clips) -> None:
        with pytest.raises(TooManyBadFiles, match=r"2 of 5 files can't be used"):
            measure(config(model[1], data=files(clips, max_bad_fraction=0.1)), Processes())

    def test_files_are_written(self, model, clips, tmp_path) -> None:
        report = measure(config(model[1], data=files(clips), windows="all"), Processes())
        write_report(report, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            f"reconstruction.{ending}" for ending in ("json", "csv", "png", "examples.png", "md")
        }
        rows = list(csv.DictReader((tmp_path / "reconstruction.csv").open()))
        assert len(rows) == 3
        protocol = json.loads((tmp_path / "reconstruction.json").read_text())["protocol"]
        assert {
            "metric", "part", "n", "resolution", "frames", "stride", "fps", "start", "crop",
            "reader", "features", "seed", "posterior", "dtype", "checkpoint", "weights_digest",
            "software",
        } <= set(protocol)  # fmt: skip


def test_the_lowest_frequencies_of_a_video() -> None:
    video = torch.rand(
        2, 3, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(lowest_frequencies(video, 3 * 4 * 6 * 8), video, atol=1e-12)
    means = video.mean((2, 3, 4), keepdim=True).expand_as(video)
    assert torch.allclose(lowest_frequencies(video, 3), means, atol=1e-12)
    # One more coefficient is the red channel's slowest wave along the longest axis.
    more = lowest_frequencies(video, 4) - means
    assert more[:, 0].abs().max() > 0 and not more[:, 1:].abs().max() > 1e-12
    assert torch.allclose(more[:, 0], more[:, 0, :1, :1].expand_as(more[:, 0]), atol=1e-12)
    # A projection: the error falls with every coefficient.
    errors = [(lowest_frequencies(video, k) - video).square().sum() for k in (3, 30, 200, 500)]
    assert errors == sorted(errors, reverse=True)
    with pytest.raises(ValueError, match="`values` must be from 1 to 576, got 577"):
        lowest_frequencies(video, 577)


def test_blockiness_is_one_without_seams() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 4, 64, 48, generator=generator) * 2 - 1
    assert blockiness(noise, (8, 8)).tolist() == pytest.approx([1, 1], abs=0.03)
    assert blockiness(torch.zeros_like(noise), (8, 8)).tolist() == [1, 1]
    blocks = noise[..., ::8, ::8].repeat_interleave(8, -2).repeat_interleave(8, -1)
    assert (blockiness(blocks, (8, 8)) > 1e4).all()
    assert (blockiness(blocks[..., 4:, 4:], (8, 8)) < 0.01).all()
    # The mean of two directions: a seam in one of them still shows.
    assert (blockiness(noise * 0.1 + blocks, (8, 8)) > 4).all()
    with pytest.raises(ValueError, match="patches of 2 pixels or more, two along"):
        blockiness(noise, (64, 8))


def test_ssim_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 2, 18, 23, generator=generator) * 2 - 1
    other = (video + 0.3 * torch.randn(video.shape, generator=generator)).clamp(-1, 1)
    frames = [((one[0].double() + 1) / 2).transpose(0, 1) for one in (other, video)]
    _, everywhere = structural_similarity_index_measure(
        *frames, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    inside = everywhere[..., 5:-5, 5:-5].mean().item()
    assert ssim(video, other).item() == pytest.approx(inside, rel=1e-12)


def test_describe_says_the_sizes_and_measures_nothing(model) -> None:
    plan = describe(config(model[1]))
    assert plan["videos"] == 5
    assert plan["window"] == [FRAMES, HEIGHT, WIDTH]
    values = model[0].sizes.numel_per_clip
    expected = (values * 8 + 64 * 7) / (FRAMES * HEIGHT * WIDTH)
    assert plan["bits_per_pixel"]["8_bit"] == pytest.approx(expected)


def test_nothing_is_random_in_what_is_measured(model) -> None:
    data = config(model[1]).data_for(model[0].sizes)
    assert (data.start, data.crop, data.flip) == ("center", "center", False)
    first = config(model[1], data=DataConfig(start="first")).data_for(model[0].sizes)
    assert first.start == "first"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": "some"}, "windows must be one of one, all"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"resamples": -1}, "`resamples` must be at least 0"),
        ({"lpips": "resnet"}, "lpips must be one of vgg, alex, squeeze, or null"),
        ({"bits": (8, 8)}, "each once"),
        ({"bits": (9,)}, "from 1 to 8"),
        ({"reencode": "h264"}, "reencode must be h264@CRF"),
        ({"reencode": "h264@52"}, "reencode must be h264@CRF"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        ReconstructionConfig(**changes)


class TestAdherence:
    """Of the autoencoder alone; pipelines are the integration tests'."""

    def test_two_shares_make_the_whole(self, model, tmp_path) -> None:
        settings = AdherenceConfig(
            pipeline=str(model[1]), mode="reconstruction", samples=5, batch_size=2
        )
        whole = measure_adherence(settings, Processes())
        rows: list[dict] = []
        for rank in range(2):
            gathered: list[dict] = []

            def gather(mine, gathered=gathered):
                gathered += mine
                return mine

            measure_adherence(settings, Processes(rank=rank, count=2, gather=gather))
            rows += [record["row"] for record in gathered]
        assert sorted(rows, key=lambda row: row["index"]) == whole.rows
        shares = whole.found["all_videos"]
        right = sum(row["all"] for row in whole.rows)
        assert shares["all"]["value"] == right / 5
        assert set(shares) == {"color", "shape", "motion", "background", "all", "number"}
        names = {path.name for path in write_report(whole, tmp_path)}
        assert {"adherence.json", "adherence.csv", "adherence.md", "adherence.png"} <= names
        # A random model shows nothing of what it got.
        assert "adherence.failures.png" in names

    def test_outlines_are_judged_beside_the_pixels(self, model, monkeypatch) -> None:
        """Of videos that show what was asked for, sizes, speeds and two objects among them."""
        monkeypatch.setattr(
            adherence, "make_videos", lambda config, loaded, clips, seeds: [c.video for c in clips]
        )
        settings = AdherenceConfig(
            pipeline=str(model[1]), mode="reconstruction", samples=8, max_objects=2,
            sized_fraction=0.9, paced_fraction=0.9, wordings="train", split="train", seed=6,
        )  # fmt: skip
        network = VidTwinAutoencoder.from_pretrained(model[1])
        sizes = replace(network.sizes, num_frames=16, height=64, width=64)
        loaded = adherence.Loaded(None, network)
        monkeypatch.setattr(network, "sizes", sizes)
        monkeypatch.setattr(adherence, "load", lambda config, device="cpu": loaded)
        found = measure_adherence(settings, Processes()).found["outlines"]
        for name in ("color", "shape", "motion", "background", "size", "speed", "all"):
            assert found[name]["value"] == 1, name
        assert found["color"]["n"] == 8 and 0 < found["size"]["n"] <= 8
        assert found["each_object_of_two"]["all"]["value"] == 1
        assert found["each_object_of_two"]["all"]["n"] % 2 == 0
        assert found["overlap"]["value"] > 0.95 and found["flicker"]["value"] < 0.05

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sized_fraction": 1.1}, r"sized_fraction must lie in \[0, 1\], got 1.1"),
            ({"mode": "swap"}, "mode must be one of prompt, structure-from"),
            ({"samples": 0}, "`samples` must be at least 1"),
            ({"max_objects": 3}, "max_objects must be 1 or 2"),
            ({"mode": "dynamics-from", "without_background": True}, "is for mode=prompt"),
        ],
    )
    def test_bad_settings_are_refused(self, changes, message) -> None:
        with pytest.raises(ValueError, match=message):
            AdherenceConfig(**changes)

    def test_a_folder_that_is_no_pipeline(self, tmp_path) -> None:
        with pytest.raises(ValueError, match=r"no pipeline: expected .*model_index.json"):
            measure_adherence(AdherenceConfig(pipeline=str(tmp_path)), Processes())

    def test_what_a_prompt_leaves_out_is_not_judged(self) -> None:
        assert "background" not in AdherenceConfig(without_background=True).judged
