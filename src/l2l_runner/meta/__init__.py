"""Estimators of meta-gradients. To add one: a file here, a line in schema.py, and a YAML in conf/meta/."""

from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.meta.imitation import Imitation
from l2l_runner.meta.pes import PES
from l2l_runner.meta.tbptt import TBPTT

__all__ = ["PES", "TBPTT", "Estimate", "Imitation", "MetaGradient"]
