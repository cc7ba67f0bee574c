"""Estimators of meta-gradients. To add one: a file here, a line in schema.py, and a YAML in conf/meta/."""

from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.meta.direct import Direct
from l2l_runner.meta.imitation import Imitation
from l2l_runner.meta.joint import Joint
from l2l_runner.meta.pes import PES
from l2l_runner.meta.starts import FOMAML, MAML, Leap, Reptile
from l2l_runner.meta.tbptt import TBPTT
from l2l_runner.meta.warpgrad import WarpGrad

__all__ = [
    "FOMAML",
    "MAML",
    "PES",
    "TBPTT",
    "Direct",
    "Estimate",
    "Imitation",
    "Joint",
    "Leap",
    "MetaGradient",
    "Reptile",
    "WarpGrad",
]
