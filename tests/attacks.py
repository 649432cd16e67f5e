"""The hostile sites of `benchmarks/attacks.py`, for tests: a script's folder is no package."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "attacks.py"
_spec = spec_from_file_location("attacks", _SCRIPT)
assert _spec is not None
assert _spec.loader is not None
_module = module_from_spec(_spec)
_spec.loader.exec_module(_module)

overclaimed = _module.overclaimed
random_noise = _module.random_noise
replayed = _module.replayed
scaled = _module.scaled
sybils = _module.sybils
taught_defect = _module.taught_defect
