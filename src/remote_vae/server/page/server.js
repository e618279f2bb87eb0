// Requests to the server that this page came from, with the key, and failures in words.

let key = "";

export const useKey = (text) => (key = text);
export const hasKey = () => key !== "";

/** What happened and what to do about it. */
export class Failure extends Error {
  constructor(title, text, advice, { status = 0, facts = "" } = {}) {
    super(text);
    Object.assign(this, { title, advice, status, facts });
  }
}

export async function getText(path, accept = "*/*") {
  let reply;
  try {
    reply = await fetch(path, { headers: { accept, ...credentials() }, cache: "no-store" });
  } catch {
    throw new Failure("The server does not answer", "No connection could be made.", "Check that it runs and that you can reach it.");
  }
  const text = await reply.text();
  if (!reply.ok) throw refusal(reply.status, text, (name) => reply.headers.get(name));
  return text;
}

export const getJson = async (path) => JSON.parse(await getText(path, "application/json"));

/** POSTs a body. `onProgress(share or null, text)` is told how far it is. Gives {data, header, ms, sent, received}.
 *
 * With `onPiece` each piece of the reply is handed to it as it comes; `text()` then says what of it has come. */
export function post(path, query, { body, type, accept, signal, onProgress, onPiece = null, text = () => "" }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const started = performance.now();
    let moved = { bytes: 0, at: started };
    let uploaded = false;
    const watch = setInterval(() => {
      if (!uploaded && performance.now() - moved.at > 10_000) onProgress(moved.bytes / body.size, `nothing has moved for ${seconds(moved.at)} s; the connection may be lost`);
      if (uploaded) onProgress(null, `the server is working, ${seconds(started)} s${text()}`);
    }, 1000);
    request.open("POST", `${path}?${new URLSearchParams(query)}`);
    if (onPiece) request.overrideMimeType("text/plain; charset=x-user-defined"); // only text can be read before its end
    else request.responseType = "arraybuffer";
    const pieces = [];
    let taken = 0;
    const take = () => {
      if (!onPiece || request.status !== 200 || request.responseText.length === taken) return;
      pieces.push(bytesOf(request.responseText.slice(taken)));
      taken = request.responseText.length;
      onPiece(pieces.at(-1), (name) => request.getResponseHeader(name));
    };
    request.onprogress = take;
    const headers = { "content-type": type, accept, ...credentials() };
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      moved = { bytes: event.loaded, at: performance.now() };
      onProgress(event.loaded / body.size, `sending ${bytes(event.loaded)} of ${bytes(body.size)}`);
    };
    request.upload.onload = () => {
      uploaded = true;
      onProgress(null, "the server is working");
    };
    request.onloadend = () => clearInterval(watch);
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onerror = () => reject(lost(uploaded, moved.bytes, body.size));
    request.onload = () => {
      const header = (name) => request.getResponseHeader(name);
      const said = () => (onPiece ? request.responseText : new TextDecoder().decode(request.response));
      if (request.status !== 200) return reject(refusal(request.status, said(), header));
      take();
      const data = onPiece ? new Blob(pieces) : request.response;
      resolve({ data, header, ms: performance.now() - started, sent: body.size, received: data.size ?? data.byteLength, streamed: onPiece !== null });
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

const bytesOf = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0) & 0xff);

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const power = Math.min(3, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toPrecision(3)} ${["", "kB", "MB", "GB"][power]}`;
}

// Without a key too, for then the browser is not told to ask for a password in a box of its own.
const credentials = () => ({ authorization: `Bearer ${key}` });
const seconds = (since) => Math.round((performance.now() - since) / 1000);

function lost(uploaded, sent, size) {
  const when = uploaded ? "while the server was working" : `after ${bytes(sent)} of ${bytes(size)} were sent`;
  return new Failure("The connection was lost", `It broke off ${when}.`, "Your file is still chosen. Check that the server runs and can be reached, then try again.");
}

function refusal(status, text, header) {
  let said = {};
  try {
    said = JSON.parse(text) ?? {};
  } catch {
    // A proxy in between answers with pages of its own.
  }
  const facts = [said.error_type ?? `status ${status}`, said.request_id ? `request ${said.request_id}` : ""].filter(Boolean).join(" · ");
  const sentence = said.error ?? `The answer has the status ${status} and does not say why; it may come from a proxy in between.`;
  return new Failure(titleOf(status), sentence, adviceOn(status, header("retry-after")), { status, facts });
}

function titleOf(status) {
  if (status === 401 || status === 403) return hasKey() ? "The server does not accept this key" : "The server wants a key";
  if (status === 413) return "This is too large for the server";
  if (status === 429 || status === 503) return "The server cannot take this now";
  return status >= 500 ? "The server failed" : "The server refused this";
}

function adviceOn(status, after) {
  if (status === 401 || status === 403) return "Enter the key above, then try again.";
  if (status === 429 || status === 503) return after ? `Try again in ${after} s; your file is still chosen.` : "Try again in a moment; your file is still chosen.";
  if (status >= 500) return "Try again; if it happens again, the server's log has more under the request's name.";
  return "Change what is named above, then try again; your file is still chosen.";
}
