"""What can go wrong, each with what to do about it."""


class AuxinError(Exception):
    """Base of every error auxin raises on purpose; its text is one sentence that says what to do."""


class TraceError(AuxinError):
    """The model could not be captured as a graph."""


class FrozenError(AuxinError):
    """The group or site asked for cannot grow, and the text says why."""


class GrowthError(AuxinError):
    """A growth event failed; model, optimizer and graph were restored bit for bit.

    Attributes:
        why: The reason alone, where the text also says what to do.
    """

    def __init__(self, text: str, why: str = "") -> None:
        super().__init__(text)
        self.why = why or text


class ConfigError(AuxinError):
    """A setting, name or file given by the user is not usable."""


class CheckpointError(AuxinError):
    """A checkpoint is missing, damaged, or not one of ours."""


class DataError(AuxinError):
    """A data set could not be found or read as images with labels."""


class TrainingError(AuxinError):
    """Training cannot go on, for example because the loss is no longer finite."""
