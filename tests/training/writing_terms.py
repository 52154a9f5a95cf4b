"""Terms that change what they are shown, or what all share; named in specs by import path."""

import torch
from torch.nn import functional as F

from kdbench.methods import Term


def from_a_hook(student, teacher, batch):
    def write(gradient):
        teacher.logits.zero_()

    student.logits.register_hook(write)


def in_inference_mode(student, teacher, batch):
    with torch.inference_mode():
        teacher.logits.zero_()


def assign(student, teacher, batch):
    object.__setattr__(batch, "images", torch.zeros_like(batch.images))
    object.__setattr__(batch, "labels", torch.zeros_like(batch.labels))


def assign_data(student, teacher, batch):
    teacher.logits.data = torch.zeros_like(teacher.logits)


WRITES = {
    "mul_": ("teacher.logits", lambda s, t, b: t.logits.mul_(0.1)),
    "relu": ("teacher.features[1]", lambda s, t, b: F.relu(t.features[1], inplace=True)),
    "before relu": ("teacher.preactivations[0]", lambda s, t, b: t.preactivations[0].clamp_(min=0)),
    "out": ("teacher.embedding", lambda s, t, b: torch.mul(t.embedding, 2, out=t.embedding)),
    "view": ("teacher.features[2]", lambda s, t, b: t.features[2][:, 0].zero_()),
    "inference mode": ("teacher.logits", in_inference_mode),
    "data": ("teacher.logits", lambda s, t, b: t.logits.data.zero_()),
    "data of a map": ("teacher.features[1]", lambda s, t, b: t.features[1].data.mul_(0.5)),
    "numpy": ("teacher.logits", lambda s, t, b: t.logits.numpy().fill(0)),
    "another tensor": ("teacher.logits", assign_data),
    "hook": ("teacher.logits", from_a_hook),
    "images": ("batch.images", lambda s, t, b: b.images.mul_(0.5)),
    "images' numpy": ("batch.images", lambda s, t, b: b.images.numpy().fill(0)),
    "labels": ("batch.labels", lambda s, t, b: b.labels.__setitem__(..., 0)),
    "indices": ("batch.indices", lambda s, t, b: b.indices.copy_(b.indices.flip(0))),
    "clean labels": ("batch.clean_labels", lambda s, t, b: b.clean_labels.zero_()),
    "the teacher's images": ("batch.teacher_images", lambda s, t, b: b.teacher_images.zero_()),
    "copies": ("batch.views['rotations'].images", lambda s, t, b: b.views["rotations"].images.zero_()),
    "student": ("student.logits", lambda s, t, b: s.logits.mul_(2)),
    "student, without gradient": ("student.features[1]", lambda s, t, b: s.features[1].detach().zero_()),
}
"""What is written into, and how."""

ASSIGNS = {
    "lists": lambda s, t, b: (t.features.clear(), t.preactivations.append(None), s.features.pop()),
    "batch": assign,
}
"""What stays with the term that does it."""

SETS = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "number of threads": lambda: torch.set_num_threads(2),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "float32 matmul precision by mkldnn": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "float32 matmul precision by convolutions": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
}
"""torch's settings."""


class Writes(Term):
    """Writes into what a step shows it."""

    reads = "all"

    def __init__(self, context, *, how: str = ""):
        super().__init__(context)
        self.act = WRITES[how][1] if how in WRITES else ASSIGNS[how]

    def forward(self, student, teacher, batch):
        loss = (student.logits - teacher.logits).square().mean()
        self.act(student, teacher, batch)
        return loss


class Sets(Term):
    """Changes a setting of torch, and leaves it so."""

    reads = "logits"
    needs_teacher = False

    def __init__(self, context, *, what: str = "", at_once: bool = False):
        super().__init__(context)
        self.what = what
        if at_once:
            SETS[what]()

    def forward(self, student, teacher, batch):
        loss = student.logits.square().mean()
        SETS[self.what]()
        return loss


class NoGrad(Term):
    """Switches gradients off before its loss."""

    reads = "logits"
    needs_teacher = False

    def forward(self, student, teacher, batch):
        torch.set_grad_enabled(False)
        return student.logits.square().mean()


class Prepares(Term):
    """Spoils the teacher and the training images where it is shown them before an epoch."""

    reads = "logits"

    def begin_epoch(self, epoch, student, teacher, stream):
        teacher.train()
        for batch in stream.epoch(epoch):
            teacher(batch.images if batch.teacher_images is None else batch.teacher_images)
            batch.images.zero_()
        with torch.no_grad():
            for weight in teacher.parameters():
                weight.zero_()

    def forward(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean()


class Reaches(Prepares):
    """Reaches for the data set itself."""

    def begin_epoch(self, epoch, student, teacher, stream):
        stream.labels.zero_()


class Relabels(Prepares):
    """Changes the labels that it is built for."""

    def __init__(self, context):
        super().__init__(context)
        context.labels.zero_()

    def begin_epoch(self, epoch, student, teacher, stream):
        pass


class Begins(Writes):
    """Writes in its initial stage."""

    initial = True

    def __init__(self, context, *, initial_epochs: int = 1):
        super().__init__(context, how="mul_")
        self.set_initial_epochs(initial_epochs)

    def initial_loss(self, student, teacher, batch):
        return super().forward(student, teacher, batch)


class Associates(Term):
    """Writes into the teacher's map where it is asked which maps it associates."""

    reads = "feature maps"

    def forward(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean()

    def layer_pairs(self, student, teacher):
        teacher.features[1].zero_()
        return []
