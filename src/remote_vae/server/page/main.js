// The page's one room: what is chosen, what is asked for, and where the answer goes.

import { codeOf } from "./code.js";
import { showConnect } from "./connect.js";
import { lookInto, payloadOf } from "./files.js";
import { startLive } from "./live.js";
import { deviceText, hasFrames, cardRow, limitsText, packing, suits } from "./models.js";
import { GrowingVideo } from "./growing.js";
import { markStale, showGrowing, showResult } from "./result.js";
import { drawSample } from "./sample.js";
import { Failure, bytes, getJson, hasKey, post, useKey } from "./server.js";

const $ = (id) => document.getElementById(id);

let cards = [];
let files = []; // one of which is chosen
let chosen = null; // {file, kind, tensors}
let running = null; // the AbortController of what is on its way
let streams = true; // unless the server has refused it, as on Ray Serve without our middlewares

const card = () => cards.find((item) => item.name === $("model").value);
const tensor = () => chosen?.tensors?.[Number($("tensor").value)];
const origin = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

// ---- the server: its models, its key ----

async function connect() {
  try {
    setStatus("wait", "connecting");
    const { default: first, models } = await getJson("models");
    showModels(models, first);
    $("version").textContent = (await getJson("./")).version;
    setStatus("good", "ready");
    return true;
  } catch (error) {
    showModels([], "");
    const wantsKey = error.status === 401 || error.status === 403;
    if (wantsKey) openKeyBox();
    setStatus(error.status === 503 ? "wait" : "bad", wantsKey ? (hasKey() ? "wrong key" : "needs a key") : error.status === 503 ? "models are loading" : "no connection");
    if (!wantsKey) setTimeout(connect, 1000);
    return false;
  } finally {
    refresh();
  }
}

function setStatus(state, text) {
  if ($("status").textContent === text) return;
  $("status").dataset.state = state;
  $("status").textContent = text;
}

function showModels(models, first) {
  const before = $("model").value;
  cards = models;
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  $("model").value = models.some(({ name }) => name === before) ? before : first;
  for (const id of ["models-card", "connect", "device"]) $(id).hidden = !models.length;
  $("models").replaceChildren(...models.map((item) => cardRow(item, item.name === first)));
  $("limits").textContent = models.length ? limitsText(models[0].limits) : "";
}

function openKeyBox() {
  $("key-box").hidden = false;
  $("key-button").setAttribute("aria-expanded", "true");
  $("key").focus();
}

// ---- the file ----

function take(list) {
  if (!list.length) return;
  files = [...list];
  choose(files[0]);
}

async function choose(file) {
  hideFailure();
  markStale();
  try {
    const before = chosen;
    chosen = { file, ...(await lookInto(file)) };
    if (chosen.raw || before?.raw) $("scaling").checked = !chosen.raw;
  } catch (error) {
    chosen = null;
    showFailure(new Failure("This file cannot be sent", error.message, error.advice), false);
  }
  $("tensor").replaceChildren(...(chosen?.tensors ?? []).map((item, index) => new Option(`${item.name} [${item.shape}]`, index)));
  showFile(file);
  takeSuitableModel();
  refresh();
}

/** The files that were chosen together, to change between them, and a small view of the picture that is chosen. */
function showFile(file) {
  $("strip").hidden = files.length < 2;
  $("strip").replaceChildren(...files.map((item) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: item.name });
    button.setAttribute("aria-pressed", String(item === file));
    button.addEventListener("click", () => choose(item));
    return button;
  }));
  URL.revokeObjectURL($("thumb").src);
  $("thumb").hidden = chosen?.kind !== "picture";
  if (!$("thumb").hidden) $("thumb").src = URL.createObjectURL(file);
}

function takeSuitableModel() {
  if (!tensor() || !cards.length || suits(card(), tensor().shape)) return;
  const other = cards.find((item) => suits(item, tensor().shape));
  if (other) $("model").value = other.name;
}

