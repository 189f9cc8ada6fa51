"""What a run is: one dataclass per part, read from YAML and the command line by jsonargparse.

A long file: most of it documents fields, and that text is the command line's help.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from auxin.budgets import parse_number
from auxin.errors import ConfigError
from auxin.planned import Planned, Step
from auxin.similarity import Similarity
from auxin.training.yaml_file import read_yaml


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


def _whole(name: str, value: int | str) -> int:
    number = parse_number(str(value))
    _require(math.isfinite(number), f"{name} is {value}: give a smaller number.")
    return round(number)


@dataclass
class DataConfig:
    """Which images to learn from, and how they are varied.

    Attributes:
        source: "digits" (embedded), a Hugging Face hub name, or a local folder of parquet files or images.
        val_fraction: Share of the training images held out for validation, 0 to 1.
        seed: Seed of that split.
        image_column: Column that holds the images; null finds it.
        label_column: Column that holds the labels, such as coarse_label of CIFAR-100; null finds it.
        image_size: Side, or [height, width], in pixels to resize to; null is the most common size of the set.
        channels: 1 for grey, 3 for colour; null is grey where all images are.
        crop: Padding of the random crop in pixels; 0 turns it off, null is an eighth of the image.
        flip: Mirror half of the images left to right; null decides by the images and class names.
        cutout: Side in pixels of the square that is blanked out; 0 turns it off.
    """

    source: str = "digits"
    val_fraction: float = 0.1
    seed: int = 0
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | list[int] | None = None
    channels: int | None = None
    crop: int | None = None
    flip: bool | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.val_fraction < 1, f"data.val_fraction is {self.val_fraction}: give a share between 0 and 1.")
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size or 1] * 2
        _require(
            self.image_size != 0 and len(sides) == 2 and min(sides) > 0,
            f"data.image_size is {self.image_size}: give one side in pixels, [height, width], or null.",
        )
        _require(self.channels in (None, 1, 3), f"data.channels is {self.channels}: give 1 (grey), 3 (colour) or null.")
        _require(self.crop is None or self.crop >= 0, f"data.crop is {self.crop}: give 0 or more pixels, or null.")
        _require(self.cutout >= 0, f"data.cutout is {self.cutout}: give 0 or more pixels.")


@dataclass
class ModelConfig:
    """The model before its first growth event.

    Attributes:
        name: A name of auxin.models, such as vgg16, mobilenet_v1 or resnet20, or your own package.module:factory.
        kwargs: Further arguments of the model, such as {width: 16} (channels).
        start: A checkpoint, such as a rung of a ladder, whose size and weights to begin with; null begins anew.
    """

    name: str = "vgg16"
    kwargs: dict[str, Any] = field(default_factory=dict)
    start: str | None = None


@dataclass
class OptimizerConfig:
    """How a gradient becomes a step.

    Attributes:
        name: "sgd", "adam" or "adamw".
        lr: Learning rate at the top of the schedule.
        momentum: Momentum of sgd, 0 to 1.
        nesterov: Whether that momentum looks ahead.
        betas: Decay rates of the two moments of adam and adamw.
        eps: Added to their denominator.
        weight_decay: L2 penalty (sgd, adam) or decoupled decay (adamw), per step and learning rate.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optimizer.lr is {self.lr}: give a learning rate above 0.")
        _require(0 <= self.momentum < 1, f"optimizer.momentum is {self.momentum}: give a value from 0 to below 1.")
        _require(
            self.name != "sgd" or not self.nesterov or self.momentum > 0,
            "optimizer.nesterov needs optimizer.momentum above 0: set one of them.",
        )
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optimizer.betas is {list(self.betas)}: give two values from 0 to below 1.",
        )
        _require(self.eps >= 0, f"optimizer.eps is {self.eps}: give 0 or more, such as 1e-8.")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}: give 0 or more.")


