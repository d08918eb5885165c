from vidtwin_lab.language.tasks.finetuning import (
    TaskModel,
    TextEncoderConfig,
    predict,
    summed_task_loss,
)
from vidtwin_lab.language.tasks.glue import GLUE_TASKS, GlueTask, find_task, read_glue
from vidtwin_lab.language.tasks.metrics import METRICS, over_seeds
from vidtwin_lab.language.tasks.prepared import (
    GlueData,
    PreparedTask,
    SquadData,
    TaskResult,
    prepare_glue,
    prepare_squad,
)
from vidtwin_lab.language.tasks.probing import (
    ProbeText,
    probe,
    text_states,
    unknown_tokens,
    word_counts,
)
from vidtwin_lab.language.tasks.reading import RowFormat, Sample, length_batches
from vidtwin_lab.language.tasks.squad import evaluate_v1, evaluate_v2, read_squad

__all__ = [
    "GLUE_TASKS",
    "METRICS",
    "GlueData",
    "GlueTask",
    "PreparedTask",
    "ProbeText",
    "RowFormat",
    "Sample",
    "SquadData",
    "TaskModel",
    "TaskResult",
    "TextEncoderConfig",
    "evaluate_v1",
    "evaluate_v2",
    "find_task",
    "length_batches",
    "over_seeds",
    "predict",
    "prepare_glue",
    "prepare_squad",
    "probe",
    "read_glue",
    "read_squad",
    "summed_task_loss",
    "text_states",
    "unknown_tokens",
    "word_counts",
]