/** Everything that follows from the file and the model. */
function refresh() {
  const latent = tensor();
  $("chosen").hidden = !chosen;
  $("drop").classList.toggle("small", chosen !== null);
  $("drop-title").textContent = chosen ? "Drop, paste or choose another" : "Drop files here, paste, or choose";
  $("beside").hidden = chosen !== null;
  if (chosen) {
    $("chosen-name").textContent = chosen.file.name;
    $("chosen-what").textContent = `${latent ? `[${latent.shape.join(", ")}] ${latent.dtype}` : "picture"}, ${bytes(chosen.file.size)}`;
  }
  $("tensor-field").hidden = (chosen?.tensors?.length ?? 0) < 2;
  $("scaling-field").hidden = !latent;
  $("go").textContent = !chosen ? "Choose a file first" : chosen.kind === "picture" ? "Encode and decode" : "Decode";
  $("model").disabled = !cards.length;
  $("go").disabled = !chosen || !cards.length || running !== null;
  $("cancel").hidden = running === null;
  $("code").hidden = !chosen || !cards.length;
  if (!cards.length) return;
  refreshModel(latent);
  $("device").textContent = `${deviceText(card())} · ${card().dtype}`;
  showConnect(`${origin()}/${card().name}`, card(), hasKey());
  if (chosen) showCode(jobOf());
}

function refreshModel(latent) {
  const plan = $("plan").value;
  $("plan").replaceChildren(new Option("the server's choice", ""), ...card().plans.map((name) => new Option(name, name)));
  $("plan").value = card().plans.includes(plan) ? plan : "";
  const tokens = latent ? packing(card(), latent.shape) : null, needsSize = tokens !== null;
  $("size-fields").hidden = !needsSize;
  for (const id of ["height", "width"]) $(id).disabled = !needsSize;
  const side = needsSize ? Math.sqrt(tokens.tokens) * tokens.cells * card().spatial_compression_ratio : 0;
  if (side && !$("height").value && Number.isInteger(side)) $("height").value = $("width").value = side;
}

// ---- the way to the server and back ----

async function run() {
  hideFailure();
  markStale();
  running = new AbortController();
  refresh();
  $("progress").hidden = false;
  try {
    const job = jobOf();
    const done = chosen.kind === "picture" ? await roundTrip(job) : await decode(job, await payloadOf(chosen.file, tensor()));
    await showResult({ ...done, job, picture: chosen.kind === "picture" ? chosen.file : null });
  } catch (error) {
    if (error.name !== "AbortError") showFailure(asFailure(error), true);
  } finally {
    running = null;
    $("progress").hidden = true;
    refresh();
  }
}

function jobOf() {
  const latent = tensor();
  const video = latent !== undefined && hasFrames(card());
  const size = $("size-fields").hidden ? {} : { height: Number($("height").value), width: Number($("width").value) };
  const options = { ...(latent ? { do_scaling: $("scaling").checked ? "True" : undefined } : {}), ...size, plan: $("plan").value || undefined };
  const format = $("format").value;
  const job = { origin: origin(), name: chosen.file.name, model: card().name, tensor: latent, options, video, format, accept: video ? "video/mp4" : $("format").selectedOptions[0].dataset.media, transparent: card().pixel_channels === 4, hasKey: hasKey() };
  if (latent) job.query = queryOf(job, latent.shape, latent.dtype === "float64" ? "float32" : latent.dtype);
  return job;
}

function queryOf(job, shape, dtype) {
  const given = Object.entries(job.tensor ? job.options : { plan: job.options.plan }).filter(([, value]) => value !== undefined);
  return { shape: shape.join(","), dtype, ...(job.video ? { output_type: "mp4" } : {}), ...Object.fromEntries(given) };
}

function checkSize(body) {
  const most = card().limits.max_body_bytes;
  if (body.size <= most) return;
  throw new Failure("This is too large for the server", `It has ${bytes(body.size)}; the server takes at most ${bytes(most)} in one request.`, "Send fewer latents at a time, float16 instead of float32, or a smaller picture.", { status: 413 });
}

async function decode(job, { dtype, body }) {
  checkSize(body);
  job.query ??= queryOf(job, job.shape, dtype);
  const how = { body, type: "tensor/binary", accept: job.accept, signal: running.signal, onProgress };
  return { decoded: (job.video && (await streamed(job, how))) || (await post(`${job.model}/decode`, job.query, how)) };
}

