"""Anomaly segmentation in road scenes with mask transformers.

`detector = eomt_exp.load_detector(run_folder)`, then `detector(image)` gives a score per pixel,
`detector.regions(image)` the regions above its threshold.
"""

from __future__ import annotations

import os as _os
import sys as _sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eomt_exp.trained_detector import load_detector

__all__ = ["load_detector"]

# Hydra finds plugins only in packages called hydra_plugins; ours lies inside this one.
_plugins = _os.path.join(_os.path.dirname(_os.path.abspath(__file__)), "_plugins")
if _plugins not in _sys.path:
    _sys.path.append(_plugins)


def __getattr__(name: str) -> object:
    # Imported when asked for: `python -m eomt_exp --help` must not wait for torch.
    if name == "load_detector":
        from eomt_exp.trained_detector import load_detector

        return load_detector
    if name == "__version__":
        from importlib.metadata import version

        return version("eomt-exp")
    raise AttributeError(f"module 'eomt_exp' has no attribute {name!r}")
