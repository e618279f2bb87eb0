// What is in a chosen file: a picture, or tensors with their dtype, shape and place. Only headers are read.

export class NotReadable extends Error {
  constructor(text, advice) {
    super(text);
    this.advice = advice;
  }
}

const SAFETENSORS_DTYPES = { F16: "float16", BF16: "bfloat16", F32: "float32", F64: "float64" };
// numpy has no bfloat16, so that files of it name two bytes without a type.
const NUMPY_DTYPES = { "<f2": "float16", "<f4": "float32", "<f8": "float64", "|V2": "bfloat16" };
const ITEM_BYTES = { float16: 2, bfloat16: 2, float32: 4, float64: 8 };
// By the end of its name: whether a cache of kohya's scripts holds what the VAE gave, or what the trained model takes.
const RAW_CACHES = { _sd: true, _sdxl: true, _sd3: true, _flux: false, _lumina: false };
const CACHED = /^latents(_\d+(x\d+)+)?(_(b?float|fp|bf)\w*)?$/; // what trainers call the latent among a cache's tensors
const RAW_ARCHITECTURES = ["hunyuan_video"]; // of musubi-tuner's caches; those of others are normalised
const MOST_HEADER_BYTES = 16 * 2 ** 20;
const SAVE = 'Save it with safetensors: save_file({"latent": latents.contiguous()}, "latent.safetensors").';

/** {kind: "picture"} or {kind: "latent", raw, tensors: [{name, dtype, shape, start, bytes}]}. Throws NotReadable.
 * `raw` latents are what the VAE takes, by ComfyUI's mark or as trainers' caches say; undefined if the file does not say. */
export async function lookInto(file) {
  const head = await bytesOf(file, 0, 12);
  const ascii = String.fromCharCode(...head);
  if (ascii.startsWith("\x89PNG\r\n\x1a\n") || ascii.startsWith("\xff\xd8\xff") || (ascii.startsWith("RIFF") && ascii.endsWith("WEBP"))) {
    return { kind: "picture" };
  }
  if (ascii.startsWith("\x93NUMPY")) return { kind: "latent", tensors: checked(file, [await readNumpy(file, 0, file.size)]) };
  if (ascii.startsWith("PK") && /\.npz$/i.test(file.name)) return { kind: "latent", ...(await readNpz(file)) };
  if (/\.(pt|pth|ckpt|bin|pkl|pickle)$/i.test(file.name) || ascii.startsWith("PK") || ascii.startsWith("\x80")) {
    throw new NotReadable(`${file.name} is a pickle or an archive. Opening one can run any code in it, so neither this page nor the server does.`, SAVE);
  }
  if (file.type.startsWith("image/")) {
    throw new NotReadable(`${file.name} is ${file.type}, which the server does not read.`, "Save the picture as PNG, JPEG or WebP.");
  }
  return { kind: "latent", ...(await readSafetensors(file, head)) };
}

/** What travels for a tensor: a slice of the file, or for float64 the same numbers in float32. */
export async function payloadOf(file, tensor) {
  const slice = file.slice(tensor.start, tensor.start + tensor.bytes);
  if (tensor.dtype !== "float64") return { dtype: tensor.dtype, body: slice };
  return { dtype: "float32", body: new Blob([Float32Array.from(new Float64Array(await slice.arrayBuffer()))]) };
}

/** A .npy file of raw little-endian values, as numpy.load reads it. */
export function writeNumpy(dtype, shape, values) {
  const descr = Object.keys(NUMPY_DTYPES).find((key) => NUMPY_DTYPES[key] === dtype);
  let header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  header = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const length = new Uint8Array([header.length & 255, header.length >> 8]);
  return new Blob([new Uint8Array([0x93]), "NUMPY\x01\x00", length, header, values]);
}

async function bytesOf(file, start, end) {
  try {
    return new Uint8Array(await file.slice(start, end).arrayBuffer());
  } catch {
    throw new NotReadable(`${file.name} can no longer be read.`, "It was moved or changed, or is a folder. Choose it again.");
  }
}

async function readNumpy(file, from, end) {
  const head = await bytesOf(file, from, from + 12);
  if (head.length < 12) throw broken(file, "a NumPy");
  const view = new DataView(head.buffer);
  const [at, length] = head[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const start = from + at + length;
  if (length > MOST_HEADER_BYTES || start > end) throw broken(file, "a NumPy");
  const header = new TextDecoder("latin1").decode(await bytesOf(file, from + at, start));
  const descr = /'descr':\s*'([^']*)'/.exec(header)?.[1];
  const shape = /'shape':\s*\(([\d,\s]*)\)/.exec(header)?.[1].split(",").filter((part) => part.trim()).map(Number);
  if (descr === undefined || shape === undefined) throw broken(file, "a NumPy");
  const dtype = NUMPY_DTYPES[descr];
  if (!dtype) throw new NotReadable(`${file.name} holds values of type ${descr}; a latent has little-endian floats.`, 'Save it with numpy.save("latent.npy", latent.astype("<f4")).');
  if (/'fortran_order':\s*True/.test(header)) {
    throw new NotReadable(`${file.name} is in Fortran order; the wire has C order.`, 'Save it with numpy.save("latent.npy", numpy.ascontiguousarray(latent)).');
  }
  if (end - start !== sizeOf(dtype, shape)) throw broken(file, "a NumPy");
  return { name: "", dtype, shape, start, bytes: end - start };
}

