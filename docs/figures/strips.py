"""The pictures of docs/strips.md: `python docs/figures/strips.py`, or `make picture`."""

import json
from pathlib import Path

import torch
from PIL import Image

from remote_vae.cli.demo import FLOWER
from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.models.loader import open_model
from remote_vae.models.spec import parse_spec
from remote_vae.values import Output, Scaling

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
SIDE = 1024
GAIN = 16  # how much a difference is brightened; 1 of 255 would not be seen
FONT = 'font-family="system-ui, sans-serif"'
INK, SOFT, ACCENT, PALE, HALO = "#1b1d29", "#6b7086", "#4a4fd8", "#e4e5f7", "#f0b45a"


def seams() -> None:
    """A decode by strips and one by tiles, each as its difference to the undivided one."""
    vae, recipe = open_model(parse_spec("demo", dtype="float32").to_json())
    with FLOWER.open("rb") as file:
        picture = Image.open(file).crop((110, 0, 537, 427)).resize((SIDE, SIDE))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, SIDE, SIDE, 3)
    with torch.inference_mode():
        latent = vae.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)[:, : vae.info.latent_channels]
    fit = fit_latent(recipe, vae.info, tuple(latent.shape), model="demo", height=None, width=None)

    def by(plan: str) -> torch.Tensor:
        terms = RunOptions(plan=plan)
        found = decode(vae, recipe, latent, fit=fit, scaling=Scaling(), output=Output.UINT8, options=terms)
        return found.tensor[0].int()

    whole = by("whole")
    panels = [whole, *(((by(plan) - whole).abs() * GAIN).clamp(max=255) for plan in ("strips", "tiles"))]
    strip = Image.new("RGB", (3 * 400 + 20, 400), "white")
    for index, panel in enumerate(panels):
        strip.paste(Image.fromarray(panel.to(torch.uint8).numpy()).resize((400, 400)), (410 * index, 0))
    strip.save(IMAGES / "strips-seams.jpg", quality=88)


def order() -> None:
    """One layer, halfway: what is read, what is lent, what is written, what is gone."""
    parts = []
    for left, title, done in ((40, "map of layer n", True), (400, "map of layer n + 1", False)):
        parts.append(f'<text x="{left}" y="34" {FONT} font-size="15" fill="{INK}">{title}</text>')
        for row in range(8):
            y = 50 + 34 * row
            gone = row < 3 if done else row > 4
            fill = "none" if gone else ACCENT if row == 4 else PALE
            dash = ' stroke-dasharray="4 4"' if gone else ""
            parts.append(
                f'<rect x="{left}" y="{y}" width="240" height="30" rx="4" fill="{fill}" stroke="{SOFT}"{dash}/>'
            )
    for y in (50 + 34 * 4 - 8, 50 + 34 * 5):
        parts.append(f'<rect x="40" y="{y}" width="240" height="6" fill="{HALO}"/>')
    parts.append(f'<path d="M290 201 h92 m-10 -7 l10 7 l-10 7" fill="none" stroke="{ACCENT}" stroke-width="2.5"/>')
    notes = [
        (660, 84, "dotted, left: read for the last", SOFT),
        (660, 104, "time, and freed", SOFT),
        (660, 196, "the strip being computed", ACCENT),
        (660, 230, "halo: rows that the", "#a86a00"),
        (660, 250, "neighbours lend", "#a86a00"),
        (660, 300, "dotted, right: not yet there", SOFT),
    ]
    parts += [f'<text x="{x}" y="{y}" {FONT} font-size="14" fill="{fill}">{text}</text>' for x, y, text, fill in notes]
    _write_svg("strips-order.svg", 880, 345, parts)


def memory() -> None:
    """Live bytes of one decode by plan, as benchmarks/memory.py measured them."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    rows = sorted((row for row in rows if row["size"] == SIDE), key=lambda row: -row["peak_bytes"])
    most, parts = max(row["peak_bytes"] for row in rows), []
    for index, row in enumerate(rows):
        y, width = 24 + 46 * index, 480 * row["peak_bytes"] / most
        fill = SOFT if row["plan"] == "diffusers" else ACCENT
        parts.append(
            f'<text x="150" y="{y + 21}" text-anchor="end" {FONT} font-size="14" fill="{INK}">{row["plan"]}</text>'
        )
        parts.append(f'<rect x="162" y="{y}" width="{width:.0f}" height="32" rx="4" fill="{fill}"/>')
        label = f"{row['peak_bytes'] / 1e6:,.0f} MB"
        parts.append(f'<text x="{172 + width:.0f}" y="{y + 21}" {FONT} font-size="14" fill="{INK}">{label}</text>')
    _write_svg("strips-memory.svg", 760, 40 + 46 * len(rows), parts)


def _write_svg(name: str, width: int, height: int, parts: list[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    ground = f'<rect width="{width}" height="{height}" rx="10" fill="white"/>'
    (IMAGES / name).write_text("\n".join([head, ground, *parts, "</svg>\n"]))


if __name__ == "__main__":
    order()
    memory()
    seams()