@dataclass
class ScheduleConfig:
    """How the learning rate moves.

    Attributes:
        name: "cosine" (to floor at the last epoch), "trapezoid" (constant, then straight to floor at the last epoch),
            "step" (times gamma at each milestone), "plateau" (times factor when the validation loss stops improving)
            or "constant".
        warmup: Linear rise from 0 in epochs, fractions allowed.
        floor: Where cosine and trapezoid end and plateau stops falling, as a share of optimizer.lr.
        decay: Share of the schedule, after warmup, in which trapezoid falls.
        milestones: Epochs at which step multiplies by gamma.
        gamma: That factor.
        factor: What plateau multiplies by.
        patience: Epochs in a row without improvement that plateau lets pass; the next one lowers the rate.
        after_growth: "keep" lets one schedule span the run; "restart" begins it again, warmup included,
            over the epochs that remain after each growth event (plateau: at the top rate, the best loss forgotten).
    """

    name: Literal["cosine", "trapezoid", "step", "plateau", "constant"] = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    decay: float = 0.5
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    factor: float = 0.1
    patience: int = 10
    after_growth: Literal["keep", "restart"] = "keep"

    def __post_init__(self) -> None:
        _require(self.warmup >= 0, f"schedule.warmup is {self.warmup}: give a number of epochs, 0 or more.")
        _require(0 < self.decay <= 1, f"schedule.decay is {self.decay}: give a share above 0, up to 1.")
        _require(0 <= self.floor <= 1, f"schedule.floor is {self.floor}: give a share of the learning rate, 0 to 1.")
        _require(
            self.name != "step" or bool(self.milestones),
            "schedule.name is step but schedule.milestones is empty: list the epochs at which the rate drops.",
        )
        _require(0 < self.factor < 1, f"schedule.factor is {self.factor}: give a share between 0 and 1, such as 0.5.")
        _require(self.patience >= 0, f"schedule.patience is {self.patience}: give 0 or more epochs.")


@dataclass
class TrainConfig:
    """How long and how precisely to train.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        label_smoothing: Share of the target spread over all classes, 0 to 1.
        l1: Coefficient of the sum of the absolute values of all parameters, added to the training loss.
        precision: "bf16-mixed" (autocast, weights stay fp32), "32-true" or "auto", which is the first where the
            hardware has instructions for bf16 and the second elsewhere; the run keeps what it began with.
        channels_last: Store images and convolution weights as NHWC, faster for convolutions.
        clip_norm: Largest gradient norm allowed, or null.
        deterministic: Only deterministic kernels: on the CPU, a resumed run is then bit-equal to an uninterrupted one.
        seed: Seed of weights, order and augmentation; each epoch derives its own.
        threads: CPU threads; null leaves torch's choice. 1 is far faster on a machine that is busy with other work.
        device: "auto", "cpu" or "cuda".
        energy: Count the run's electricity; needs the extra auxin[energy].
    """

    epochs: int = 250
    batch_size: int = 128
    label_smoothing: float = 0.0
    l1: float = 0.0
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    channels_last: bool = True
    clip_norm: float | None = None
    deterministic: bool = True
    seed: int = 0
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    energy: bool = False

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"train.epochs is {self.epochs}: give at least 1.")
        _require(self.batch_size >= 1, f"train.batch_size is {self.batch_size}: give at least 1 image.")
        _require(0 <= self.label_smoothing < 1, f"train.label_smoothing is {self.label_smoothing}: give 0 to below 1.")
        _require(self.l1 >= 0, f"train.l1 is {self.l1}: give 0 or more.")
        _require(
            self.clip_norm is None or self.clip_norm > 0, "train.clip_norm must be above 0, or null to turn it off."
        )
        _require(
            self.threads is None or self.threads >= 1, f"train.threads is {self.threads}: give at least 1, or null."
        )


