"""The exception tree, the reason codes, and that naming an error costs no heavy import."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from cxrvit_edge import errors
from cxrvit_edge.errors import CxrVitError, InputError, Reason

REJECTED = {
    "not_an_image", "is_directory", "wrong_modality", "wrong_body_part", "wrong_object", "lateral_view", "too_large",
    "too_small", "blank", "colour", "rotated", "inverted", "not_a_chest",
    "outside_folder",
}  # fmt: skip
FAILED = {
    "not_found", "no_permission", "empty_file", "truncated", "unreadable", "cannot_decode", "no_pixels", "not_finite",
    "internal", "timed_out", "decoder_died",
}  # fmt: skip


def test_every_reason_is_a_rejection_or_a_failure() -> None:
    assert {r.value for r in Reason if r.status == "rejected"} == REJECTED
    assert {r.value for r in Reason if r.status == "failed"} == FAILED


def test_a_reason_is_its_code_in_json() -> None:
    import json

    assert json.loads(json.dumps({"code": Reason.TOO_LARGE})) == {"code": "too_large"}
    assert Reason("too_large") is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "name", ["InputError", "BundleError", "EngineError", "ParityError", "DicomError", "UsageError"]
)
def test_the_tree_is_as_drawn(name: str) -> None:
    kind = getattr(errors, name)
    assert kind.__bases__ == (CxrVitError,)
    assert f"── {name} " in str(errors.__doc__)


def test_the_tree_drawn_names_every_error() -> None:
    defined = {
        n
        for n, v in vars(errors).items()
        if isinstance(v, type) and issubclass(v, CxrVitError) and v is not CxrVitError
    }
    drawn = {line.split("── ")[1].split()[0] for line in str(errors.__doc__).splitlines() if "── " in line}
    assert defined == drawn


@pytest.mark.parametrize("reason", list(Reason))
def test_input_error_crosses_a_process_border_whole(reason: Reason) -> None:
    error = pickle.loads(pickle.dumps(InputError(reason, "x.png: too small; send the original")))
    assert type(error) is InputError
    assert (error.reason, str(error)) == (reason, "x.png: too small; send the original")


def test_importing_errors_loads_nothing_heavy() -> None:
    code = (
        "import sys, cxrvit_edge.errors\n"
        "print([m for m in ('numpy', 'cv2', 'pydicom', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
