from vidtwin_lab.evaluation.videos.building import build_generated, build_real
from vidtwin_lab.evaluation.videos.config import VideosConfig, model_sizes
from vidtwin_lab.evaluation.videos.data_set import DataVideos
from vidtwin_lab.evaluation.videos.sample_folders import FolderVideos, LatentVideos
from vidtwin_lab.evaluation.videos.samples import PipelineVideos
from vidtwin_lab.evaluation.videos.sources import Video, VideoSource, check_number, iterate_videos

__all__ = [
    "DataVideos",
    "FolderVideos",
    "LatentVideos",
    "PipelineVideos",
    "Video",
    "VideoSource",
    "VideosConfig",
    "build_generated",
    "build_real",
    "check_number",
    "iterate_videos",
    "model_sizes",
]