@dataclass
class NaturalConfig:
    """When and where the expansion score grows the model, if growth.trigger is natural.

    Attributes:
        tau: Grow where the score of the model with a proposal exceeds this many times the current one.
        alpha: Smallest gain of the score.
        times: Largest number of events; null has no limit.
        most: Proposals to carry out in one event, the best of those that pass.
        widen: Units to add to a width group; below 1, a share of its size; 0 never widens.
        deepen: Whether to add layers; "copies" adds copies of residual blocks alone.
        blocks: Module paths in each of which all groups widen together; null treats groups alone.
        within: Module paths that growth is confined to; null allows all.
        max_layers: Layers that a depth site may be given; null has no limit.
        kernel_size: Of new convolutions, odd.
        noise: Standard deviation of noise on new identity layers.
        penalty: Scores are multiplied by exp(-penalty * added_parameters^2); the paper has 1e-7.
        relative_penalty: The same with the added cost as a share of the cost there is.
        cost: What relative_penalty counts, "parameters" or "flops".
        samples: Validation images to score on, as many of each class, not augmented.
        form: "gram" (exact), "blockwise", "diagonal" or "kfac".
        fisher: "empirical", "sampled" (labels drawn from the model) or "ggn".
        damping: Damping of the Fisher matrix; null chooses it at each decision.
        target: Where the current model's score shall then lie, 0 to 1.
        memory: For stored per-sample gradients, such as 128MB; less memory takes more passes.
        chunk: Images in one forward.
    """

    tau: float = 1.1
    alpha: float = 0.0
    times: int | None = None
    most: int = 1
    widen: float = 4
    deepen: bool | Literal["copies"] = True
    blocks: list[str] | None = None
    within: list[str] | None = None
    max_layers: int | None = 10
    kernel_size: int = 3
    noise: float = 0.0
    penalty: float = 0.0
    relative_penalty: float = 0.0
    cost: Literal["parameters", "flops"] = "parameters"
    samples: int = 512
    form: Literal["gram", "blockwise", "diagonal", "kfac"] = "gram"
    fisher: Literal["empirical", "sampled", "ggn"] = "empirical"
    damping: float | None = None
    target: float = 0.5
    memory: str = "64MB"
    chunk: int = 16

    def __post_init__(self) -> None:
        _require(self.tau >= 0, f"growth.natural.tau is {self.tau}: give 0 or more, such as 1.1.")
        _require(self.samples >= 2, f"growth.natural.samples is {self.samples}: give at least 2 images.")
        _require(self.kernel_size % 2 == 1, f"growth.natural.kernel_size is {self.kernel_size}: give an odd number.")


@dataclass
class GrowthConfig:
    """When, where and how much the model grows.

    Attributes:
        method: A name of auxin.methods.METHODS, such as random or firefly; null never grows.
        trigger: "every" (each `every` epochs), "plateau" (when `metric` stops improving), "natural" (when the natural
            expansion score says that a growth would pay) or "planned" (as `plan` lists it).
        every: Epochs between events.
        start: First epoch after which an event may happen, counted from 1; null is `every`.
        times: Largest number of events; null has no limit, nor has a run with a target.
        metric: What plateau watches: val_loss, val_accuracy, train_loss or train_accuracy.
        patience: Epochs without improvement before plateau fires.
        min_delta: Smallest change of metric that counts as improvement.
        cooldown: Epochs after an event in which plateau rests.
        budget: "ratio" (a share of what is there) or "count" (a fixed amount).
        ratio: Share added at each event: 0.35 turns 100 into 135.
        count: Amount added at each event, such as 8 or "30k".
        of: What ratio and count measure: neurons, parameters or flops.
        scope: "per_group" applies the budget to each width group, "global" to the whole model.
        multiple_of: Round what each group has after an event to a multiple of so many channels, such as 16, for speed.
        until: Final cap such as "params<=325k", or several with commas between them; null has none.
        allow_inexact: Also grow groups whose growth changes the function.
        carry_state: Keep the optimizer's moments of old units across an event; false starts them anew.
        kwargs: Further arguments of the method, such as {criterion: activation} of orthogonal.
        similarity: Move neurons apart after each event, such as {iterations: 15}; null does not. Its settings are
            iterations, mean_similarity, weight_change, literal, lr, relative, neurons (new, new_and_parents or all),
            layers, depthwise, classifier and reestimate_norms (batches).
        natural: Settings of the natural trigger. start and cooldown above count for it too, not the budget.
        plan: Steps of the planned trigger, such as {after: 10, widen: {"features.*": 32}, deepen: {features.2: 1}}:
            epochs trained by then, sizes to reach, layers to add. Names are as auxin inspect prints them, or regular
            expressions. The budget does not count.
    """

    method: str | None = "random"
    trigger: Literal["every", "plateau", "natural", "planned"] = "every"
    every: int = 50
    start: int | None = None
    times: int | None = 4
    metric: Literal["val_loss", "val_accuracy", "train_loss", "train_accuracy"] = "val_loss"
    patience: int = 5
    min_delta: float = 0.0
    cooldown: int = 0
    budget: Literal["ratio", "count"] = "ratio"
    ratio: float = 0.35
    count: int | str = 8
    of: Literal["neurons", "parameters", "flops"] = "neurons"
    scope: Literal["per_group", "global"] = "per_group"
    multiple_of: int = 1
    until: str | None = None
    allow_inexact: bool = False
    carry_state: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)
    similarity: Similarity | None = None
    natural: NaturalConfig = field(default_factory=NaturalConfig)
    plan: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = _whole("growth.count", self.count)
        _require(self.every >= 1, f"growth.every is {self.every}: give at least 1 epoch.")
        _require(self.ratio > 0, f"growth.ratio is {self.ratio}: give a share above 0, such as 0.35.")
        _require(self.count >= 1, f"growth.count is {self.count}: give at least 1.")
        _require(self.multiple_of >= 1, f"growth.multiple_of is {self.multiple_of}: give 1 or more, such as 16.")
        _require(
            self.multiple_of == 1 or (self.of, self.scope) == ("neurons", "per_group"),
            "growth.multiple_of rounds what each group gets: it needs growth.of neurons and growth.scope per_group.",
        )
        _require(self.times is None or self.times >= 0, f"growth.times is {self.times}: give 0 or more, or null.")
        _require(self.patience >= 1, f"growth.patience is {self.patience}: give at least 1 epoch.")
        _require(
            (self.trigger == "planned") == bool(self.plan),
            "growth.plan and growth.trigger planned belong together: give both or neither.",
        )
        if self.plan:
            Planned(self.plan)
            _require(self.until is None, "A plan says itself where growth ends: leave growth.until out.")


