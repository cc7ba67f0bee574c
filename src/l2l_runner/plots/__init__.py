"""Pictures: numbers in, PNG files out.

Nothing here knows of runs, optimizers or PyTorch. `style` holds the one table of looks.
"""

import os
import sys
from contextlib import suppress

if "matplotlib" not in sys.modules:
    # Pictures are files: a backend that is not installed here, such as one inherited from a notebook, is ignored.
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend

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
