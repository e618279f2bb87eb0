"""Bytes that are alive while strips of a layer or of a residual block are computed, for the predictions of steps."""

from dataclasses import replace
from functools import partial

from remote_vae.core.filters import lead_of
from remote_vae.core.scratch import scratch_of
from remote_vae.core.stages import Layer, Residual
from remote_vae.core.sweep import MapSize, StripPlan


def window_bytes(layer: Layer, given: MapSize, plan: StripPlan) -> int:
    """Bytes of the windows that a layer reads for the strips at work."""
    return given.strips(plan, halo=layer.halo, lead=lead_of(layer, given.frames))


def swept_bytes(before: MapSize, after: tuple[MapSize, ...], plan: StripPlan) -> int:
    """Bytes while maps are written: at the start the old map is whole, at the end the new ones are."""
    start = before.map_bytes + sum(size.strips(plan) for size in after)
    end = before.strips(plan) + sum(size.map_bytes for size in after)
    return max(start, end)


def between_bytes(block: Residual, before: MapSize, after: MapSize, plan: StripPlan) -> tuple[int, int, int]:
    """Bytes between the maps of a recomputed block: while strips are computed, and of the strips that come out.

    Each convolution's window lies beside what the layer before it gave. The third number counts the strips at work.
    """
    rows = plan.rows(after.widened(block.first.channels))
    at_a_time = plan.at_a_time(after, rows)
    row = at_a_time * after.row_bytes // after.channels  # bytes of one row of one channel in every strip at work
    lead = after.frames + lead_of(block.first, after.frames)
    given, hidden = (
        size * row * lead // after.frames for size in ((rows + 4) * before.channels, (rows + 2) * block.first.channels)
    )
    found = rows * row * after.channels
    return max(given + hidden, hidden + max(hidden, found)), found, at_a_time


def scratches(block: Residual, before: MapSize, after: MapSize, plan: StripPlan) -> tuple[int, int, int]:
    """What the first convolution, the second one and the shortcut hold for themselves."""
    held, given = partial(scratch, plan=plan), replace(after, channels=before.channels)
    second = held(block.second, replace(after, channels=block.first.channels))
    return held(block.first, given), second, 0 if block.shortcut is None else held(block.shortcut, given)


def scratch(layer: Layer, given: MapSize, plan: StripPlan) -> int:
    """What a layer holds beside the windows and the results of the strips at work."""
    rows = plan.rows(given.widened(layer.channels))
    return scratch_of(layer, given.height, given.width, rows, given.frames).of(plan.at_a_time(given, rows))
