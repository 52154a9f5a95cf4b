"""What is stored of a finished network, and of one that failed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


Kind = Literal["run", "teacher", "measurement"]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Value = Annotated[float, Field(ge=-1e100, le=1e100)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Accuracy(BaseModel):
    """Test accuracy in percent after an epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: Count
    top1: Percent
    top5: Percent


class Result(BaseModel):
    """What was measured on a finished network. Equal runs give equal results, byte for byte, on the same CPU.

    ``measure`` is how the accuracy came about: by the network's classifier, or, where it has none, by a vote of the nearest
    training images (kdbench.evaluation.knn). It is None for an encoder that was trained elsewhere. ``published_top1`` is
    what an imported file says of itself, ``before_sha256`` the hash of the weights on which a teacher's stage was made, or
    those of the networks that were measured. ``values`` are what was measured on them, by name; ``undefined`` says why others
    are not there.

    ``metrics_sha256`` is the hash of metrics.jsonl; older records lack it.

    ``sm_score`` and ``layer_cka`` say how alike the maps are that the run's terms associate (kdbench.evaluation.similarity),
    on average over those of the last ten epochs that were tested. ``teacher`` is the accuracy of the teacher as it taught,
    where its own record does not hold that: its new layers learned beside the student (``teacher_head_sha256`` is the hash of
    their file), or it was shown other test images, or the same otherwise, than where it was measured.

    Under a scenario ``changed_labels`` says how many of the student's labels are not the true ones, and ``samples_sha256`` is
    the hash of its images and labels (`kdbench data samples` lists them).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Kind
    last: Accuracy | None = None
    best: Accuracy | None = None
    measure: Literal["classifier", "neighbours"] = "classifier"
    published_top1: Percent | None = None
    before_sha256: str | None = None
    values: dict[str, Value] | None = None
    undefined: dict[str, str] | None = None
    train_images: Count = 0
    test_images: Count = 0
    changed_labels: Count | None = None
    samples_sha256: str | None = None
    sm_score: Value | None = None
    layer_cka: Value | None = None
    teacher: Accuracy | None = None
    teacher_head_sha256: str | None = None
    weights_sha256: str
    metrics_sha256: str | None = None

    @model_validator(mode="after")
    def _measured(self) -> Result:
        if self.kind == "run" and (self.last is None or self.best is None):
            raise ValueError("a run's result holds its last and its best accuracy")
        return self

    def accuracy(self, score: str) -> Accuracy | None:
        """The accuracy by a score rule, ``last`` or ``best``; None for an encoder without classes."""
        return self.best if score == "best" else self.last


class Failure(BaseModel):
    """Why a run stopped for good. A diverged run would diverge again; an error may be gone next time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diverged", "error"]
    epoch: int
    reason: str
    detail: str = ""
