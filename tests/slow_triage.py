"""A triage run that takes its time, to be killed: python tests/slow_triage.py FOLDER OUT BUNDLE."""

from __future__ import annotations

import sys
from pathlib import Path

from fakes import FakeSession, sessions

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.triage import Triage

if __name__ == "__main__":
    folder, out, bundle = sys.argv[1:]
    triage = Triage(Bundle.open(Path(bundle)), sessions(FakeSession(seconds=0.01)), workers=2)
    triage.run([folder], out)
