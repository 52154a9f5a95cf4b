"""The terms' plain functions against values that the published implementations give on inputs made by a formula."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.methods.ab import ab_loss
from kdbench.methods.at import at_loss
from kdbench.methods.cc import cc_loss
from kdbench.methods.ccl import symmetric_kl
from kdbench.methods.ce import cross_entropy
from kdbench.methods.crd import contrast_loss
from kdbench.methods.crosslayer import squared_error
from kdbench.methods.ega import ega_losses
from kdbench.methods.fitnet import fitnet_loss
from kdbench.methods.fsp import flow
from kdbench.methods.ft import factor_loss
from kdbench.methods.functional import pool_to_smaller
from kdbench.methods.hkd import hkd_loss
from kdbench.methods.irg import irg_loss
from kdbench.methods.kd import kd_loss
from kdbench.methods.mgd import channel_margins, mgd_loss
from kdbench.methods.nce import nce_loss
from kdbench.methods.nst import nst_loss
from kdbench.methods.online_kd import divergence
from kdbench.methods.pkt import pkt_loss
from kdbench.methods.rkd import rkd_angle_loss, rkd_distance_loss
from kdbench.methods.semckd import semckd_loss
from kdbench.methods.sp import sp_loss
from kdbench.methods.vid import vid_loss


def u(*shape, a, b):
    """sin(a·n + b), n = 0, 1, 2, …, row by row."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).reshape(shape).float()


ES, ET = u(8, 12, a=0.7, b=0.1), u(8, 16, a=0.3, b=0.5)
ET2 = u(8, 12, a=0.3, b=0.5)
FS, FT = u(8, 6, 8, 8, a=0.011, b=0.2), u(8, 10, 4, 4, a=0.017, b=0.4)
FS2 = u(8, 10, 4, 4, a=0.013, b=0.3)
ZS, ZT = 3 * u(8, 5, a=0.9, b=0.2), 3 * u(8, 5, a=0.4, b=0.7)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
RHO = torch.full((10,), math.log(math.expm1(5 - 1e-5)))
WEIGHTS = torch.softmax(u(8, 2, 3, a=0.5, b=0.1), dim=2)
P = (0.5 + 0.4 * u(4, 7, a=1.3, b=0.2)) / 50


def semckd_errors():
    """Errors [8, 2, 3] of two projected student maps, each with three maps of a teacher."""
    source = [u(8, 4, 3, 3, a=0.021 * (i + 1), b=0.1 * j) for i in range(2) for j in range(3)]
    target = [u(8, 4, 3, 3, a=0.033, b=0.2 * j) for _ in range(2) for j in range(3)]
    return torch.stack([squared_error(s, t) for s, t in zip(source, target, strict=True)], dim=1).reshape(8, 2, 3)


def fsp_loss():
    pairs = (FS, FS2), (u(8, 6, 8, 8, a=0.019, b=0.2), FT)
    ours, theirs = (flow(*pool_to_smaller(*pair)) for pair in pairs)
    return torch.nn.functional.mse_loss(ours, theirs)


ORACLE = {
    "ce": (lambda: cross_entropy(ZS, LABELS), 3.6366845),
    "kd": (lambda: kd_loss(ZS, ZT, 4.0), 2.9133106),
    "online-kd": (lambda: divergence(ZS[None], ZT, 3.0), 2.8529646),
    "fitnet": (lambda: fitnet_loss(FS2, FT), 1.2023419),
    "at": (lambda: at_loss(FS, FT), 2.7871192e-4),
    "sp": (lambda: sp_loss(FS, FT), 0.23713768),
    "vid": (lambda: vid_loss(FS2, FT, RHO, 1e-5), 0.92495316),
    "rkd distance": (lambda: rkd_distance_loss(ES, ET), 0.24032037),
    "rkd angle": (lambda: rkd_angle_loss(ES, ET), 0.20154825),
    "rkd": (lambda: 25 * rkd_distance_loss(ES, ET) + 50 * rkd_angle_loss(ES, ET), 16.085422),
    "semckd": (lambda: semckd_loss(semckd_errors(), WEIGHTS), 0.937433),
    "ab, last stage but one": (lambda: ab_loss(FS2, FT, 1.0) * 0.003 / 2, 0.42485705),
    "ab, last stage": (lambda: ab_loss(-FS2, FT, 1.0) * 0.003, 0.58908772),
    "fsp": (fsp_loss, 0.45934797),
    "mgd": (lambda: mgd_loss(FS2, FT, torch.full((10,), -0.3)), 1140.2407),
    "hkd": (lambda: hkd_loss(ES, ET), 0.23524219),
    "hkd, two stages": (lambda: 100 * hkd_loss(ES, ET) + hkd_loss(ES, ET2), 23.725841),
    "cc": (lambda: cc_loss(ES, ET2), 9.0645477),
    "ft": (lambda: factor_loss(FS, FT), 0.013655661),
    "nst": (lambda: nst_loss(FS, FT), 0.031886635),
    "crd": (lambda: contrast_loss(P, torch.ones_like(P), 6 / 50), 2.9875438),
    "nce": (lambda: nce_loss(ES, ET2, LABELS, 0.1), 3.9982934),
    "symmetric kl": (lambda: symmetric_kl(ZS, ZT), 1.7962814),
    "ccl": (lambda: nce_loss(ES, ET2, LABELS, 0.1) + symmetric_kl(ZS, ZT), 5.7945748),
    "ega node": (lambda: ega_losses(ES, ET2)[0], 4.0626037),
    "ega edge": (lambda: ega_losses(ES, ET2)[1], 7.8622508),
    "irg edge": (lambda: irg_loss(ES, ET), 0.26311039),
    "irg": (lambda: irg_loss(ES, ET2), 1.2387194),
    "pkt": (lambda: pkt_loss(ES, ET), 0.06544838),
}


@pytest.mark.parametrize("name", ORACLE)
def test_value(name):
    loss, expected = ORACLE[name]
    assert loss().item() == pytest.approx(expected, rel=1e-5)


def test_margins():
    norm = torch.nn.BatchNorm2d(6)
    norm.weight.data = torch.tensor([1.0, 0.5, 0.1, -0.7, 0.0, 0.0])
    norm.bias.data = torch.tensor([0.0, 0.2, 1.0, 0.3, 0.5, -0.5])
    expected = [-0.79788456, -0.33437809, -0.3, -0.46247324, 0.0, -0.5]
    assert channel_margins(norm).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
