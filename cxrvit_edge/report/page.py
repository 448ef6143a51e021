"""What every page is made of: one file that needs no network, runs no script but its own, and says when it was made."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from pathlib import Path
from string import Template

_HERE = Path(__file__).parent


def page(title: str, style: str, body: str, *, scheme: str = "light", script: str = "") -> str:
    """HTML of a whole page around `body`; title and body are HTML already, style is CSS and ends with its line.

    scheme: colour schemes that the style has. script: the only one that a browser will run, after the body.
    """
    if script:
        body += f"<script>{script}</script>\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((_HERE / "page.html").read_text("utf-8")).substitute(
        title=title,
        style=style,
        body=body,
        scheme=scheme,
        allowed=f"; script-src 'sha256-{digest}'" if script else "",
    )


def printed_style() -> str:
    """CSS of the pages that are made to be printed."""
    return (_HERE / "page.css").read_text("utf-8")


def date(iso: str) -> str:
    """2026-11-23T11:06:42Z as 2026-11-23 11:06 UTC, from any time zone; the text as it is if it is no such time."""
    try:
        at = datetime.fromisoformat(iso.replace("Z", "+00:00"))  # Python 3.10 reads no Z
    except ValueError:
        return iso
    return at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
