"""What every script of the project runs on: config, run folder, checkpoints, EMA, trackers.

Knows no model and imports no other package of the project.
"""

from vidtwin_lab.runtime.checkpoints import CheckpointFolder, RunFolder, find_checkpoint
from vidtwin_lab.runtime.command import configure_logging, parse_arguments, run_main
from vidtwin_lab.runtime.config import (
    ConfigError,
    config_to_dict,
    flatten,
    format_config,
    load_config,
    read_yaml,
    save_config,
)
from vidtwin_lab.runtime.processes import (
    add_share,
    export_weights,
    gather_rows,
    mean_over_processes,
    replace_weights,
    resume,
    sync_on_last,
)
from vidtwin_lab.runtime.run import (
    RunConfig,
    check_launched_precision,
    check_precision,
    start_run,
    start_trackers,
)
from vidtwin_lab.runtime.trackers import TRACKERS, Trackers, build_trackers
from vidtwin_lab.runtime.training import (
    EMAConfig,
    NonFiniteError,
    NonFiniteGuard,
    OptimizerConfig,
    StepTimer,
    build_ema,
    build_optimizer,
    build_scheduler,
    clip_gradients,
    compiled,
    ema_weights,
    learning_rate_at,
    memory_gib,
    progress_bar,
    seed_step,
)

__all__ = [
    "TRACKERS",
    "CheckpointFolder",
    "ConfigError",
    "EMAConfig",
    "NonFiniteError",
    "NonFiniteGuard",
    "OptimizerConfig",
    "RunConfig",
    "RunFolder",
    "StepTimer",
    "Trackers",
    "add_share",
    "build_ema",
    "build_optimizer",
    "build_scheduler",
    "build_trackers",
    "check_launched_precision",
    "check_precision",
    "clip_gradients",
    "compiled",
    "config_to_dict",
    "configure_logging",
    "ema_weights",
    "export_weights",
    "find_checkpoint",
    "flatten",
    "format_config",
    "gather_rows",
    "learning_rate_at",
    "load_config",
    "mean_over_processes",
    "memory_gib",
    "parse_arguments",
    "progress_bar",
    "read_yaml",
    "replace_weights",
    "resume",
    "run_main",
    "save_config",
    "seed_step",
    "start_run",
    "start_trackers",
    "sync_on_last",
]
