"""Estimators of meta-gradients. To add one: a file here, a line in METAS, and a YAML in conf/meta/."""

from l2l_runner.meta.base import Estimate, MetaConfig, MetaGradient, MetaTrainingConfig, Unroll
from l2l_runner.meta.direct import Direct
from l2l_runner.meta.imitation import Imitation, TBPTTConfig
from l2l_runner.meta.joint import Joint, JointConfig
from l2l_runner.meta.online import OnlineConfig
from l2l_runner.meta.pes import PES, PESConfig
from l2l_runner.meta.reweight import ReweightConfig
from l2l_runner.meta.starts import (
    FOMAML,
    MAML,
    FOMAMLConfig,
    Leap,
    LeapConfig,
    MAMLConfig,
    Reptile,
    ReptileConfig,
)
from l2l_runner.meta.tbptt import TBPTT
from l2l_runner.meta.warpgrad import WarpGrad, WarpGradConfig

METAS: dict[str, type[MetaConfig]] = {
    "tbptt": TBPTTConfig,
    "pes": PESConfig,
    "maml": MAMLConfig,
    "fomaml": FOMAMLConfig,
    "reptile": ReptileConfig,
    "leap": LeapConfig,
    "joint": JointConfig,
    "warpgrad": WarpGradConfig,
    "online": OnlineConfig,
    "reweight": ReweightConfig,
}

__all__ = [
    "FOMAML",
    "MAML",
    "METAS",
    "PES",
    "TBPTT",
    "Direct",
    "Estimate",
    "Imitation",
    "Joint",
    "Leap",
    "MetaConfig",
    "MetaGradient",
    "MetaTrainingConfig",
    "OnlineConfig",
    "PESConfig",
    "Reptile",
    "ReweightConfig",
    "TBPTTConfig",
    "Unroll",
    "WarpGrad",
    "WarpGradConfig",
]