@dataclass
class TargetConfig:
    """Where growth ends; the epochs that are left are spent at the size reached. The first target reached counts.

    Attributes:
        params: Number of parameters not to exceed, such as 100k; the last event is shrunk to fit.
        flops: FLOPs of one image's forward pass not to exceed, such as 20M; likewise.
        accuracy: Validation accuracy that is enough, 0 to 1.
    """

    params: int | str | None = None
    flops: int | str | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        for name in ("params", "flops"):
            value = getattr(self, name)
            if value is not None:
                number = _whole(f"target.{name}", value)
                _require(number >= 1, f"target.{name} is {value}: give at least 1, or null.")
                setattr(self, name, number)
        _require(
            self.accuracy is None or 0 < self.accuracy <= 1,
            f"target.accuracy is {self.accuracy}: give a share above 0 and up to 1, such as 0.9.",
        )

    @property
    def given(self) -> bool:
        """Whether there is any target."""
        return (self.params, self.flops, self.accuracy) != (None, None, None)


@dataclass
class RunConfig:
    """Everything that decides a run.

    Attributes:
        name: Start of the run folder's name.
        data: The images.
        model: The model before it grows.
        optimizer: The optimizer.
        schedule: The learning rate over time.
        train: Length, precision, seed.
        growth: The growth events.
        target: Where growth ends.
    """

    name: str = "run"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    target: TargetConfig = field(default_factory=TargetConfig)

    def __post_init__(self) -> None:
        _require(
            all(step.after < self.train.epochs for step in self.growth.plan),
            f"growth.plan has a step after epoch {max((s.after for s in self.growth.plan), default=0)}, but the run "
            f"has {self.train.epochs}: leave epochs to train what grew.",
        )
        _require(
            not self.growth.plan or (self.target.params, self.target.flops) == (None, None),
            "A plan says itself where growth ends: leave target.params and target.flops out.",
        )
        _require(
            re.fullmatch(r"[\w.-]+", self.name) is not None and not self.name.startswith("."),
            f"name is {self.name!r}: use letters, digits, '-', '_' and '.', since it names a folder.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON data."""
        data = asdict(self)
        data["optimizer"]["betas"] = list(self.optimizer.betas)
        return data

    def to_yaml(self) -> str:
        """Return the configuration as YAML that ``auxin train`` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Build a configuration from nested plain data; absent fields take their defaults.

        Args:
            data: As ``to_dict`` or a YAML file gives it.

        Returns:
            The checked configuration.

        Raises:
            ConfigError: If a key or value is not known.
        """
        parser = make_parser()
        return _instantiate(parser, lambda: parser.parse_object(dict(data)), parser)


def make_parser(prog: str = "auxin train", **kwargs: Any) -> jsonargparse.ArgumentParser:
    """Return the parser of a run's configuration: ``--config FILE`` and one ``--part.field`` per field.

    Args:
        prog: How the command names itself in its help.
        **kwargs: Further arguments of ``jsonargparse.ArgumentParser``, such as ``description``.

    Returns:
        A parser that raises instead of leaving the process.
    """
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument("--config", action="config", help="A YAML file with any of the fields below.")
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


def load_config(arguments: Sequence[str], parser: jsonargparse.ArgumentParser | None = None) -> RunConfig:
    """Read a configuration from command-line arguments; later ones win over earlier ones.

    Args:
        arguments: Such as ``["--config", "vgg16.yaml", "--train.epochs", "3"]``.
        parser: What ``make_parser`` returned; None makes one.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If a file is missing, or a key or value is not known.

    Example:
        >>> load_config(["--train.epochs", "3"]).train.epochs
        3
    """
    parser = parser or make_parser()
    _require_settings(arguments)
    return _instantiate(parser, lambda: parser.parse_args(list(arguments)), parser)


def _require_settings(arguments: Sequence[str]) -> None:
    """Refuse files that are no YAML or hold no settings: the parser's own message does not say which file it is."""
    files = [word for option, word in pairwise(arguments) if option == "--config"]
    files += [word.removeprefix("--config=") for word in arguments if word.startswith("--config=")]
    for name in filter(os.path.isfile, files):
        content = read_yaml(Path(name))
        if not isinstance(content, dict):
            raise ConfigError(f"{name} holds no settings: write for example 'train: {{epochs: 3}}'.")
        _require_parts(content, f"{name}: ")


def _require_parts(content: Mapping[Any, Any], where: str = "") -> None:
    """Refuse a part of the configuration that is no mapping: the parser would take its defaults instead."""
    examples = {
        "data": "source: digits", "model": "name: vgg16", "optimizer": "lr: 0.1", "schedule": "name: cosine",
        "train": "epochs: 3", "growth": "method: null", "target": "params: 60k",
    }  # fmt: skip
    for part in RunConfig.__dataclass_fields__.keys() - {"name"}:
        if part in content and not isinstance(content[part], (Mapping, jsonargparse.Namespace, argparse.Namespace)):
            raise ConfigError(
                f"{where}{part} is {content[part]!r}: it has settings of its own, such as {part}: {{{examples[part]}}}."
            )


def _instantiate(parser: jsonargparse.ArgumentParser, parse: Any, names: jsonargparse.ArgumentParser) -> RunConfig:
    try:
        parsed = parse()
        _require_parts(vars(parsed))
        values = parser.instantiate(parsed).as_dict()
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError, OSError) as error:
        raise ConfigError(_sentence(str(error), names)) from error
    return RunConfig(**{key: values[key] for key in RunConfig.__dataclass_fields__})