/** The reply with a video that is shown while it comes; null if the server sends whole videos only. */
async function streamed(job, how) {
  if (!streams) return null;
  const video = new GrowingVideo(`What has come of ${job.name}`);
  let frames = 0;
  const onPiece = (piece, header) => {
    if (!frames) showGrowing(video.element);
    frames = Number(header("x-frames"));
    $("result-card").hidden = false;
    video.take(piece);
  };
  const text = () => (frames ? `; ${video.frames} of ${frames} frames have come` : "");
  try {
    return await post(`${job.model}/decode`, { ...job.query, stream: "True" }, { ...how, onPiece, text });
  } catch (error) {
    if (frames) $("result").hidden = true; // a part of a video is no result
    if (error.status !== 422 || !error.message.includes("leave stream out")) throw error;
    streams = false;
    return null;
  }
}

async function roundTrip(job) {
  checkSize(chosen.file);
  const query = { posterior: "mode", ...(job.options.plan ? { plan: job.options.plan } : {}) };
  const encoded = await post(`${job.model}/encode`, query, { body: chosen.file, type: "application/octet-stream", accept: "tensor/binary", signal: running.signal, onProgress });
  const dtype = encoded.header("dtype");
  job.shape = JSON.parse(encoded.header("shape"));
  return { encoded, ...(await decode(job, { dtype, body: new Blob([encoded.data]) })) };
}

function onProgress(share, text) {
  if (share === null) $("bar").removeAttribute("value");
  else $("bar").value = share;
  $("progress-text").textContent = text;
}

function showCode(job) {
  const texts = codeOf(job);
  for (const id of ["python", "curl"]) $(id).textContent = texts[id];
  $("key-hint").hidden = !job.hasKey;
}

// ---- failures ----

function asFailure(error) {
  if (error instanceof Failure) return error;
  if (error.name === "NotReadableError" || error.advice) return new Failure("The file can no longer be read", error.message, error.advice ?? "It was moved or changed. Choose it again.");
  return new Failure("The page failed", String(error), "Try again; if it happens again, please report it.");
}

function showFailure(failure, repeatable) {
  $("failure-title").textContent = failure.title;
  $("failure-text").textContent = failure.message;
  $("failure-advice").textContent = failure.advice;
  $("failure-facts").textContent = failure.facts ?? "";
  $("retry").hidden = !repeatable;
  $("failure").hidden = $("result-card").hidden = false;
  if (failure.status === 401 || failure.status === 403) openKeyBox();
}

function hideFailure() {
  $("failure").hidden = true;
  $("result-card").hidden = $("result").hidden;
}

// ---- copying ----

async function copy(button) {
  const source = $(button.dataset.copies);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(source.textContent);
  } else {
    getSelection().selectAllChildren(source); // a plain http:// address of another machine has no clipboard
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  $("said").textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// ---- what the user does ----

$("file").addEventListener("change", () => {
  take($("file").files);
  $("file").value = "";
});
addEventListener("paste", (event) => take(event.clipboardData.files));
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // a file dropped beside the field must not replace the page
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") take(event.dataTransfer.files);
  });
}
$("sample").addEventListener("click", async () => take([await drawSample()]));
$("forget").addEventListener("click", () => {
  chosen = null;
  files = [];
  showFile(null);
  refresh();
  $("file").focus();
});
$("options").addEventListener("change", refresh);
$("options").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("retry").addEventListener("click", () => $("options").requestSubmit());
$("cancel").addEventListener("click", () => running?.abort());
$("key-button").addEventListener("click", () => {
  $("key-box").hidden = !$("key-box").hidden;
  $("key-button").setAttribute("aria-expanded", String(!$("key-box").hidden));
  if (!$("key-box").hidden) $("key").focus();
});
$("key-box").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  if (await connect()) $("key-button").click();
});
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));

connect();
startLive({
  onLost: () => setStatus("bad", "no connection"),
  onBack: connect,
});
