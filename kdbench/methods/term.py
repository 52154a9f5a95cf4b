"""The contract of a loss term, and of the part that some train on a finished teacher first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from kdbench.data.batch import Batch, Batches
from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import LayerPair, Outputs, Shapes


class Part(nn.Module):
    """A module that is trained once on the frozen teacher's outputs, kept beside the teacher, and then frozen, too.

    How long and at which rate is the protocol's matter (`parts` in its file).
    """

    transforms: str = ""
    """Which kind of transformed copies of the images it learns from, beside the images; "": none."""

    def loss(self, teacher: Outputs, batch: Batch) -> Tensor:
        """What the part learns from a batch: a scalar. The teacher's outputs carry no gradient."""
        raise NotImplementedError


AnyPart = TypeVar("AnyPart", bound=Part)


@dataclass(frozen=True)
class TermContext:
    """What a term is built for. For a term that needs no teacher, ``teacher`` equals ``student``.

    train_size counts the images that the student trains on (after subset and few-shot), batch_size is the nominal one.
    labels are theirs, [train_size] int64, as the student learns them; None where no student is trained. part is what the
    term has trained on the teacher beforehand, frozen; the term uses it from here, so that it is no part of the run.
    branch makes the student's last stage and classifier anew, with fresh weights: second-to-last map → logits.
    """

    student: Shapes
    teacher: Shapes
    classes: int
    train_size: int
    batch_size: int
    labels: Tensor | None = field(default=None, compare=False, repr=False)
    part: Part | None = field(default=None, compare=False, repr=False)
    branch: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)


class Term(nn.Module):
    """One loss. Its parameters, if any, train with the student's optimiser; its buffers are saved with the run.

    Training may stop after any step and go on in another process: what changes on the way is a parameter or a buffer.
    Hyper-parameters are the keyword-only arguments of ``__init__``, annotated, with defaults: a suite file may set
    exactly these, within the range that the annotation names (``PositiveNumber``, ``Share``, …, kdbench.methods). The class
    constants below are read from the source without importing it, so they are literals.

    What a term is shown belongs to others, too: other runs, and the run's other terms. One that writes into it fails, and
    so does one that leaves torch's settings (default dtype, threads, gradient mode …) other than it found them.
    """

    paper: ClassVar[str] = ""
    """Citation, as printed by `kdbench show`."""

    reads: ClassVar[str] = ""
    """What the term looks at: labels, logits, embedding, feature maps …"""

    needs_teacher: ClassVar[bool] = True

    requires: ClassVar[tuple[str, ...]] = ()
    """Conditions on the pair of networks, checked before anything runs (kdbench/suite/compatibility.py)."""

    full_batches: ClassVar[int] = 0
    """The least images of a batch, which must then have the nominal size; 0: any batch will do.

    A run with a term that needs full batches leaves its epoch's short last batch out.
    """

    part: ClassVar[tuple[str, ...] | None] = None
    """Where a term first trains a part on the finished teacher: the hyper-parameters on which that part depends."""

    views: ClassVar[int] = 0
    """How many transformed copies of each image the term sees beside the image itself.

    Its outputs then have (1 + views) · B rows: those for each image, followed by those for its copies.
    """

    initial: ClassVar[bool] = False
    """Whether the term trains the student by itself before the main training, in which ``forward`` then gives 0.

    Such a term has the hyper-parameter ``initial_epochs``, hands it to ``set_initial_epochs``, and has an ``initial_loss``.
    """

    auxiliary: ClassVar[str] = ""
    """The protocol's method by which a wider student is trained first, which then takes the teacher's place."""

    version: ClassVar[int] = 1
    """Raised when a change of the code changes results, so that old and new numbers never mix."""

    transforms: str = ""
    """Which kind of copies a term sees (kdbench.data.augment.TRANSFORMS); "": none. Its ``__init__`` sets it."""

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        if self.full_batches and context.train_size < context.batch_size:
            raise BadInput(
                f"{type(self).__name__} learns from full batches only, and {context.train_size} training images do not "
                f"fill one of {context.batch_size}. Set a smaller batch: protocol {{base: …, batch: {context.train_size}}}"
            )
        self.context = context
        self.initial_epochs = 0
        self.epoch = 0
        """The epoch that is being trained, from 1; up to 0 in an initial stage. The training loop sets it."""

    def set_initial_epochs(self, epochs: int) -> None:
        """Note how long the initial stage is. Raises BadInput for less than one epoch."""
        if epochs < 1:
            raise BadInput(f"{type(self).__name__}: initial_epochs must be 1 or more, not {epochs}")
        self.initial_epochs = epochs

    def begin_epoch(self, epoch: int, student: Backbone, teacher: Backbone, stream: Batches) -> None:
        """Do what must be done before an epoch of the main training. Both networks are in eval mode, the teacher is a copy.

        Batches of the stream may be asked for, of this epoch or any other. Nothing is to be done for most terms.
        """

    def initial_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return what the initial stage minimises, a scalar; the term's weight does not count there."""
        raise NotImplementedError

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the pairs of maps in which the student follows the teacher, so that it can be told how alike they became.

        Asked for test images in eval mode, without gradient; as many as a batch has where the term needs full ones. None for
        terms that read no maps.
        """
        return []

    def epoch_metrics(self) -> dict[str, Any]:
        """Return what the term has to add to an epoch's line in metrics.jsonl, at the end of that epoch."""
        return {}

    @classmethod
    def build_part(cls, context: TermContext, options: Mapping[str, Any]) -> Part:
        """The untrained part, for the teacher in ``context``; options are the hyper-parameters that ``part`` names."""
        raise NotImplementedError

    def trained_part(self, kind: type[AnyPart]) -> AnyPart:
        """The part that was trained on the teacher. Raises BadInput where the context has none."""
        part = self.context.part
        if not isinstance(part, kind):
            raise BadInput(
                f"{type(self).__name__} needs the {kind.__name__} trained on the teacher, and TermContext.part has none"
            )
        return part

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the unweighted loss, a scalar. The teacher's outputs carry no gradient."""
        raise NotImplementedError
