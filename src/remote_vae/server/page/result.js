// What came back: the picture or video, the comparison, the time of each stage, the bytes, and files to keep.

import { compare, compareView } from "./compare.js";
import { viewTools } from "./zoom.js";
import { writeNumpy } from "./files.js";
import { bytes } from "./server.js";

const $ = (id) => document.getElementById(id);
const NAMES = { network: "network and browser", other: "other", queue: "queue", decode: "decode", encode: "encode", media: "writing the file", first: "until the first frames", rest: "the other frames" };
const LEAST_SHARE = 0.01; // of a request's time; shorter stages are not named
let urls = [];
let shown = ""; // the file of the result

/** `encoded` is the reply to the first half of a round trip, `picture` what was sent for it; both null for a latent. */
export async function showResult({ job, decoded, encoded = null, picture = null }) {
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = [];
  const media = new Blob([decoded.data], { type: job.accept });
  const compared = picture && (await compare(picture, media));
  const view = viewOf(job, urlOf(media), picture && urlOf(picture), compared);
  $("stage").replaceChildren(view);
  $("tools").replaceChildren(...(job.video ? [] : viewTools($("stage"), compared?.difference)));
  shown = job.name;
  $("stale").hidden = true;
  $("summary").replaceChildren(...facts(job, decoded, encoded, compared));
  const note = [decoded.header("x-note"), compared?.resized ? "The server took the picture at the size of a multiple of the model's ratio; PSNR is against the browser's own resizing." : "", compared?.transparent ? `The picture has transparency${job.transparent ? "" : ", which the server drops"}, so PSNR is not measured.` : ""].filter(Boolean).join(" ");
  $("note").textContent = note;
  $("note").hidden = !note;
  $("timings").replaceChildren(...timings(encoded ? [["Encode", encoded], ["Decode", decoded]] : [["Decode", decoded]]));
  $("downloads").replaceChildren(...files(job, media, encoded));
  $("result").hidden = $("result-card").hidden = false;
}

/** What is shown belongs to another file or an earlier request. */
export function markStale() {
  $("stale").textContent = `The result of the request before, of ${shown}:`;
  $("stale").hidden = $("result").hidden;
}

/** Shows what of a video has come, in the place of the last result. */
export function showGrowing(element) {
  $("stage").replaceChildren(element);
  for (const id of ["tools", "summary", "timings", "downloads"]) $(id).replaceChildren();
  $("note").hidden = $("stale").hidden = true;
  $("result").hidden = false;
}

function viewOf(job, url, original, compared) {
  if (original) return compareView(original, url, { width: compared.width, height: compared.height });
  if (!job.video) return Object.assign(document.createElement("img"), { src: url, alt: `What ${job.model} decoded from ${job.name}` });
  const video = Object.assign(document.createElement("video"), { src: url, controls: true, loop: true, muted: true, playsInline: true });
  video.setAttribute("aria-label", `What ${job.model} decoded from ${job.name}`);
  return video;
}

function facts(job, decoded, encoded, compared) {
  const psnr = compared?.psnr;
  const found = [
    ["PSNR", psnr === undefined || psnr === null ? "" : psnr === Infinity ? "the same pixels" : `${psnr.toFixed(1)} dB`],
    ["size", compared ? `${compared.width}x${compared.height}` : ""],
    ["model", decoded.header("x-model")],
    ["plan", decoded.header("x-plan")],
    ["precision", decoded.header("x-dtype")],
    ["latent", encoded ? encoded.header("shape") : ""],
  ];
  return found.filter(([, value]) => value).map(([name, value]) => {
    const item = document.createElement("div");
    item.append(Object.assign(document.createElement("span"), { textContent: name }), value);
    return item;
  });
}

/** The requests as bars of stages, and one list of the stages for all of them. */
function timings(replies) {
  const stages = new Map();
  const bars = replies.map(([title, reply]) => {
    const bar = Object.assign(document.createElement("div"), { className: "bar" });
    bar.setAttribute("aria-hidden", "true"); // the list says the same
    for (const [name, ms] of partsOf(reply)) {
      if (ms < LEAST_SHARE * reply.ms && !reply.streamed) continue;
      stages.set(name, [...(stages.get(name) ?? []), ms]);
      const share = document.createElement("i");
      share.style.flexGrow = ms;
      share.dataset.stage = name;
      bar.append(share);
    }
    const head = document.createElement("p");
    head.append(Object.assign(document.createElement("strong"), { textContent: `${title} ${reply.ms.toFixed(0)} ms` }), Object.assign(document.createElement("span"), { textContent: `${bytes(reply.sent)} sent, ${bytes(reply.received)} received` }));
    const element = Object.assign(document.createElement("div"), { className: "timing" });
    element.append(head, bar);
    return element;
  });
  const list = Object.assign(document.createElement("ul"), { className: "stages" });
  for (const [name, each] of stages) {
    const line = Object.assign(document.createElement("li"), { textContent: `${NAMES[name] ?? name} ${each.map((ms) => ms.toFixed(1)).join(" + ")} ms` });
    line.dataset.stage = name;
    list.append(line);
  }
  return [...bars, list];
}

/** [name, milliseconds] of the server's stages as it says them, and of the rest of the time. */
function partsOf(reply) {
  const said = new Map([...(reply.header("server-timing") ?? "").matchAll(/([a-z_]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  const total = said.get("total");
  said.delete("total");
  if (reply.streamed) return [["first", total ?? 0], ["rest", Math.max(0, reply.ms - (total ?? 0))]];
  const named = [...said.values()].reduce((sum, ms) => sum + ms, 0);
  const rest = total === undefined ? [] : [["other", Math.max(0, total - named)]];
  return [["network", Math.max(0, reply.ms - (total ?? named))], ...said, ...rest];
}

function files(job, media, encoded) {
  const links = [link(job.video ? "Save the video" : "Save the picture", media, job.video ? "decoded.mp4" : `decoded.${job.format}`)];
  if (encoded) links.push(link("Save the latent", writeNumpy(encoded.header("dtype"), job.shape, encoded.data), "latent.npy"));
  return links;
}

const link = (text, blob, name) => Object.assign(document.createElement("a"), { textContent: text, href: urlOf(blob), download: name });

function urlOf(blob) {
  urls.push(URL.createObjectURL(blob));
  return urls.at(-1);
}
