"""Update rules, hand-designed and learned. To add one: a file here, a line below, and a YAML in conf/optimizer/."""

from __future__ import annotations

from l2l_runner.optimizers.adaptation import Adaptation, AdaptationConfig
from l2l_runner.optimizers.base import RULES, LearnedConfig, LearnedRule, Optimizer, RuleConfig, State
from l2l_runner.optimizers.grouped import Group, Grouped, GroupsConfig
from l2l_runner.optimizers.hand_designed import NAG, SGD, Adam, HandDesigned, Momentum, NoMetaTraining, RMSprop
from l2l_runner.optimizers.lstm import LSTM, LSTMConfig
from l2l_runner.optimizers.rnnprop import RNNprop, RNNpropConfig
from l2l_runner.optimizers.transformed import (
    HypergradientConfig,
    KroneckerConfig,
    MetaCurvatureConfig,
    MetaSGDConfig,
    ModuleTransformConfig,
    Transformed,
)
from l2l_runner.optimizers.warp_rnn import WarpRNN, WarpRNNConfig

HAND_DESIGNED: dict[str, type[HandDesigned]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nag": NAG,
    "rms": RMSprop,
    "adam": Adam,
    "none": NoMetaTraining,
}
LEARNED: dict[str, type[LearnedConfig]] = {
    "lstm": LSTMConfig,
    "rnnprop": RNNpropConfig,
    "metasgd": MetaSGDConfig,
    "metacurvature": MetaCurvatureConfig,
    "kronecker": KroneckerConfig,
    "module_transform": ModuleTransformConfig,
    "hypergradient": HypergradientConfig,
    "groups": GroupsConfig,
    **dict.fromkeys(("maml", "fomaml", "reptile", "leap", "finetune", "warp", "warp_leap"), AdaptationConfig),
    "warp_rnn": WarpRNNConfig,
}

RULES.maps = [HAND_DESIGNED, LEARNED]  # type: ignore[list-item] # read as a whole, and written table by table

__all__ = [
    "HAND_DESIGNED",
    "LEARNED",
    "LSTM",
    "NAG",
    "RULES",
    "SGD",
    "Adam",
    "Adaptation",
    "AdaptationConfig",
    "Group",
    "Grouped",
    "GroupsConfig",
    "HandDesigned",
    "LSTMConfig",
    "LearnedConfig",
    "LearnedRule",
    "Momentum",
    "Optimizer",
    "RMSprop",
    "RNNprop",
    "RNNpropConfig",
    "RuleConfig",
    "State",
    "Transformed",
    "WarpRNN",
    "WarpRNNConfig",
]
