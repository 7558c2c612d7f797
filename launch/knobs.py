"""The detector's knobs without the detector: `import aqr_model.knobs` would load all of it."""

import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aqr_model.knobs import Knob

_NAME = "launch._knobs_alone"


@cache
def load_knobs() -> "Mapping[str, Knob]":
    """The knobs by name; some ten seconds sooner than through their package."""
    package = importlib.util.find_spec("aqr_model")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "knobs.py"
    spec = importlib.util.spec_from_file_location(_NAME, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module  # dataclasses look for the module that defines them
    spec.loader.exec_module(module)
    return module.KNOBS
