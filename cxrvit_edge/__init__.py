"""cxrvit-edge: chest radiograph triage with a DenseNet + Vision Transformer network on the edge. Research use only.

from cxrvit_edge import Triage
for finding in Triage.open()(["films/"]):
    print(finding.file, finding.priority)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrvit_edge.bundle import Bundle
    from cxrvit_edge.errors import (
        BundleError,
        CxrVitError,
        DicomError,
        EngineError,
        InputError,
        ParityError,
        Reason,
        UsageError,
    )
    from cxrvit_edge.findings import Finding
    from cxrvit_edge.radiograph import Limits, Radiograph, read
    from cxrvit_edge.triage import Triage

__all__ = [
    "Bundle",
    "BundleError",
    "CxrVitError",
    "DicomError",
    "EngineError",
    "Finding",
    "InputError",
    "Limits",
    "ParityError",
    "Radiograph",
    "Reason",
    "Triage",
    "UsageError",
    "read",
]

_ROOMS = {"Bundle": "bundle", "Finding": "findings", "Triage": "triage"}
_ROOMS |= dict.fromkeys(("Limits", "Radiograph", "read"), "radiograph")


def __getattr__(name: str) -> Any:
    """A public name, from its room when it is first asked for: importing the package imports nothing heavy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