/** The floats of an archive as numpy.savez writes it. */
async function readNpz(file) {
  const members = await membersOf(file);
  const found = [];
  for (const { name, compressed, start, end } of members) {
    if (!CACHED.test(name) && !/^arr_\d+$/.test(name)) continue;
    if (compressed) throw new NotReadable(`${file.name} is compressed, which this page does not unpack.`, "Save it with numpy.savez, or decode it with: remote-vae decode.");
    found.push({ ...(await readNumpy(file, start, end)), name });
  }
  const names = members.map((member) => member.name);
  const stem = file.name.replace(/\.npz$/i, "");
  const end = Object.keys(RAW_CACHES).find((each) => stem.endsWith(each));
  const old = names.includes("original_size") && names.includes("crop_ltrb");
  return { raw: end === undefined ? old || undefined : RAW_CACHES[end], tensors: checked(file, found) };
}

/** Name, compression and place of every array in a ZIP archive. Source: PKWARE's APPNOTE, 4.3. */
async function membersOf(file) {
  const tail = await bytesOf(file, Math.max(0, file.size - 65557), file.size);
  const view = new DataView(tail.buffer);
  let at = tail.length - 22;
  while (at >= 0 && view.getUint32(at, true) !== 0x06054b50) at--;
  if (at < 0) throw broken(file, "a NumPy");
  const size = view.getUint32(at + 12, true), place = view.getUint32(at + 16, true);
  if (size > MOST_HEADER_BYTES || place + size > file.size) throw broken(file, "a NumPy");
  const list = await bytesOf(file, place, place + size);
  const entries = new DataView(list.buffer);
  const members = [];
  for (let from = 0; from + 46 <= size && entries.getUint32(from, true) === 0x02014b50; ) {
    const length = entries.getUint16(from + 28, true);
    const name = new TextDecoder().decode(list.subarray(from + 46, from + 46 + length)).replace(/\.npy$/, "");
    const local = await bytesOf(file, entries.getUint32(from + 42, true), entries.getUint32(from + 42, true) + 30);
    if (local.length < 30) throw broken(file, "a NumPy");
    const lengths = new DataView(local.buffer);
    const start = entries.getUint32(from + 42, true) + 30 + lengths.getUint16(26, true) + lengths.getUint16(28, true);
    members.push({ name, compressed: entries.getUint16(from + 10, true) !== 0, start, end: start + entries.getUint32(from + 24, true) });
    from += 46 + length + entries.getUint16(from + 30, true) + entries.getUint16(from + 32, true);
  }
  return members;
}

async function readSafetensors(file, head) {
  const length = head.length >= 8 ? Number(new DataView(head.buffer).getBigUint64(0, true)) : Infinity;
  if (length > MOST_HEADER_BYTES || 8 + length > file.size) {
    throw new NotReadable(`${file.name} is neither a latent (.safetensors, .npy, .npz, .latent) nor a picture (PNG, JPEG, WebP).`, "Choose another file, or save the latent as safetensors.");
  }
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await bytesOf(file, 8, 8 + length)));
  } catch (error) {
    if (error instanceof NotReadable) throw error;
    throw broken(file, "a safetensors");
  }
  const found = [];
  for (const [name, entry] of Object.entries(header ?? {})) {
    if (name === "__metadata__") continue;
    const dtype = SAFETENSORS_DTYPES[entry?.dtype];
    if (!dtype) continue;
    const { shape, data_offsets: place } = entry;
    const sound = isSizes(shape) && isSizes(place) && place.length === 2 && place[1] - place[0] === sizeOf(dtype, shape) && 8 + length + place[1] <= file.size;
    if (!sound) throw broken(file, "a safetensors");
    found.push({ name, dtype, shape, start: 8 + length + place[0], bytes: place[1] - place[0] });
  }
  const names = Object.keys(header ?? {});
  if (names.includes("latent_tensor") && !names.includes("latent_format_version_0")) {
    throw new NotReadable(`${file.name} is of an old ComfyUI, whose latents are scaled by SD 1's factor.`, "Open and save it with today's ComfyUI, or decode it with: remote-vae decode.");
  }
  found.sort((one, other) => CACHED.test(other.name) - CACHED.test(one.name));
  const architecture = header?.__metadata__?.architecture;
  return { raw: names.includes("latent_tensor") || RAW_ARCHITECTURES.includes(architecture), tensors: checked(file, found) };
}

function checked(file, tensors) {
  const latents = tensors.filter((tensor) => tensor.shape.length >= 3 && tensor.shape.length <= 5 && tensor.bytes > 0);
  if (latents.length) return latents;
  const shapes = tensors.slice(0, 3).map((tensor) => `[${tensor.shape}]`).join(", ");
  throw new NotReadable(`${file.name} holds no latent: ${shapes ? `its floats have the shape ${shapes}` : "it has no floats"}; a latent has 3 to 5 axes.`, "Choose another file.");
}

const isSizes = (list) => Array.isArray(list) && list.every((size) => Number.isSafeInteger(size) && size >= 0);
const sizeOf = (dtype, shape) => shape.reduce((product, size) => product * size, ITEM_BYTES[dtype]);
const broken = (file, kind) => new NotReadable(`${file.name} is ${kind} file that is broken or cut short.`, "Save or copy it again.");
