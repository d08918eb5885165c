from diffusion.cache import LatentCache, build_latent_loader, iterate_latents
from diffusion.config import DiTConfig, FlowConfig, LevelConfig
from diffusion.dit import TwinDiT, TwinDiTOutput
from diffusion.flow import FlowObjective
from diffusion.latent_stats import LatentStats, LatentStatsAccumulator
from diffusion.pipeline import VidTwinPipeline

__all__ = [
    "DiTConfig",
    "FlowConfig",
    "FlowObjective",
    "LatentCache",
    "LatentStats",
    "LatentStatsAccumulator",
    "LevelConfig",
    "TwinDiT",
    "TwinDiTOutput",
    "VidTwinPipeline",
    "build_latent_loader",
    "iterate_latents",
]
