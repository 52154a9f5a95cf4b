"""FitNet: one intermediate feature map is the hint."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import NonNegativeInt
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32, pool_like
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import LayerPair, Outputs


Shape = tuple[int, int, int]


class FitNet(Term):
    """FitNet: a regressor maps one feature map of the student onto the teacher's map of the same index.

    Equation:   L = mean over B, C, H, W of ( r(F_s) - F_t )²
                r = convolution (with bias), batch norm, ReLU; its geometry follows from heights h and widths w:
                h_s = 2·h_t               3×3, stride 2, padding 1
                2·h_s = h_t               transposed 4×4, stride 2, padding 1
                h_s ≥ h_t and w_s ≥ w_t   (1 + h_s - h_t) × (1 + w_s - w_t), no padding: 1×1 for equal sides
                otherwise                 3×3, padding 1, and the teacher's map is average-pooled to h_s × w_s
    Shapes:     F_s [B, C_s, h_s, w_s], F_t [B, C_t, h_t, w_t]: entry `layer` of f0 … fL, where f0 is the stem.
                Without the regressor the term is the plain MSE and both maps must have one shape.
    Reduction:  mean over all elements.
    Weights:    CRD, SSKD, SemCKD 100. CRD and SSKD take f2 (layer 2), SemCKD f1 (layer 1).
    Departures: the paper trains up to the hint first and distils afterwards; the benchmarks train everything at once,
                and so does this term. The last case of the geometry is SemCKD's; CRD's code stops with an error there.
                The regressor ends in a ReLU, so it cannot reach the negative values of maps that are no ReLU output
                (Wide ResNets, MobileNetV2): the loss has a floor there, in the published numbers too.
    Source:     CRD benchmark's hint loss, SemCKD's regressor.
    """

    paper = "Romero, Ballas, Kahou, Chassang, Gatta, Bengio. FitNets: Hints for Thin Deep Nets. ICLR 2015"
    reads = "one feature map of each network, the same index"
    requires = ("layer_exists", "equal_maps_without_regressor")
    version = 1

    def __init__(self, context: TermContext, *, layer: NonNegativeInt = 2, regressor: bool = True) -> None:
        super().__init__(context)
        last = min(len(context.student.features), len(context.teacher.features)) - 1
        if layer > last:
            raise BadInput(f"fitnet: layer must lie between 0 and {last} for these networks, not {layer}")
        source, target = context.student.features[layer], context.teacher.features[layer]
        if not regressor and source != target:
            raise BadInput(f"fitnet: the maps of layer {layer} differ, {source} and {target}: a regressor is needed")
        self.layer = layer
        self.regressor = build_regressor(source, target) if regressor else nn.Identity()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean squared error between the regressed map and the teacher's."""
        prediction, target = self.regressor(student.features[self.layer]), teacher.features[self.layer]
        if prediction.shape[2:] != target.shape[2:]:
            target = pool_like(target, prediction)
        return fitnet_loss(prediction, target)

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the one pair; the regressed map is compared."""
        source, target = student.features[self.layer], teacher.features[self.layer]
        prediction = self.regressor(source)
        return [LayerPair(source, target, compared=(prediction, pool_like(target, prediction)))]


@in_float32
def fitnet_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements of two equally shaped maps."""
    return F.mse_loss(prediction, target)


def build_regressor(source: Shape, target: Shape) -> nn.Sequential:
    """Convolution, batch norm and ReLU from a [C_s, h_s, w_s] map to C_t channels and, where possible, h_t × w_t."""
    (c_s, h_s, w_s), (c_t, h_t, w_t) = source, target
    convolution: nn.Module
    if h_s == 2 * h_t:
        convolution = nn.Conv2d(c_s, c_t, kernel_size=3, stride=2, padding=1)
    elif 2 * h_s == h_t:
        convolution = nn.ConvTranspose2d(c_s, c_t, kernel_size=4, stride=2, padding=1)
    elif h_s >= h_t and w_s >= w_t:
        convolution = nn.Conv2d(c_s, c_t, kernel_size=(1 + h_s - h_t, 1 + w_s - w_t))
    else:
        convolution = nn.Conv2d(c_s, c_t, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_t), nn.ReLU())
