"""The config of each measurement; imports no torch, so that a wrong key is refused at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from diffusion.config import (
    GUIDANCE_SCALE,
    NUM_INFERENCE_STEPS,
    GuidanceScales,
)
from diffusion.guiders import parse_guider
from diffusion.inputs import check_lead
from vidtwin.config import LPIPS_NETS, AutoencoderConfig
from vidtwin.data import DataConfig, ShapesOptions
from vidtwin.data.synthetic.shapes import SPLITS, WORDINGS
from vidtwin_lab.evaluation.config import (
    CodecConfig,
    FeaturesConfig,
    VideosConfig,
    check_choice,
    check_least,
    crf_of,
)
from vidtwin_lab.evaluation.generation_protocols import PROTOCOLS

__all__ = [
    "SHOWN",
    "WINDOWS",
    "AccuracyConfig",
    "AdherenceConfig",
    "ClassifierConfig",
    "GenerationConfig",
    "ReconstructionConfig",
]

OBJECT = ("color", "shape", "motion")
JUDGED: dict[str, tuple[str, ...]] = {
    "prompt": (*OBJECT, "background"),
    "structure-from": ("color", "shape", "background"),
    "dynamics-from": ("motion",),
    "reconstruction": (*OBJECT, "background"),
}


@dataclass(frozen=True, kw_only=True)
class AdherenceConfig:
    """Which pipeline is asked for what.

    Args:
        pipeline: its folder; for the mode reconstruction an autoencoder's also does.
        output: folder for the report.
        mode: "prompt", "structure-from", "dynamics-from" or "reconstruction".
        samples: videos.
        split: of the attributes, see `vidtwin.data.synthetic.shapes`.
        wordings: of the prompts.
        max_objects: 1 or 2, half of the clips then having two.
        without_background: prompts say nothing of the background, and it isn't judged.
        sized_fraction, paced_fraction: share of the objects that are asked for small or large,
            slow or fast, as in `data.shapes`; the judge of outlines judges both.
        steps: of the sampler.
        guidance_scale: of prompts.
        given_guidance_scale: of the latent that is given; null for the pipeline's own.
        structure_lead: of prompts, see `VidTwinPipeline`; null for the pipeline's own.
        guider: of prompts, instead of guidance_scale: a name and its options, see
            `diffusion.guiders`; null for none.
        seed: of the clips, and of the first video's noise; the next ones have the next seeds.
        batch_size: videos sampled together.
    Raises:
        ValueError: for a value that is out of range.
    """

    pipeline: str = "checkpoints/shapes"
    output: str = "outputs/evaluation/adherence"
    mode: str = "prompt"
    samples: int = 256
    split: str = "test"
    wordings: str = "test"
    max_objects: int = 1
    without_background: bool = False
    sized_fraction: float = 0.0
    paced_fraction: float = 0.0
    steps: int = NUM_INFERENCE_STEPS
    guidance_scale: float = GUIDANCE_SCALE
    given_guidance_scale: float | None = None
    structure_lead: float | None = None
    guider: str | None = None
    seed: int = 0
    batch_size: int = 8

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_guidance_scale": "given_guidance_scale"}

    def __post_init__(self) -> None:
        choices = {"mode": tuple(JUDGED), "split": SPLITS, "wordings": WORDINGS}
        for name, allowed in choices.items():
            check_choice(name, getattr(self, name), allowed)
        check_least(self, samples=1, steps=1, batch_size=1, seed=0)
        GuidanceScales(self.guidance_scale)
        GuidanceScales.check("given_guidance_scale", self.given_guidance_scale)
        if self.guider is not None:
            parse_guider(self.guider)
        if self.structure_lead is not None:
            check_lead(self.structure_lead, self.steps)
        for name in ("structure_lead", "guider"):
            if getattr(self, name) is not None and self.mode != "prompt":
                raise ValueError(f"`{name}` is for mode=prompt, got mode={self.mode}")
        if self.max_objects not in (1, 2):
            raise ValueError(f"max_objects must be 1 or 2, got {self.max_objects}")
        for name in ("sized_fraction", "paced_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.without_background and self.mode != "prompt":
            raise ValueError(f"without_background is for mode=prompt, got mode={self.mode}")

    @property
    def judged(self) -> tuple[str, ...]:
        """The attributes that a video must show."""
        names = JUDGED[self.mode]
        return tuple(name for name in names if name != "background" or not self.without_background)


WINDOWS = ("one", "all")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Which autoencoder is measured on which videos, and by what.

    Args:
        autoencoder: a `save_pretrained` folder, a run folder of train_ae.py, or a released file.
        output: folder for the report.
        windows: "one" window of each video, where `data.start` says ("random" means "center"
            here), or "all" that follow each other without overlap.
        batch_size: windows per forward pass.
        num_workers: processes that read, for each process that measures.
        lpips: "vgg", "alex", "squeeze" or null for none.
        bits: of a latent value when latents are quantised, each measured; [] for none.
        dct: also measure the lowest frequencies of the same windows, as many numbers as the latents
            have.
        codec: H.264 of the same windows; null for none.
        reencode: "h264@CRF" also measures reconstructions after that encoding; null does not.
        features: of rFVD; null for none.
        resamples: of the bootstrap over videos that gives intervals; 0 for no intervals.
        distance_resamples: the same for rFVD, where each takes a matrix decomposition.
        seed: of the resamples.
        data: the videos, in the autoencoder's sizes.
    Raises:
        ValueError: for a value that is out of range.
    """

    autoencoder: str = "checkpoints/shapes/autoencoder"
    output: str = "outputs/evaluation/reconstruction"
    windows: str = "one"
    batch_size: int = 8
    num_workers: int = 1
    lpips: str | None = "vgg"
    bits: tuple[int, ...] = (8, 6, 4)
    dct: bool = True
    codec: CodecConfig | None = CodecConfig()
    reencode: str | None = None
    features: FeaturesConfig | None = None
    resamples: int = 1000
    distance_resamples: int = 100
    seed: int = 0
    data: DataConfig = DataConfig(part="validation")

    def __post_init__(self) -> None:
        check_choice("windows", self.windows, WINDOWS)
        check_least(self, batch_size=1, num_workers=0, resamples=0, distance_resamples=0, seed=0)
        check_choice("lpips", self.lpips, LPIPS_NETS, or_null=True)
        if not all(1 <= bits <= 8 for bits in self.bits) or len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits must be numbers from 1 to 8, each once, got {list(self.bits)}")
        crf_of(self.reencode)

    def data_for(self, sizes: AutoencoderConfig) -> DataConfig:
        """The videos in the autoencoder's sizes, with nothing random in them."""
        data = self.data.sized(*sizes.video_shape[1:])
        start = "center" if data.start == "random" else data.start
        return replace(data, start=start, crop="center", flip=False)


