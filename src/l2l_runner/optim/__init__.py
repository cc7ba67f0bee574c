"""Building blocks of differentiable optimization, for any PyTorch code.

Names and signatures are those of learn2learn's `optim`. Unlike there, results can be copied, saved and loaded, and
parameters stay parameters.
"""

from l2l_runner.optim.learnable import LearnableOptimizer
from l2l_runner.optim.transforms import (
    ByPattern,
    KroneckerLinear,
    KroneckerTransform,
    MetaCurvatureTransform,
    MetaSGD,
    ModuleTransform,
    ReshapedTransform,
    Transform,
    TransformDictionary,
)
from l2l_runner.optim.updates import DifferentiableSGD, ParameterUpdate, replace_parameters

__all__ = [
    "ByPattern",
    "DifferentiableSGD",
    "KroneckerLinear",
    "KroneckerTransform",
    "LearnableOptimizer",
    "MetaCurvatureTransform",
    "MetaSGD",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "Transform",
    "TransformDictionary",
    "replace_parameters",
]
