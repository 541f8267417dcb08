"""Pieces of the page: figures with captions, the strip of pictures to choose from, bars; their behaviour and style."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from hf_geossl.demo.pictures import data_url

_THUMBNAIL = 96
KEYS = {"pick": "arrow keys move the spot", "box": "arrow keys move the box, with Shift they change its size"}


@dataclass
class Figure:
    """A picture with its caption, in plain text."""

    picture: Image.Image
    caption: str
    kind: str | None = None  # "pick" where it is clicked, "box" where a box is drawn on it
    place: tuple[float, ...] = (0.5, 0.5)  # what is picked now, x, y (of a box also x2, y2) in shares of the sides
    grid: tuple[int, int] = (1, 1)  # rows and columns of patches that arrow keys move it over
    rough: bool = False  # its pixels stay visible where it is enlarged


def figures(*shown: Figure, columns: int = 3, narrow: int = 2) -> str:
    """Figures in `columns` columns, in `narrow` ones on a phone, where what can be clicked has a row for itself."""
    grid = "".join(map(_figure, shown))
    return f'<div class="geo-figures" style="--columns: {columns}; --narrow: {narrow}">{grid}</div>'


def _figure(figure: Figure) -> str:
    image = f'<img src="{data_url(figure.picture)}" alt="{escape(figure.caption)}" draggable="false">'
    if figure.kind is not None:
        names = ("x", "y", "right", "bottom")
        place = " ".join(f'data-{name}="{value:.6f}"' for name, value in zip(names, figure.place, strict=False))
        image = (
            f'<div class="geo-picture" tabindex="0" role="application" aria-label="{escape(figure.caption)}; {KEYS[figure.kind]}" '
            f'data-kind="{figure.kind}" {place} data-rows="{figure.grid[0]}" data-columns="{figure.grid[1]}">{image}</div>'
        )
    rough = ' class="geo-rough"' if figure.rough else ""
    return f"<figure{rough}>{image}<figcaption>{escape(figure.caption)}</figcaption></figure>"


def said(text: str) -> str:
    """A sentence under the figures."""
    return f'<p class="geo-said">{escape(text)}</p>'


def strip(pictures: Sequence[Image.Image], chosen: int, upload: Image.Image | None, name: str, note: str = "") -> str:
    """Pictures to choose from, in one row that scrolls by itself; the upload, of index -1, stands first.

    `name` says what is chosen to those who do not see it; the note, where there is one, stands below.
    """
    offered = [(-1, upload, "the uploaded picture")] if upload is not None else []
    shown = [*offered, *((index, picture, f"sample {index + 1}") for index, picture in enumerate(pictures))]
    buttons = []
    for index, picture, label in shown:
        small = picture.copy()
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        pressed = "true" if index == chosen else "false"
        buttons.append(
            f'<button type="button" data-index="{index}" aria-pressed="{pressed}" aria-label="{escape(name)}: {label}">'
            f'<img src="{data_url(small)}" alt=""></button>'
        )
    below = f'<p class="geo-note">{escape(note)}</p>' if note else ""
    if not buttons:
        return below
    return f'<div class="geo-strip" role="group" aria-label="{escape(name)}">{"".join(buttons)}</div>{below}'


def bars(names: Sequence[str], shares: Sequence[float], true: int) -> str:
    """Shares as bars; the name of the true one is bold."""
    rows = [
        f'<span class="{"true" if index == true else "other"}">{escape(name)}</span>'
        f'<span class="track"><span style="width: {100 * share:.2f}%"></span></span><span>{100 * share:.1f}%</span>'
        for index, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    return f'<div class="geo-bars">{"".join(rows)}</div>'


def legend(entries: Sequence[tuple[str, tuple[int, ...] | None]]) -> str:
    """Texts in one row that wraps, with squares of their colours before them."""
    items = []
    for text, color in entries:
        square = "" if color is None else f'<span style="background: rgb{tuple(int(part) for part in color)}"></span>'
        items.append(f"<li>{square}{escape(text)}</li>")
    return f'<ul class="geo-legend">{"".join(items)}</ul>'


# ---- Style and behaviour; part of the page, so that nothing is fetched

# `element`, `trigger`: given by gradio.HTML. A picture is clicked (or moved over with arrow keys), or a box is drawn on it.
PICTURE_SCRIPT = """
const share = (value) => Math.min(1, Math.max(0, value));
const place = (event, picture) => {
    const box = picture.getBoundingClientRect();
    return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
};
let start = null;
let frame = null;
const draw = (from, to) => {
    const low = [0, 1].map((axis) => Math.min(from[axis], to[axis]));
    const high = [0, 1].map((axis) => Math.max(from[axis], to[axis]));
    Object.assign(frame.style, {
        left: `${100 * low[0]}%`, top: `${100 * low[1]}%`,
        width: `${100 * (high[0] - low[0])}%`, height: `${100 * (high[1] - low[1])}%`,
    });
};
const stop = () => { start = null; if (frame) { frame.remove(); frame = null; } };
element.addEventListener('pointerdown', (event) => {
    const picture = event.target.closest('[data-kind=box]');
    if (!picture || !event.isPrimary || event.button) return;
    event.preventDefault();
    stop();
    start = place(event, picture);
    frame = document.createElement('div');
    frame.className = 'geo-frame';
    picture.append(frame);
    draw(start, start);
    picture.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', (event) => {
    if (start) draw(start, place(event, frame.parentElement));
});
element.addEventListener('pointerup', (event) => {
    if (!start) return;
    const end = place(event, frame.parentElement);
    trigger('box', {x1: start[0], y1: start[1], x2: end[0], y2: end[1]});
    stop();
});
element.addEventListener('pointercancel', stop);
element.addEventListener('dragstart', (event) => event.preventDefault());
element.addEventListener('click', (event) => {
    const picture = event.target.closest('[data-kind=pick]');
    if (!picture) return;
    const [x, y] = place(event, picture);
    trigger('pick', {x, y});
});
element.addEventListener('keydown', (event) => {
    const picture = event.target.closest('[data-kind]');
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!picture || !step) return;
    event.preventDefault();
    const data = picture.dataset;
    const [across, down] = [step[0] / Number(data.columns), step[1] / Number(data.rows)];
    const moved = (names, by) => names.forEach((name) => { data[name] = share(Number(data[name]) + by); });
    refocus = true;
    if (picture.matches('[data-kind=pick]')) {
        moved(['x'], across);
        moved(['y'], down);
        trigger('pick', {x: Number(data.x), y: Number(data.y)});
        return;
    }
    const [x1, y1, x2, y2] = [data.x, data.y, data.right, data.bottom].map(Number);
    const within = (by, low, high) => Math.min(high, Math.max(low, by));
    const least = event.shiftKey ? [x1 + 1 / data.columns - x2, y1 + 1 / data.rows - y2] : [-x1, -y1];
    moved(event.shiftKey ? ['right'] : ['x', 'right'], within(across, least[0], 1 - x2));
    moved(event.shiftKey ? ['bottom'] : ['y', 'bottom'], within(down, least[1], 1 - y2));
    trigger('box', {x1: Number(data.x), y1: Number(data.y), x2: Number(data.right), y2: Number(data.bottom)});
});
// each answer is a new picture: the keyboard stays on it
let refocus = false;
element.addEventListener('pointerdown', () => { refocus = false; });
new MutationObserver(() => {
    const picture = element.querySelector('[data-kind]');
    if (refocus && picture && document.activeElement === document.body) picture.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""

STRIP_SCRIPT = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-index]');
    if (!button) return;
    refocus = true;
    trigger('choose', {index: Number(button.dataset.index)});
});
let refocus = false;
new MutationObserver(() => {
    const chosen = element.querySelector('button[aria-pressed=true]');
    if (refocus && chosen && document.activeElement === document.body) chosen.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""

STYLE = """<style>
.gradio-container { overflow-x: hidden; }
.gradio-container button, .gradio-container label { touch-action: manipulation; }
.gradio-container button.geo-upload { min-height: 44px; min-width: 160px; flex: 0 0 auto; }
.gradio-container .geo-head { flex-wrap: nowrap; align-items: center; justify-content: space-between; }
.gradio-container .geo-head > :first-child { flex: 0 1 auto; min-width: 0; width: auto; }
.gradio-container [role=tab][aria-selected=true] { color: var(--body-text-color); font-weight: 600; }
.gradio-container :is(button, input):focus-visible { outline: 3px solid var(--color-accent);
    outline-offset: 2px; }
.gradio-container [role=radiogroup] label, .gradio-container fieldset .wrap label { min-height: 44px; min-width: 44px; }
.gradio-container .html-container { padding: 0; }
.gradio-container input[type=range] { min-height: 12px; }
.gradio-container input[type=range]::-webkit-slider-thumb { width: 28px; height: 28px; margin-top: -10px;
    border: 2px solid var(--color-accent); }
.gradio-container input[type=range]::-moz-range-thumb { width: 28px; height: 28px;
    border: 2px solid var(--color-accent); }
.tab-container.wrap { background: none !important; }
.tab-container.wrap button { height: 44px !important; font-size: 16px; }
.geo-strip { display: flex; gap: 8px; overflow-x: auto; padding: 4px 4px 10px; }
.geo-strip button { flex: 0 0 auto; width: 68px; height: 68px; padding: 0; border: 3px solid transparent;
    border-radius: 10px; background: none; overflow: hidden; cursor: pointer; }
.geo-strip button[aria-pressed=true] { border-color: var(--color-accent); }
.geo-strip button:focus-visible, .geo-picture:focus-visible { outline: 3px solid var(--color-accent); outline-offset: -3px; }
.geo-strip img { width: 100%; height: 100%; object-fit: cover; display: block; border-radius: 6px; }
.geo-figures { display: grid; gap: 14px; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); margin: 4px 0; }
.geo-figures figure { margin: 0; }
.geo-figures figcaption { color: var(--body-text-color); font-size: 15px; line-height: 1.35; padding: 4px 0; }
.geo-figures img { width: 100%; max-width: 448px; height: auto; display: block; border-radius: 4px; }
.geo-figures .geo-rough img { image-rendering: pixelated; }
.geo-picture { position: relative; max-width: 448px; cursor: crosshair; user-select: none; -webkit-user-select: none; }
.geo-picture img { pointer-events: none; -webkit-user-drag: none; }
.geo-picture[data-kind=box] { touch-action: none; }
.geo-frame { position: absolute; border: 3px solid #00c8ff; box-shadow: 0 0 0 1px #000, inset 0 0 0 1px #000;
    box-sizing: border-box; pointer-events: none; }
.geo-channels input { min-height: 22px; text-overflow: ellipsis; }
.geo-note { color: var(--body-text-color); font-size: 15px; line-height: 1.35; margin: 0 4px 8px; }
.geo-said { color: var(--body-text-color); font-size: 16px; line-height: 1.45; margin: 8px 0; }
.gradio-container ul.geo-legend { display: flex; flex-wrap: wrap; gap: 8px 18px; list-style: none; padding: 0; margin: 8px 0;
    color: var(--body-text-color); font-size: 16px; }
.geo-legend li { display: flex; align-items: center; gap: 8px; margin: 0; }
.geo-legend span { width: 18px; height: 18px; border: 1px solid #222; border-radius: 3px; flex: none; }
.geo-bars { display: grid; grid-template-columns: auto 1fr auto; gap: 10px; align-items: center; max-width: 620px;
    color: var(--body-text-color); font-size: 16px; margin: 8px 0; }
.geo-bars .track { background: var(--border-color-primary); border-radius: 4px; height: 22px; overflow: hidden; }
.geo-bars .track span { display: block; height: 100%; background: var(--color-accent); }
.geo-bars .true { font-weight: 700; }
@media (max-width: 640px) {
    .tab-container.wrap button { font-size: 15px; padding: 0 8px !important; }
    .geo-figures { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)); gap: 10px; }
    .geo-figures figure:has(.geo-picture), .geo-figures figure:only-child { grid-column: 1 / -1; }
    .geo-figures figure:first-child:has(.geo-picture) ~ figure:last-child:nth-child(even) { grid-column: 1 / -1; }
    .geo-figures figcaption { font-size: 14px; }
}
</style>"""