METRICS = ("fvd", "kvd", "is", "fvd_per_class")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One comparison of generated with real videos.

    Args:
        output: folder of the report.
        data: the real videos; sizes that are left at their defaults follow the pipeline's.
        generated: the videos that are measured.
        features: of FVD and KVD.
        classifier: gives the class probabilities of the inception score; None takes `features`.
        metrics: of "fvd", "kvd", "is" and "fvd_per_class".
        num_videos: generated videos.
        num_real: real videos; null for all that the data set has.
        allow_few: accept fewer than 2,048, and write n into the names: FVD@512.
        protocol: name of a published protocol to compare with, see `PROTOCOLS`.
        batch_size: videos at once, on each process.
        threads: that read files, in each process.
        seed: of the choice of real clips and of the resamples.
        bootstrap: resamples for intervals; 0 for none.
        kvd_subset_size: None measures KVD on all pairs; else KID's habit, its mean over
            `kvd_subsets` random subsets of that many.
        kvd_subsets: how many.
        is_splits: parts of the inception score.
        eight_bit: round values to 8 bits before they are measured, as most published codes do.
        reencode: also measure the generated videos after a codec, "h264@23": H.264 at that CRF.
        cache: folder for features and statistics of real videos; null for none.
    """

    output: str = "outputs/evaluation/generation"
    data: DataConfig = DataConfig()
    generated: VideosConfig = field(default_factory=lambda: VideosConfig(path="checkpoints/shapes"))
    features: FeaturesConfig = FeaturesConfig()
    classifier: FeaturesConfig | None = None
    metrics: tuple[str, ...] = ("fvd", "kvd")
    num_videos: int = 2048
    num_real: int | None = 2048
    allow_few: bool = False
    protocol: str | None = None
    batch_size: int = 16
    threads: int = 2
    seed: int = 0
    bootstrap: int = 100
    kvd_subset_size: int | None = None
    kvd_subsets: int = 100
    is_splits: int = 10
    eight_bit: bool = False
    reencode: str | None = None
    cache: str | None = "outputs/evaluation/real_statistics"

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(
                f"metrics must be some of {', '.join(METRICS)}; got {list(self.metrics)}"
            )
        check_least(self, num_videos=1, num_real=1, batch_size=1, threads=1, is_splits=1)
        check_least(self, kvd_subsets=1, seed=0, bootstrap=0)
        check_choice("protocol", self.protocol, PROTOCOLS, or_null=True)
        if self.features.name == "c3d":
            raise ValueError(
                "c3d gives class probabilities alone: set classifier.name=c3d for the inception "
                "score, and features.name to i3d, videomae or MODULE:FUNCTION"
            )
        if self.features.name == "i3d" and self.classifier is None and "is" in self.metrics:
            raise ValueError(
                "an inception score needs classes: set classifier.name=c3d (UCF-101's protocol), "
                "or a VideoMAE classifier or MODULE:FUNCTION that gives probabilities"
            )
        crf_of(self.reencode)

    @property
    def keeps_features(self) -> bool:
        """Whether the features of all videos are kept: a Fréchet distance alone needs none."""
        return self.metrics != ("fvd",) or self.bootstrap > 0


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A training of the judge.

    Args:
        output: folder of the results; the classifier is saved in its folder "classifier".
        data: the training clips; num_frames, height and width of them are the classifier's.
        test_part: of the data, that it is tested on: "test" for sprites, whose characters it then
            has never seen, "validation" for the others.
        test_clips: the first n alone; null for all.
        steps, batch_size: of the training.
        learning_rate: the highest; it rises for a tenth of the steps, then falls to zero.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to.
        noise: the highest standard deviation of the Gaussian noise that a training clip gets, of
            pixels in [-1, 1]: a judge of decoded videos must not hang on single pixels.
        channels, hidden_size, dropout: see `VideoClassifier`.
        num_workers: processes that read.
        seed: of the weights, of the order of the clips and of the noise.
        log_every: steps between two lines of the log.
    """

    output: str = "outputs/evaluation/classifier"
    data: DataConfig = DataConfig(
        num_frames=16, height=64, width=64, sections={"shapes": ShapesOptions(max_objects=1)}
    )
    test_part: str = "validation"
    test_clips: int | None = None
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    noise: float = 0.1
    channels: tuple[int, ...] = (32, 64, 128)
    hidden_size: int = 256
    dropout: float = 0.1
    num_workers: int = 0
    seed: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch_size=1, hidden_size=1, log_every=1, test_clips=1)
        for name in ("noise", "weight_decay", "seed", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        _ = self.test_data  # its checks

    @property
    def test_data(self) -> DataConfig:
        """The held-out clips, with nothing random in them."""
        return replace(self.data.centered(), part=self.test_part, max_clips=self.test_clips)


# Which groups of a clip's factors each kind of video must show; "generated" is told by its label
# or its prompt.
SHOWN: dict[str, tuple[str, ...]] = {
    "real": ("content", "motion"),
    "reconstruction": ("content", "motion"),
    "swap": ("content", "motion"),
    "dynamics": ("motion",),
    "structure": ("content",),
}
VIDEOS = (*SHOWN, "generated")


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Which videos are judged, and by which classifier.

    Args:
        output: folder of the report.
        classifier: folder of a saved `VideoClassifier`, see evaluate.py classifier.
        data: clips with labels; their size follows the classifier's. Use clips that neither the
            model nor the classifier was trained on.
        videos: "real", the clips themselves: what the classifier can do at best;
            "reconstruction", through an autoencoder;
            "swap", the dynamics of each clip with the structure of another;
            "dynamics", the dynamics of each clip with a structure that a pipeline samples, which
            is the published way of measuring Sprites; "structure", the other way round;
            "generated", see `generated`.
        model: the autoencoder, or for dynamics and structure the pipeline.
        generated: samples of a pipeline by class or caption of the data, or a folder of them.
        number: how many videos; null for all clips of the data.
        batch_size: videos at once, on each process.
        num_inference_steps, given_guidance_scale: of a pipeline that is given one of the latents;
            null for the pipeline's own scale.
        seed: of the order of the clips; a sampled video i has the noise of seed + i.
        threads: that read files, in each process.
    Raises:
        ValueError: for a value that is out of range, or a model that is missing.
    """

    output: str = "outputs/evaluation/accuracy"
    classifier: str = "outputs/evaluation/classifier/classifier"
    data: DataConfig = DataConfig(
        part="validation", sections={"shapes": ShapesOptions(max_objects=1)}
    )
    videos: str = "real"
    model: str | None = None
    generated: VideosConfig = field(default_factory=lambda: VideosConfig(path="checkpoints/shapes"))
    number: int | None = None
    batch_size: int = 32
    num_inference_steps: int = NUM_INFERENCE_STEPS
    given_guidance_scale: float | None = None
    seed: int = 0
    threads: int = 1

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_guidance_scale": "given_guidance_scale"}

    def __post_init__(self) -> None:
        check_choice("`videos`", self.videos, VIDEOS)
        check_least(self, batch_size=1, num_inference_steps=1, threads=1, number=1, seed=0)
        GuidanceScales.check("given_guidance_scale", self.given_guidance_scale)
        needs_model = self.videos not in ("real", "generated")
        if needs_model != (self.model is not None):
            what = "a pipeline" if self.videos in ("dynamics", "structure") else "an autoencoder"
            wanted = f"must name {what}" if needs_model else "has no part in it: leave it null"
            raise ValueError(f"videos={self.videos}: `model` {wanted}, got {self.model!r}")
