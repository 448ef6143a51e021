"""Where a radiograph lies inside the network's square, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph

sides = st.one_of(st.integers(1, 200), st.integers(64, 5000))


@given(sides, sides, st.sampled_from([32, 64, 96, 512]))
def test_pad_keeps_the_aspect_to_half_a_pixel(height: int, width: int, size: int) -> None:
    g = Geometry.fit(height, width, size, "pad")
    ratio = size / max(height, width)
    assert max(g.content_height, g.content_width) == size
    for source, content, before in ((height, g.content_height, g.top), (width, g.content_width, g.left)):
        assert abs(content - source * ratio) <= max(0.5, 1 - source * ratio)
        after = size - content - before
        assert before >= 0
        assert after - before in (0, 1)


@settings(max_examples=60)
@given(st.integers(64, 900), st.integers(64, 900), st.sampled_from(["pad", "squash"]), st.sampled_from([1, 2]))
def test_a_position_comes_back_within_a_pixel(height: int, width: int, aspect: str, stride: int) -> None:
    """Each cell of a map over the square says where in the source its centre lies; each source pixel must read itself.

    stride 2 is the grid of the severity map and the lung masks.
    """
    size = 128
    g = Geometry.fit(height, width, size, aspect)
    centre = (np.arange(size // stride) + 0.5) * stride
    ys = (centre - g.top) * height / g.content_height - 0.5
    xs = (centre - g.left) * width / g.content_width - 0.5
    grid_y, grid_x = np.meshgrid(ys, xs, indexing="ij")
    back_y = g.to_source(grid_y.astype(np.float32))
    back_x = g.to_source(grid_x.astype(np.float32))
    assert back_y.shape == back_x.shape == (height, width)
    for found, axis, content in ((back_y, 0, g.content_height), (back_x, 1, g.content_width)):
        source = (height, width)[axis]
        cell = stride * source / content
        edge = int(np.ceil(cell))  # the outermost half cell has no neighbour to be read between
        wanted = np.arange(source).reshape((-1, 1) if axis == 0 else (1, -1))
        error = np.abs(found - wanted)
        inner = error[edge : source - edge] if axis == 0 else error[:, edge : source - edge]
        assert inner.size == 0 or inner.max() <= max(1.0, cell / 16)
        assert error.max() <= max(1.0, 0.6 * cell)


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["pad", "squash"]))
def test_a_blob_goes_there_and_back(data: st.DataObject, aspect: Any) -> None:
    """A bright block of the source is found at its place in the square and, carried back, in the source."""
    height, width = data.draw(st.integers(64, 700)), data.draw(st.integers(64, 700))
    config = PreprocessConfig(size=128, aspect=aspect)
    g = Geometry.fit(height, width, 128, aspect)
    bh, bw = max(3, 3 * height // g.content_height), max(3, 3 * width // g.content_width)
    top, left = data.draw(st.integers(bh, height - 2 * bh)), data.draw(st.integers(bw, width - 2 * bw))
    pixels = np.zeros((height, width), np.uint8)
    pixels[top : top + bh, left : left + bw] = 255
    tensor, geometry = preprocess(Radiograph(pixels), config)
    assert geometry == g

    light = (tensor[0] + 2) / 4
    light[: g.top] = light[g.top + g.content_height :] = 0
    light[:, : g.left] = light[:, g.left + g.content_width :] = 0
    y, x = centroid(light)
    cy, cx = top + bh / 2, left + bw / 2  # from pixel edges
    assert abs(y - (g.top + cy * g.content_height / height)) <= 1
    assert abs(x - (g.left + cx * g.content_width / width)) <= 1

    y, x = centroid(g.to_source(light))
    assert abs(y - cy) <= max(1.0, height / g.content_height)
    assert abs(x - cx) <= max(1.0, width / g.content_width)


def centroid(weights: NDArray[Any]) -> tuple[float, float]:
    """Row and column, from pixel edges: the centre of pixel (0, 0) is (0.5, 0.5)."""
    w = np.where(weights > 0.05, weights, 0).astype(float)
    return (
        float((w.sum(1) * (np.arange(w.shape[0]) + 0.5)).sum() / w.sum()),
        float((w.sum(0) * (np.arange(w.shape[1]) + 0.5)).sum() / w.sum()),
    )


@pytest.mark.parametrize("shape", [(64, 40000), (40000, 64), (64, 2500), (1, 1)])
def test_extreme_shapes_have_a_geometry(shape: tuple[int, int]) -> None:
    tensor, geometry = preprocess(Radiograph(np.zeros(shape, np.uint8)), PreprocessConfig(size=64))
    assert min(geometry.content_height, geometry.content_width) >= 1
    assert np.isfinite(tensor).all()
    assert geometry.to_source(tensor[0]).shape == shape


def test_to_source_can_stop_at_a_smaller_copy() -> None:
    """A thumbnail of the source gets the same map as the source, seen smaller."""
    g = Geometry.fit(400, 240, 128, "pad")
    y, x = np.mgrid[:64, :64].astype(np.float32)
    grid = y + 100 * x
    full, small = g.to_source(grid), g.to_source(grid, 100, 60)
    assert small.shape == (100, 60)
    np.testing.assert_allclose(small[2:-2, 2:-2], full.reshape(100, 4, 60, 4).mean((1, 3))[2:-2, 2:-2], atol=1.7)


@given(sides, sides, st.sampled_from([16, 64, 128, 256]), st.sampled_from(["pad", "squash"]))
def test_content_of_a_map_covers_the_source(height: int, width: int, grid: int, aspect: str) -> None:
    """Rounded outwards: every cell that holds a part of the source, and none that holds none."""
    g = Geometry.fit(height, width, 256, aspect)
    marked = np.zeros((256, 256), bool)
    marked[g.top : g.top + g.content_height, g.left : g.left + g.content_width] = True
    cell = 256 // grid
    touched = marked.reshape(grid, cell, grid, cell).any((1, 3))
    chosen = np.zeros((grid, grid), bool)
    g.content(chosen)[...] = True
    np.testing.assert_array_equal(chosen, touched)