def _sentence(message: str, parser: jsonargparse.ArgumentParser) -> str:
    # A parser's message spans lines and speaks of types; the nearest known name helps more.
    text = " ".join(message.split()).rstrip(".")
    text = re.sub(r'Parser key "([^"]+)":', r"setting \1:", text)
    # A part that may be null is checked against every type it may have; what the other than null says is the mistake.
    text = re.sub(
        r"Does not validate against any of the Union subtypes.*? Errors: - (?:Problem with given class_path '[^']*': )?"
        r"(.*?)\.? - Expected (?:a <class ')?NoneType.*",
        r"\1",
        text,
    )
    text = re.sub(r"typing\.Literal\[([^\]]+)\]", r"value out of \1", text)
    text = re.sub(r"Expected a <class '(\w+)'>", r"Expected \1", text)
    text = text.replace("unrecognized arguments:", "there is no setting")
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    unknown = re.search(r"there is no setting (--[\w.-]+)", text)
    group = re.search(r"Group '(\w+)' does not accept option '(\w+)'", text)
    part = re.search(r"Option '([\w.-]+)' is not accepted", text)
    wanted = unknown[1] if unknown else f"--{group[1]}.{group[2]}" if group else f"--{part[1]}" if part else None
    close = difflib.get_close_matches(wanted, known, 1) if wanted else []
    return f"{text}; did you mean {close[0].lstrip('-')}?" if close else f"{text}; see auxin train --help."
