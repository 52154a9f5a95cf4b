"""What a record says: the accuracies of a finished network, why one failed, what it cost and who made it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

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


POINT = 1.0
"""Percentage points by which stated and measured accuracy may differ before that is a warning."""


class Result(BaseModel):
    """The result of a finished network. Equal runs give byte-identical results on the same CPU.

    ``measure`` is how the accuracy came about: by the network's classifier, or, where it has none, by a vote of the
    nearest training images (kdbench.evaluation). It is None for an encoder that was trained elsewhere. ``published_top1``
    is what an imported file says of its weights, ``published_best`` of the best epoch of their training,
    ``parent_sha256`` the hash of the weights on which a teacher's stage was made, or those, joined by "+", of the teacher
    and adapters that taught a run, or of the networks that were measured. ``values`` are what was measured on them, by
    name; ``undefined`` says why others are not there.

    ``metrics_sha256`` is the hash of metrics.jsonl.

    ``sm_score`` and ``layer_cka`` say how alike the maps are that the run's terms associate (kdbench.evaluation),
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
    published_best: Percent | None = None
    parent_sha256: str | None = None
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

    def contradiction(self, measured: Accuracy | None) -> str:
        """A sentence where an imported file states an accuracy more than a point from the measured one, else ""."""
        stated = self.published_best if self.published_top1 is None else self.published_top1
        if measured is None or stated is None or abs(stated - measured.top1) <= POINT:
            return ""
        whose = (
            "as the best of its training, perhaps of another epoch" if self.published_top1 is None else "of its weights"
        )
        return (
            f"its file states {stated:.2f} % {whose}, and {measured.top1:.2f} % is measured here: check mean and std, the "
            "images' size, and the order of the classes"
        )


class Failure(BaseModel):
    """Why a run stopped for good. A diverged run would diverge again; an error may be gone next time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diverged", "error"]
    epoch: int
    reason: str
    detail: str = ""


class Compute(NamedTuple):
    """The kind of the device that trained a network, and the training's multiply-accumulates and seconds."""

    device: str
    macs: float
    seconds: float


class Maker(NamedTuple):
    """The versions of kdbench and torch, and the device, that made a record; "" for what is unknown."""

    kdbench: str = ""
    torch: str = ""
    device: str = ""

    def __str__(self) -> str:
        libraries = (
            f"{name} {version}" for name, version in (("kdbench", self.kdbench), ("torch", self.torch)) if version
        )
        return ", ".join([*libraries, *filter(None, [self.device])]) or "machine and versions unknown"


def compute_of(metadata: dict[str, Any]) -> Compute:
    """What a training cost, from its record's metadata; ("", 0, 0) if unknown."""
    device, macs, seconds = metadata.get("device"), metadata.get("macs"), metadata.get("seconds")
    kind = device.get("kind") if isinstance(device, dict) else None
    if not (isinstance(kind, str) and isinstance(macs, int | float) and isinstance(seconds, int | float)):
        return Compute("", 0.0, 0.0)
    possible = 0 <= macs < 1e30 and (seconds == 0 or 1e-6 < seconds < 1e12)
    return Compute(kind, float(macs), float(seconds)) if possible else Compute("", 0.0, 0.0)
