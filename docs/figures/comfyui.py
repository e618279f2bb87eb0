"""Draws the example workflows of the ComfyUI nodes from their files: `python docs/figures/comfyui.py`.

The drawings are the thumbnails in ComfyUI's template browser, and the picture of docs/comfyui.md.
"""

import json
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "integrations" / "comfyui" / "example_workflows"
PICTURE: Final = ROOT / "docs" / "images" / "comfyui.webp"
SHOWN: Final = "Decode on another machine"  # in the documentation
SCALE, MARGIN, LINE = 2, 30, 22  # pixels for a unit of the files; units
BACK, NODE, HEAD, OURS, TEXT, FIELD = "#202124", "#353535", "#2a2a2a", "#3b3f8f", "#d6d6d6", "#222222"
COLOURS: Final = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "MASK": "#81c784",
}


def draw(document: dict[str, Any]) -> Image.Image:
    """The nodes at their places, with their sockets, links and values."""
    nodes = {node["id"]: node for node in document["nodes"]}
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values()) + MARGIN
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes.values()) + MARGIN
    image = Image.new("RGB", (right * SCALE, bottom * SCALE), BACK)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13 * SCALE)
    for _, source, out, target, into, kind in document["links"]:
        ends = _socket(nodes[source], out, right=True), _socket(nodes[target], into, right=False)
        pen.line(_curve(*ends), fill=COLOURS[kind], width=2 * SCALE)
    for node in nodes.values():
        _draw_node(pen, font, node)
    return image


def _draw_node(pen: ImageDraw.ImageDraw, font: Any, node: dict[str, Any]) -> None:
    x, y = (SCALE * each for each in node["pos"])
    width, height = (SCALE * each for each in node["size"])
    pen.rounded_rectangle((x, y - LINE * SCALE, x + width, y + height), 8 * SCALE, fill=NODE)
    is_ours = node["type"].startswith("RemoteVAE")
    corners = (True, True, False, False)
    head = (x, y - LINE * SCALE, x + width, y)
    pen.rounded_rectangle(head, 8 * SCALE, fill=OURS if is_ours else HEAD, corners=corners)
    pen.text((x + 8 * SCALE, y - 18 * SCALE), node["type"], fill=TEXT, font=font)
    for side, rows in ((False, node["inputs"]), (True, node["outputs"])):
        for place, row in enumerate(rows):
            at = _socket(node, place, right=side)
            radius = 4 * SCALE
            pen.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=COLOURS[row["type"]])
            text_at = (at[0] - 10 * SCALE, at[1]) if side else (at[0] + 10 * SCALE, at[1])
            pen.text(text_at, row["name"], fill=TEXT, font=font, anchor="rm" if side else "lm")
    first = max(len(node["inputs"]), len(node["outputs"]))
    values = [str(value) for value in node["widgets_values"] if value != ""]
    for place, value in enumerate(values, start=first):
        top = y + (place * LINE + 4) * SCALE
        if top + LINE * SCALE > y + height:
            return
        pen.rounded_rectangle((x + 10 * SCALE, top, x + width - 10 * SCALE, top + 18 * SCALE), 9 * SCALE, fill=FIELD)
        pen.text((x + 20 * SCALE, top + 9 * SCALE), value, fill=TEXT, font=font, anchor="lm")


def _socket(node: dict[str, Any], place: int, *, right: bool) -> tuple[int, int]:
    x = node["pos"][0] + (node["size"][0] if right else 0)
    return x * SCALE, (node["pos"][1] + place * LINE + LINE // 2) * SCALE


def _curve(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[float, float]]:
    """A Bezier curve that leaves and arrives horizontally."""
    reach = max(40 * SCALE, abs(end[0] - start[0]) / 2)
    points = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    steps = [step / 30 for step in range(31)]
    weights = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in steps]
    return [tuple(sum(w * p[axis] for w, p in zip(row, points, strict=True)) for axis in (0, 1)) for row in weights]


if __name__ == "__main__":
    for path in sorted(EXAMPLES.glob("*.json")):
        found = draw(json.loads(path.read_text()))
        small = found.copy()
        small.thumbnail((640, 640))
        small.save(path.with_suffix(".jpg"), quality=85)
        if path.stem == SHOWN:
            found.save(PICTURE, quality=80)
