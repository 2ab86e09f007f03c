"""The flags of `pipeline.train`: groups that stand beside what they configure, put together."""

from dataclasses import dataclass

from pipeline.checks import check_at_least
from pipeline.data import parse_sources
from pipeline.loading_flags import LoadingFlags
from pipeline.packed_table import check_tables
from pipeline.training.ending_flags import EndingFlags
from pipeline.training.length import LengthFlags
from pipeline.training.objective import ObjectiveFlags
from pipeline.training.optimizer import OptimizerFlags
from pipeline.training.published_flags import PublishedFlags
from pipeline.training.report_flags import ReportFlags
from pipeline.training.saving import SavingFlags
from pipeline.training.schedule import ScheduleFlags
from pipeline.training.starting_model import ModelFlags
from pipeline.training.step_options import StepFlags
from pipeline.training.validation import ValidationFlags
from shards import DEFAULT_LANES, UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    PublishedFlags,
    ReportFlags,
    EndingFlags,
    SavingFlags,
    ValidationFlags,
    StepFlags,
    OptimizerFlags,
    ScheduleFlags,
    ObjectiveFlags,
    LoadingFlags,
    LengthFlags,
    ModelFlags,
):
    """What a training run is asked to do."""

    train_data: tuple[str, ...]
    """Data sets, each a path or an address such as s3://bucket/prefix, or a table of images and captions;
    with weights, A=0.7 B=0.3.
    """
    lanes: int = DEFAULT_LANES
    """Places of the data set read side by side; more shuffle better and need more memory."""
    seed: int = 0
    """Seed of the weights, the order, the crops, the masking and the dropout."""
    config: str | None = None
    """A run's config.json, whose flags stand in for those that are not given here."""

    @property
    def first_weights(self) -> str | None:
        """Where the weights of a fresh run come from; None: they are drawn, or the towers' own."""
        return self.resume if self.resume_model_only else self.pretrained

    def check(self) -> None:
        """Raise UsageError where values are out of range or contradict each other."""
        check_at_least(self, lanes=1, seed=0)
        check_tables(self, [*parse_sources(self.train_data)[0], *filter(None, [self.val_data])])
        self.check_model()
        self.check_length()
        self.check_loading()
        self.check_objective()
        self.check_schedule()
        self.check_optimizer()
        self.check_step()
        self.check_validation()
        if self.val_weights == "average" and self.ema is None:
            raise UsageError("--val-weights average: there is no average of the weights without --ema")
        self.check_saving()
        for flag, given in (("pretrained", self.pretrained), ("pretrained-image", self.pretrained_image)):
            if self.resume_model_only and given:
                raise UsageError(f"--{flag} and --resume-model-only both give the weights: give one of them")
        self.check_ending()
        self.check_report()
