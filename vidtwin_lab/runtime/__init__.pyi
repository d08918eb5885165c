from vidtwin_lab.runtime.arguments import (
    ArgumentParser,
    RenamedOption,
    parse_arguments,
    read_config,
)
from vidtwin_lab.runtime.checkpoints import (
    CheckpointFolder,
    DamagedCheckpointError,
    RunFolder,
    find_checkpoint,
)
from vidtwin_lab.runtime.command import (
    configure_logging,
    read_training_config,
    refuse_several_processes,
    run_main,
)
from vidtwin_lab.runtime.config import (
    ConfigError,
    config_to_dict,
    flatten,
    format_config,
    load_config,
    read_yaml,
    save_config,
)
from vidtwin_lab.runtime.devices import usable_device
from vidtwin_lab.runtime.optimizers import (
    build_optimizer,
    learning_rate_at,
    learning_rate_schedule,
    set_learning_rate,
)
from vidtwin_lab.runtime.processes import (
    add_share,
    gather_rows,
    lock_folders,
    mean_over_processes,
    replace_weights,
    resume,
    sync_on_last,
    write_frozen,
)
from vidtwin_lab.runtime.progress import tell_progress
from vidtwin_lab.runtime.run import TrainingRun, check_launched_precision
from vidtwin_lab.runtime.run_config import (
    TRACKERS,
    EMAConfig,
    NonFiniteError,
    OptimizerConfig,
    RunConfig,
    check_precision,
)
from vidtwin_lab.runtime.sample_arguments import adapters_of, guidance_of, parse_sample_arguments
from vidtwin_lab.runtime.sample_folder import SampleFolder, new_sample_folder
from vidtwin_lab.runtime.sharding import start_accelerator
from vidtwin_lab.runtime.trackers import Trackers, build_trackers
from vidtwin_lab.runtime.training import (
    BufferGuard,
    NonFiniteGuard,
    StepTimer,
    build_ema,
    clip_gradients,
    compiled,
    ema_weights,
    memory_gib,
    progress_bar,
    seed_step,
)

__all__ = [
    "TRACKERS",
    "ArgumentParser",
    "BufferGuard",
    "CheckpointFolder",
    "ConfigError",
    "DamagedCheckpointError",
    "EMAConfig",
    "NonFiniteError",
    "NonFiniteGuard",
    "OptimizerConfig",
    "RenamedOption",
    "RunConfig",
    "RunFolder",
    "SampleFolder",
    "StepTimer",
    "Trackers",
    "TrainingRun",
    "adapters_of",
    "add_share",
    "build_ema",
    "build_optimizer",
    "build_trackers",
    "check_launched_precision",
    "check_precision",
    "clip_gradients",
    "compiled",
    "config_to_dict",
    "configure_logging",
    "ema_weights",
    "find_checkpoint",
    "flatten",
    "format_config",
    "gather_rows",
    "guidance_of",
    "learning_rate_at",
    "learning_rate_schedule",
    "load_config",
    "lock_folders",
    "mean_over_processes",
    "memory_gib",
    "new_sample_folder",
    "parse_arguments",
    "parse_sample_arguments",
    "progress_bar",
    "read_config",
    "read_training_config",
    "read_yaml",
    "refuse_several_processes",
    "replace_weights",
    "resume",
    "run_main",
    "save_config",
    "seed_step",
    "set_learning_rate",
    "start_accelerator",
    "sync_on_last",
    "tell_progress",
    "usable_device",
    "write_frozen",
]
