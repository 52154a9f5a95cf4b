"""The base class of loss terms, and of the modules that some terms train on a finished teacher first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from kdbench.data.batch import VIEWS_PER_IMAGE, Batch, Batches
from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import LayerPair, Outputs, Shapes


class Part(nn.Module):
    """A module that is trained once on the frozen teacher's outputs, stored with the teacher, and then frozen.

    The protocol sets epochs and learning rate (`parts` in its file).
    """

    transforms: str = ""
    """The kind of transformed views that it learns from, in addition to the images; "": none."""

    def loss(self, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the part's loss on a batch, a scalar. The teacher's outputs carry no gradient."""
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

    Training may stop after any step and resume in another process, so all state that changes is a parameter or a buffer.
    Hyper-parameters are the keyword-only arguments of ``__init__``, annotated, with defaults: a suite file may set
    exactly these, within the range that the annotation names (``PositiveNumber``, ``Share``, …, kdbench.methods). The class
    constants below are read from the source without importing it, so they are literals.

    Other runs, and the run's other terms, share a term's inputs. A term that writes into them fails, and so does one that
    changes torch's global settings (default dtype, threads, gradient mode …) and does not restore them.
    """

    paper: ClassVar[str] = ""
    """Citation, as printed by `kdbench show`."""

    reads: ClassVar[str] = ""
    """The term's inputs: labels, logits, embedding, feature maps …"""

    needs_teacher: ClassVar[bool] = True

    reads_maps: ClassVar[bool | str] = True
    """Whether it reads the teacher's feature maps or pre-activations, or the teacher itself in ``begin_epoch``.

    Or the name of the hyper-parameter that decides. Where no term of a cohort does, the teacher's logits and embeddings may
    come from a cache, without maps.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Conditions on the pair of networks, checked before anything runs (kdbench/suite/compatibility.py)."""

    full_batches: ClassVar[int] = 0
    """The smallest batch size for a term that needs batches of the nominal size; 0: any batch.

    A run with such a term skips the short last batch of an epoch.
    """

    part: ClassVar[tuple[str, ...] | None] = None
    """For a term that first trains a part on the finished teacher: the hyperparameters on which the part depends."""

    views: ClassVar[int] = 0
    """The number of transformed views of each image that the term sees in addition to the image: 0 or 3.

    Its outputs then have (1 + views) · B rows: each image's, followed by those of its views.
    """

    reads_epoch: ClassVar[bool] = False
    """Whether ``forward`` depends on ``epoch``."""

    initial: ClassVar[bool] = False
    """Whether the term trains the student by itself before the main training, in which ``forward`` then gives 0.

    Such a term has the hyper-parameter ``initial_epochs``, hands it to ``set_initial_epochs``, and has an ``initial_loss``.
    """

    auxiliary: ClassVar[str] = ""
    """The protocol's method that trains a wider student first, which then replaces the teacher."""

    version: ClassVar[int] = 1
    """Increased when a change of the code changes results, so that old and new numbers never mix."""

    bf16_version: ClassVar[int] = 0
    """Increased in its place when only the results of bf16 runs change. It is added to theirs."""

    transforms: str = ""
    """The kind of views that a term sees (kdbench.data.views.TRANSFORMS); "": none. ``__init__`` sets it."""

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        if self.views not in (0, VIEWS_PER_IMAGE):
            raise BadInput(f"{type(self).__name__}: views must be 0 or {VIEWS_PER_IMAGE}, not {self.views}")
        if self.full_batches and context.train_size < context.batch_size:
            raise BadInput(
                f"{type(self).__name__} learns from full batches only, and {context.train_size} training images do not "
                f"fill one of {context.batch_size}. Set a smaller batch: protocol {{base: …, batch: {context.train_size}}}"
            )
        self.context = context
        self.initial_epochs = 0
        self.epoch = 0
        """The current epoch, from 1; 0 or less in an initial stage. The training loop sets it."""

    def set_initial_epochs(self, epochs: int) -> None:
        """Set the length of the initial stage. Raises BadInput for less than one epoch."""
        if epochs < 1:
            raise BadInput(f"{type(self).__name__}: initial_epochs must be 1 or more, not {epochs}")
        self.initial_epochs = epochs

    def begin_epoch(self, epoch: int, student: Backbone, teacher: Backbone, stream: Batches) -> None:
        """Called before each epoch of the main training. Both networks are in eval mode; the teacher is a copy.

        The stream gives the batches of this epoch or any other. Most terms do nothing here.
        """

    def after_step(self) -> None:
        """Called once the optimiser has taken its step on the batch that ``forward`` saw last. Most terms do nothing here.

        What the backward pass reads must not be written to before, and buffers are to be written in place.
        """

    def initial_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the loss of the initial stage, a scalar, which the term's weight does not scale."""
        raise NotImplementedError

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the pairs of maps in which the student follows the teacher; their similarity is measured after training.

        Called on test images in eval mode, without gradient, in full batches where the term needs them. Empty for terms that
        read no maps.
        """
        return []

    def epoch_metrics(self) -> dict[str, Any]:
        """Return the term's own entries of the epoch's line in metrics.jsonl. Called at the end of each epoch."""
        return {}

    @classmethod
    def build_part(cls, context: TermContext, options: Mapping[str, Any]) -> Part:
        """Build the untrained part for the teacher in ``context``; options are the hyperparameters that ``part`` names."""
        raise NotImplementedError

    def trained_part(self, kind: type[AnyPart]) -> AnyPart:
        """Return the part that was trained on the teacher. Raises BadInput if the context has none."""
        part = self.context.part
        if not isinstance(part, kind):
            raise BadInput(
                f"{type(self).__name__} needs the {kind.__name__} trained on the teacher, and TermContext.part has none"
            )
        return part

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the unweighted loss, a scalar. The teacher's outputs carry no gradient."""
        raise NotImplementedError
