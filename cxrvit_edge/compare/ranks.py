"""The chart of two worklists: every image by its place in A and in B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from cxrvit_edge.report.axes import COLOURS, STRONG, TEXT, Scale, bottom, empty, left, line, number, svg, text

_W, _H = 470, 440


def ranks(
    places: Sequence[Sequence[int]],
    flipped: Sequence[Sequence[int]],
    images: int,
    order: Sequence[str],
    priorities: Sequence[Mapping[str, int]],
) -> str:
    """SVG; place 1 is at the upper left.

    places: [in A, in B] of the images drawn; flipped: of those whose priority or status changed, drawn larger;
    priorities: of A and of B, priority -> images, whose borders are drawn in `order`.
    """
    if not places:
        return empty("No image is on both sides.")
    x, y = Scale(1, max(images, 2), 52, _W - 8), Scale(1, max(images, 2), 8, 370)
    out = [
        bottom(x, y.stop, y.start, "Place in A (1 is the most urgent)"),
        left(y, x.start, x.stop, "Place in B"),
        line(x(1), y(1), x(images), y(images), stroke=STRONG, dash="1 3"),
    ]
    for counts, across in zip(priorities, (False, True), strict=True):
        known = [p for p in order if counts.get(p)]
        ends = list(accumulate(counts[p] for p in known))
        for end in ends[:-1]:
            ends_at = (
                (x.start, y(end + 0.5), x.stop, y(end + 0.5))
                if across
                else (x(end + 0.5), y.start, x(end + 0.5), y.stop)
            )
            out.append(line(*ends_at, stroke=TEXT, dash="6 4", width=0.6))
        if not across:
            for name, start, end in zip(known, [0, *ends], ends, strict=False):
                if x(end) - x(start + 1) > 6.4 * len(name):
                    out.append(text((x(start + 1) + x(end)) / 2, y.stop - 6, name, anchor="middle", fill=TEXT))
    dots = "".join(f"M{number(x(a))} {number(y(b))}h0" for a, b in places)
    out.append(f'<path d="{dots}" stroke="{COLOURS[0]}" stroke-width="4" stroke-linecap="round" stroke-opacity=".6"/>')
    out += [
        f'<circle cx="{number(x(a))}" cy="{number(y(b))}" r="4.5" fill="#fff" stroke="{COLOURS[1]}" stroke-width="2"/>'
        for a, b in flipped
    ]
    said = f"Place of {images} images in the worklist of A and of B; {len(flipped)} of another priority or status."
    return svg(_W, _H - 30, "Worklist order", said, "".join(out))
