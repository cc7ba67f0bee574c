"""Pictures: numbers in, PNG files out.

Nothing here knows of runs, optimizers or PyTorch. `style` holds the one table of looks.
"""

from l2l_runner.plots.arms import online, reweighting
from l2l_runner.plots.curves import animation, comparison, learning, pictures, single_curve
from l2l_runner.plots.style import arm_label
from l2l_runner.plots.sweeps import sweep

__all__ = [
    "animation",
    "arm_label",
    "comparison",
    "learning",
    "online",
    "pictures",
    "reweighting",
    "single_curve",
    "sweep",
]
