"""The contract of a part: what a term trains on a finished teacher before any student."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.models.outputs import Outputs


class Part(nn.Module):
    """A module that is trained once on the frozen teacher's outputs, kept beside the teacher, and then frozen, too.

    How long and at which rate is the protocol's matter (`parts` in its file).
    """

    transforms: str = ""
    """Which kind of transformed copies of the images it learns from, beside the images; "": none."""

    def loss(self, teacher: Outputs, batch: Batch) -> Tensor:
        """What the part learns from a batch: a scalar. The teacher's outputs carry no gradient."""
        raise NotImplementedError
