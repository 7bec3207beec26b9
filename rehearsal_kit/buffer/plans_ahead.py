"""The plans of a rank that is alone, for several steps at once."""

from __future__ import annotations

from rehearsal_kit.base.randomness import Rekeyed
from rehearsal_kit.buffer.draw_plan import DrawPlan, plan_draw, plan_lines

STEPS = 16
"""Planned at once: arrays of so many steps take little longer than those of one."""


class PlansAhead:
    """What `plan_draw` gives for one store, planned ahead while only the step differs.

    drawing: the generator of the draw, keyed by branch and step. The numbers of a step are those that it
    would have by itself, whatever else was planned with it.
    """

    def __init__(self, drawing: Rekeyed) -> None:
        self._drawing = drawing
        self._given = (0, 0, 0)
        self._plans: dict[int, DrawPlan | None] = {}

    def plan(self, stored: int, count: int, *, branch: int, step: int) -> DrawPlan:
        """The plan of this step: so many of the samples stored."""
        if self._given != (stored, count, branch):  # as at every step while the store fills up
            self._given, self._plans = (stored, count, branch), {}
        elif step not in self._plans:
            steps, at = range(step, step + STEPS), self._drawing.at
            words = [at(branch, each).bit_generator.random_raw(count) for each in steps]
            self._plans = dict(zip(steps, plan_lines(stored, words), strict=True))
        planned = self._plans.pop(step, None)
        return planned or plan_draw([stored], [count], self._drawing.at(branch, step))
