// The page's one room: what is chosen, what is asked for, and where the answer goes.

import { codeOf } from "./code.js";
import { lookInto, payloadOf } from "./files.js";
import { startLive } from "./live.js";
import { hasFrames, cardRow, limitsText, packing, suits } from "./models.js";
import { GrowingVideo } from "./growing.js";
import { showGrowing, showResult } from "./result.js";
import { drawSample } from "./sample.js";
import { Failure, bytes, getJson, hasKey, post, useKey } from "./server.js";

const $ = (id) => document.getElementById(id);

let cards = [];
let chosen = null; // {file, kind, tensors}
let running = null; // the AbortController of what is on its way
let streams = true; // unless the server has refused it, as servers on Ray Serve do

const card = () => cards.find((item) => item.name === $("model").value);
const tensor = () => chosen?.tensors?.[Number($("tensor").value)];

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
    cards = [];
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
  $("models").replaceChildren(...models.map((item) => cardRow(item, item.name === first)));
  $("limits").textContent = limitsText(models[0].limits);
}

function openKeyBox() {
  $("key-box").hidden = false;
  $("key-button").setAttribute("aria-expanded", "true");
  $("key").focus();
}

// ---- the file ----

async function choose(file) {
  if (!file) return;
  hideFailure();
  try {
    const before = chosen;
    chosen = { file, ...(await lookInto(file)) };
    if (chosen.raw || before?.raw) $("scaling").checked = !chosen.raw;
  } catch (error) {
    chosen = null;
    showFailure(new Failure("This file cannot be sent", error.message, error.advice), false);
  }
  $("tensor").replaceChildren(...(chosen?.tensors ?? []).map((item, index) => new Option(`${item.name} [${item.shape}]`, index)));
  takeSuitableModel();
  refresh();
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
  if (chosen) {
    $("chosen-name").textContent = chosen.file.name;
    $("chosen-what").textContent = `${latent ? `[${latent.shape.join(", ")}] ${latent.dtype}` : "picture"}, ${bytes(chosen.file.size)}`;
  }
  $("tensor-field").hidden = (chosen?.tensors?.length ?? 0) < 2;
  $("scaling-field").hidden = !latent;
  $("go").textContent = chosen?.kind === "picture" ? "Encode and decode" : "Decode";
  $("model").disabled = !cards.length;
  $("go").disabled = !chosen || !cards.length || running !== null;
  $("cancel").hidden = running === null;
  if (cards.length) refreshModel(latent);
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
  running = new AbortController();
  refresh();
  $("progress").hidden = false;
  try {
    const job = jobOf();
    const done = chosen.kind === "picture" ? await roundTrip(job) : await decode(job, await payloadOf(chosen.file, tensor()));
    $("empty").hidden = true;
    await showResult({ ...done, job, picture: chosen.kind === "picture" ? chosen.file : null });
    showCode(job);
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
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const format = $("format").value;
  return { origin: base, name: chosen.file.name, model: card().name, tensor: latent, options, video, format, accept: video ? "video/mp4" : $("format").selectedOptions[0].dataset.media, transparent: card().pixel_channels === 4, hasKey: hasKey() };
}

function checkSize(body) {
  const most = card().limits.max_body_bytes;
  if (body.size <= most) return;
  throw new Failure("This is too large for the server", `It has ${bytes(body.size)}; the server takes at most ${bytes(most)} in one request.`, "Send fewer latents at a time, float16 instead of float32, or a smaller picture.", { status: 413 });
}

async function decode(job, { dtype, body }) {
  checkSize(body);
  const shape = job.shape ?? job.tensor.shape;
  const given = Object.entries(job.tensor ? job.options : { plan: job.options.plan }).filter(([, value]) => value !== undefined);
  job.query = { shape: shape.join(","), dtype, ...(job.video ? { output_type: "mp4" } : {}), ...Object.fromEntries(given) };
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
    $("empty").hidden = true;
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
  $("code").hidden = false;
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
  $("failure").hidden = false;
  $("empty").hidden = true;
  if (failure.status === 401 || failure.status === 403) openKeyBox();
}

function hideFailure() {
  $("failure").hidden = true;
  $("empty").hidden = !$("result").hidden;
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

$("file").addEventListener("change", () => choose($("file").files[0]).then(() => ($("file").value = "")));
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // a file dropped beside the field must not replace the page
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") choose(event.dataTransfer.files[0]);
  });
}
$("sample").addEventListener("click", async () => choose(await drawSample()));
$("forget").addEventListener("click", () => {
  chosen = null;
  refresh();
  $("file").focus();
});
$("model").addEventListener("change", refresh);
$("tensor").addEventListener("change", refresh);
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
