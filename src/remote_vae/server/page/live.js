// What the server is doing, from its Prometheus metrics, once a second while somebody looks.

import { bytes, getText } from "./server.js";

const EVERY_MS = 1000;
const SELDOM_MS = 10_000; // where there are no figures, or the server bounds how often one may ask
const POINTS = 60;

// Each tile is a figure of the server's; a counter is shown as its rate a second.
const ofModel = ({ labels }) => labels.model !== ""; // the page's own requests for figures are of no model
const TILES = [
  { title: "Queue", name: "remote_vae_accepted_jobs", say: (value) => `${value} ${value === 1 ? "request" : "requests"}` },
  { title: "Memory of the models", name: "remote_vae_memory_bytes", say: bytes },
  { title: "Throughput", name: "remote_vae_requests_total", counter: true, say: (value) => `${value.toFixed(1)} requests/s` },
];

/** Polls until the page closes. `onLost` when the server stops answering, `onBack` when it does again. */
export function startLive({ onLost, onBack }) {
  const tiles = TILES.map(makeTile);
  document.getElementById("tiles").replaceChildren(...tiles.map((tile) => tile.element));
  let there = true;
  const look = async () => {
    try {
      const samples = parseMetrics(await getText("metrics"));
      document.getElementById("live").hidden = false;
      tiles.forEach((tile) => tile.take(samples));
    } catch (error) {
      if (error.status === 404) document.getElementById("live").hidden = true;
      if (error.status === 0) {
        if (there) onLost();
        there = false;
        return EVERY_MS;
      }
      if (error.status === 404 || error.status === 429) return SELDOM_MS;
    }
    if (!there) onBack();
    there = true;
    return EVERY_MS;
  };
  const loop = async () => setTimeout(loop, document.hidden ? EVERY_MS : await look());
  loop();
}

function makeTile({ title, name, counter, say }) {
  const element = Object.assign(document.createElement("div"), { className: "tile" });
  const value = document.createElement("output");
  const chart = makeChart();
  const peak = document.createElement("small");
  element.append(Object.assign(document.createElement("h3"), { textContent: title }), value, chart.element, peak);
  let before = null;
  const take = (samples) => {
    const total = samples.filter((sample) => sample.name === name && ofModel(sample)).reduce((sum, sample) => sum + sample.value, 0);
    const now = performance.now();
    const shown = !counter ? total : before ? Math.max(0, total - before.total) / ((now - before.at) / 1000) : 0;
    before = { total, at: now };
    value.textContent = say(shown);
    peak.textContent = `highest of the last minute: ${say(chart.add(shown))}`;
  };
  return { element, take };
}

function makeChart() {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  element.setAttribute("viewBox", `0 0 ${POINTS - 1} 1`);
  element.setAttribute("preserveAspectRatio", "none");
  element.setAttribute("aria-hidden", "true");
  const [area, line] = ["polygon", "polyline"].map((name) => element.appendChild(document.createElementNS(element.namespaceURI, name)));
  const values = [];
  const add = (value) => {
    values.push(value);
    if (values.length > POINTS) values.shift();
    const top = Math.max(...values);
    const points = values.map((item, index) => `${index},${1 - item / (top || 1)}`);
    line.setAttribute("points", points.join(" "));
    area.setAttribute("points", ["0,1", ...points, `${values.length - 1},1`].join(" "));
    return top;
  };
  return { element, add };
}

/** Lines of the text format as [{name, labels, value}]. */
export function parseMetrics(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    found.push({ name: match[1], labels, value: Number(match[3].replace("+Inf", "Infinity")) });
  }
  return found;
}
