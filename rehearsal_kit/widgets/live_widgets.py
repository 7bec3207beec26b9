"""The moving parts of the panel: flow control, the state line with its clock, image tiles.

The JavaScript is text of a few KB: no build step and nothing fetched from a network. Every push carries
the whole state, because messages get lost (a rate limiter, a closed page) and the next one must repair all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import traitlets

from rehearsal_kit.reports.pictures import Tile, colours, indices, shrink

LIVE_SIDE = 128
"""Longest edge of a tile in pixels of data; larger pictures are averaged down."""

_STATE_JS = """
const STALE_AFTER_S = 5;

function element(tag, name, parent) {
  const made = document.createElement(tag);
  made.className = name;
  parent.append(made);
  return made;
}

function render({ model, el }) {
  el.classList.add("rk-state");
  const word = element("span", "rk-word", el), facts = element("span", "rk-facts", el);
  const clock = element("span", "rk-clock", el);
  el.setAttribute("role", "status");
  facts.setAttribute("aria-live", "off");   // numbers that change twice a second are not read aloud
  clock.setAttribute("aria-live", "off");
  let last = null;
  const paint = () => {
    const [state, pairs] = [model.get("state"), model.get("facts")];
    if (word.textContent !== state) word.textContent = state;
    el.dataset.state = state;
    while (facts.children.length > pairs.length) facts.lastChild.remove();
    pairs.forEach(([name, value], i) => {
      const fact = facts.children[i] || element("span", "rk-fact", facts);
      if (!fact.children.length) { element("span", "rk-name", fact); element("b", "", fact); }
      fact.children[0].textContent = name + " ";
      fact.children[1].textContent = value;
    });
  };
  const tell = () => {
    const age = last === null ? 0 : Math.round((Date.now() - last) / 1000);
    const closed = model.get("closed");
    const stale = closed || last === null || age > STALE_AFTER_S;
    const box = el.closest(".rk-panel");
    if (box) box.classList.toggle("rk-stale", stale);
    clock.textContent = last === null ? "no update yet"
      : closed ? "closed at " + new Date(last).toLocaleTimeString()
      : "last update " + (age < 2 ? "now" : age + " s ago");
  };
  const say = (name, value) => { model.set(name, value); model.save_changes(); };
  const theme = () => document.body.dataset.jpThemeLight === "false" ? "dark" : "light";
  const ticked = () => requestAnimationFrame(() => {
    const push = model.get("push");
    last = Date.now(); paint(); tell();
    say("acknowledged", push); el.dataset.push = push;
  });
  const watcher = new MutationObserver(() => { if (model.get("theme") !== theme()) say("theme", theme()); });
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  const timer = setInterval(tell, 1000);
  model.on("change:push", ticked);
  model.on("change:closed", tell);
  paint(); tell();
  if (model.get("theme") !== theme()) model.set("theme", theme());
  say("hello", Date.now());   // a new view wants everything at once
  return () => { clearInterval(timer); watcher.disconnect(); model.off("change:push", ticked); };
}
export default { render };
"""

_STATE_CSS = """
.rk-panel { color: var(--jp-ui-font-color1, #222); font: 13px/1.45 var(--jp-ui-font-family, sans-serif); }
.rk-panel { overflow: hidden; }
.rk-plots > * { width: 100%; min-width: 0; }
.rk-state { display: flex; align-items: center; gap: 14px; min-height: 30px; white-space: nowrap; }
.rk-word { font-weight: 700; padding: 2px 12px; border-radius: 11px; color: #fff; background: #6b7280; }
.rk-state[data-state=running] .rk-word { background: #00805d; }
.rk-state[data-state=paused] .rk-word, .rk-state[data-state=recovering] .rk-word,
.rk-state[data-state=moving] .rk-word { background: #a85a00; }
.rk-state[data-state=failed] .rk-word { background: #c0262d; }
.rk-state[data-state=starting] .rk-word, .rk-state[data-state=waiting] .rk-word { background: #1f6feb; }
.rk-facts { display: flex; flex-wrap: wrap; gap: 2px 18px; }
.rk-name, .rk-clock { color: var(--jp-ui-font-color2, #666); }
.rk-fact b { font-variant-numeric: tabular-nums; font-weight: 600; }
.rk-clock { margin-left: auto; font-variant-numeric: tabular-nums; }
.rk-stale .rk-word { background: #8c8c8c !important; }
.rk-stale .rk-facts, .rk-stale .rk-plots, .rk-stale .rk-tiles { opacity: 0.45; filter: grayscale(1); }
.rk-stale .rk-clock { font-weight: 700; }
"""

_TILES_JS = """
function paint(canvas, bytes, [height, width], table) {
  const colours = new Uint32Array(table.buffer.slice(table.byteOffset, table.byteOffset + 1024));
  const numbers = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < numbers.length; i++) words[i] = colours[numbers[i]];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function render({ model, el }) {
  el.classList.add("rk-tiles");
  const ramp = new DataView(Uint8Array.from({ length: 255 }, (_, i) => i + 1).buffer);
  let queued = false;
  const cell = (i) => {
    if (el.children[i]) return el.children[i];
    const figure = document.createElement("figure");
    figure.innerHTML = "<figcaption></figcaption><canvas role='img'></canvas>" +
      "<div class='rk-scale'><span></span><canvas></canvas><span></span></div>";
    el.append(figure);
    return figure;
  };
  const draw = () => {
    queued = false;
    const tiles = model.get("tiles");
    while (el.children.length > tiles.length) el.lastChild.remove();
    tiles.forEach((tile, i) => {
      const figure = cell(i), [picture, scale] = figure.querySelectorAll("canvas");
      const [low, high] = figure.querySelectorAll("span");
      figure.firstChild.textContent = figure.firstChild.title = tile.caption;
      picture.setAttribute("aria-label", tile.caption + ", from " + tile.low + " to " + tile.high);
      paint(picture, tile.pixels, tile.shape, tile.colours);
      paint(scale, ramp, [1, 255], tile.colours);
      low.textContent = tile.low; high.textContent = tile.high;
    });
  };
  // At most one repaint per animation frame: the newest data wins.
  const ask = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };
  model.on("change:tiles", ask);
  draw();
  return () => model.off("change:tiles", ask);
}
export default { render };
"""

_TILES_CSS = """
.rk-tiles { display: grid; grid-template-columns: repeat(5, minmax(90px, 168px)); gap: 14px; padding: 1px; }
.rk-tiles figure { margin: 0; min-width: 0; }
.rk-tiles figcaption { font-size: 12px; margin-bottom: 3px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.rk-tiles figure > canvas { width: 100%; aspect-ratio: 1; image-rendering: pixelated; display: block;
  box-shadow: 0 0 0 1px var(--jp-border-color2, #ccc); }
.rk-scale { display: flex; align-items: center; gap: 5px; margin-top: 4px; font-size: 11px;
  color: var(--jp-ui-font-color2, #666); font-variant-numeric: tabular-nums; }
.rk-scale canvas { flex: 1; min-width: 0; height: 7px; }
"""


class Pacer:
    """Credit of one: the next push goes out once the page acknowledged the last, or after `patience` s.

    Without it a page slower than the sender falls behind without bound.
    """

    def __init__(self, *, patience: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.sent = 0
        self.acknowledged = 0
        self._patience = patience
        self._clock = clock
        self._sent_at = float("-inf")

    def ready(self) -> bool:
        """Whether the page has room for one more push, or nobody has answered for long."""
        return self.acknowledged >= self.sent or self._clock() - self._sent_at >= self._patience

    def send(self) -> int:
        """Number of the push that is going out now; the first is 1."""
        self.sent += 1
        self._sent_at = self._clock()
        return self.sent


class StateLine(anywidget.AnyWidget):
    """What the run is doing, in words and numbers, and how old that is by the page's own clock.

    It also carries what the page tells the kernel: which push it has painted, its theme, that it is new.
    """

    _esm, _css = _STATE_JS, _STATE_CSS
    state = traitlets.Unicode("created").tag(sync=True)
    facts: Any = traitlets.List().tag(sync=True)
    push = traitlets.Int(0).tag(sync=True)
    closed = traitlets.Bool(False).tag(sync=True)
    acknowledged = traitlets.Int(0).tag(sync=True)
    theme = traitlets.Unicode("light").tag(sync=True)
    hello = traitlets.Float(0).tag(sync=True)


class Tiles(anywidget.AnyWidget):
    """Pictures in a row, as bytes painted on canvases; each with its scale."""

    _esm, _css = _TILES_JS, _TILES_CSS
    tiles: Any = traitlets.List().tag(sync=True)

    def show(self, tiles: Sequence[Tile]) -> None:
        """Replace all pictures in one message."""
        self.tiles = [_plain(tile) for tile in tiles]

    def clear(self, captions: Sequence[str]) -> None:
        """Empty frames with these captions."""
        blank = {"shape": (1, 1), "pixels": b"\0", "colours": colours("grey"), "low": "", "high": ""}
        self.tiles = [{"caption": caption, **blank} for caption in captions]


def _plain(tile: Tile) -> dict[str, object]:
    pixels = indices(shrink(tile.image, LIVE_SIDE), tile.scale)
    return {
        "caption": tile.caption,
        "shape": pixels.shape,
        "pixels": pixels.tobytes(),
        "colours": tile.scale.colours,
        "low": f"{tile.scale.low:.3g}",
        "high": f"{tile.scale.high:.3g}",
    }
