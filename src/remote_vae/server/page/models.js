// What the cards of GET /models say, for people, and which latents a model takes.

import { bytes } from "./server.js";

const LIMITS = {
  max_pixels: (value) => `${(value / 1e6).toFixed(1)} megapixels a picture or frame`,
  max_side: (value) => `${value} pixels a side`,
  max_batch: (value) => `${value} pictures at a time`,
  max_frames: (value) => `${value} frames`,
  max_body_bytes: (value) => `${Math.round(value / 2 ** 20)} MiB a request`,
  max_waiting: (value) => `${value} requests waiting for one model`,
};

export const limitsText = (limits) => `Limits: ${Object.entries(LIMITS).filter(([name]) => name in limits).map(([name, say]) => say(limits[name])).join(", ")}.`;

/** Whether its latents have an axis of frames, so that they decode to videos. */
export const hasFrames = ({ latent_layouts: layouts }) => layouts.some((layout) => layout.split(" ").includes("f"));

/** Whether a latent of this shape fits by its channels. */
export const suits = (card, shape) => grid(card, shape) || packed(card, shape);

/** Whether the shape shows height and width: of cells, or of patches of 2 by 2 cells where a model has those as channels. */
const grid = (card, shape) => {
  const { latent_channels: channels, latent_layouts: layouts } = card;
  const layered = layouts.includes("b c l h w") || (layouts.includes("b c 1 h w") && shape[2] === 1);
  const axes = hasFrames(card) || (layered && shape.length === 5) ? 5 : 4;
  return (shape.length === axes && (shape[1] === channels || (shape[1] === 4 * channels && layouts.includes("b (c i j) h w")))) || (shape.length === axes - 1 && shape[0] === channels);
};

/** Whether the latent is packed, so that it does not say its height and width. */
export const packed = (card, shape) => packing(card, shape) !== null;

/** {tokens, cells} of a packed latent: tokens of its picture, 0 if there are frames or layers too, and cells to a side of each. */
export function packing(card, shape) {
  if (grid(card, shape)) return null;
  for (const layout of card.latent_layouts) {
    const axes = layout.match(/\([^)]*\)|\S+/g);
    const tokens = axes.findIndex((axis) => axis.endsWith("h w)")), channels = axes.findIndex((axis) => /\bc\b/.test(axis));
    const cells = axes[channels].includes("i") ? 2 : 1;
    if (axes.length !== shape.length || tokens < 0 || (axes[0] === "1" && shape[0] !== 1)) continue;
    if (shape[channels] === card.latent_channels * cells ** 2) return { tokens: axes[tokens] === "(h w)" ? shape[tokens] : 0, cells };
  }
  return null;
}

/** The devices that run it, as the server knows them. */
export const deviceText = ({ devices = [] }) => devices.map(({ device, title, total_bytes: total }) => `${device} · ${title} · ${bytes(total)}`).join(", ") || "device unknown";

export function cardRow(card, first) {
  const row = document.createElement("tr");
  const ratio = hasFrames(card) ? `${card.spatial_compression_ratio}x, ${card.temporal_compression_ratio} frames` : `${card.spatial_compression_ratio}x`;
  const names = [first ? "the first, at /" : "", card.aliases.length ? `also ${shortened(card.aliases)}` : ""].filter(Boolean).join("; ");
  const cells = [
    [card.name, names],
    [hasFrames(card) ? "video" : "pictures"],
    [card.latent_channels],
    [ratio],
    factor(card, "scaling_factor"),
    factor(card, "shift_factor"),
    [card.dtype],
    [(card.devices ?? []).map(({ device }) => device).join(", "), (card.devices ?? []).map(({ title }) => title).join(", ")],
    [card.plans.join(", ")],
    [card.source, card.revision],
  ];
  cells.forEach(([text, more], index) => {
    const cell = document.createElement(index ? "td" : "th");
    if (!index) Object.assign(cell, { scope: "row", title: card.aliases.join(", ") });
    cell.append(String(text));
    if (more) cell.append(Object.assign(document.createElement("small"), { textContent: more }));
    row.append(cell);
  });
  return row;
}

const shortened = (names) => [...names.slice(0, 2), ...(names.length > 2 ? [`+${names.length - 2}`] : [])].join(", ");
const factor = (card, name) => [card[name] ?? (card.latents_mean ? "per channel" : "none")];
