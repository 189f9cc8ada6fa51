"""Training from a configuration: the Trainer, its checkpoints, its ladder."""

from auxin.training.checkpoint import Checkpoint
from auxin.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TargetConfig,
    TrainConfig,
    load_config,
    make_parser,
)
from auxin.training.folder import RunFolder
from auxin.training.ladder import Rung, load_model, rungs
from auxin.training.result import Phase, Result
from auxin.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "DataConfig",
    "GrowthConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Phase",
    "Result",
    "RunConfig",
    "RunFolder",
    "Rung",
    "ScheduleConfig",
    "TargetConfig",
    "TrainConfig",
    "Trainer",
    "load_config",
    "load_model",
    "make_parser",
    "rungs",
]
