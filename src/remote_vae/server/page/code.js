// The program and the command that do what the page has just done.

/** `job`: {origin, name, model, tensor or null for a picture, query, video, format, hasKey}. Gives {python, curl}. */
export function codeOf(job) {
  return { python: (job.tensor ? pythonDecode : pythonRoundTrip)(job), curl: (job.tensor ? curlDecode : curlRoundTrip)(job) };
}

const python = (value) => (value === true || value === "True" ? "True" : typeof value === "number" ? String(value) : JSON.stringify(value));
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const call = (options) => Object.entries(options).filter(([, value]) => value !== undefined).map(([name, value]) => `, ${name}=${python(value)}`).join("");

function pythonDecode({ origin, name, model, tensor, options, video, format }) {
  const [imports, load] = loading(name, tensor);
  const said = { model, ...options, ...(video ? { output_type: "mp4" } : { image_format: format }) };
  const save = video ? `    open("decoded.mp4", "wb").write(client.decode(latent${call(said)}))` : `    reply = client.decode_reply(latent${call(said)})\n    open("decoded.${format}", "wb").write(reply.payload)`;
  return `${imports}\nfrom remote_vae import Client\n\nlatent = ${load}\nwith Client(${python(origin)}) as client:\n${save}\n`;
}

function loading(name, tensor) {
  const convert = tensor.dtype === "float64" ? '.astype("float32")' : "";
  if (!tensor.name) return ["import numpy", `numpy.load(${python(name)})${convert}`];
  const from = tensor.dtype === "bfloat16" ? "torch" : "numpy";
  return [`from safetensors.${from} import load_file`, `load_file(${python(name)})[${python(tensor.name)}]${convert}`];
}

function pythonRoundTrip({ origin, name, model, options, format }) {
  return `from pathlib import Path\nfrom remote_vae import Client\n\nwith Client(${python(origin)}) as client:\n    latent = client.encode(Path(${python(name)}).read_bytes()${call({ model, posterior: "mode", plan: options.plan })})\n    reply = client.decode_reply(latent${call({ model, image_format: format, plan: options.plan })})\nPath("decoded.${format}").write_bytes(reply.payload)\n`;
}

function curl(path, { body, type, accept, out, hasKey, more = "" }) {
  const key = hasKey ? ' \\\n  -H "Authorization: Bearer $REMOTE_VAE_API_KEY"' : "";
  return `curl --fail-with-body "${path}" \\\n  -H 'Content-Type: ${type}' -H 'Accept: ${accept}'${key} \\\n  --data-binary ${body} -o ${out}${more}`;
}

function curlDecode({ origin, name, model, tensor, query, video, format, accept, hasKey }) {
  const take = tensor.dtype === "float64" ? pythonAsFloat32(name, tensor) : `tail -c +${tensor.start + 1} ${shell(name)} | head -c ${tensor.bytes}`;
  const path = `${origin}/${model}/decode?${new URLSearchParams(query)}`;
  return `${take} |\n${curl(path, { body: "@-", type: "tensor/binary", accept, out: `decoded.${video ? "mp4" : format}`, hasKey })}\n`;
}

function pythonAsFloat32(name, tensor) {
  const [imports, load] = loading(name, tensor);
  return `python -c ${shell(`import sys\n${imports}\nsys.stdout.buffer.write(${load}.tobytes())`)}`;
}

function curlRoundTrip({ origin, name, model, options, accept, format, hasKey }) {
  const plan = options.plan ? `&plan=${options.plan}` : "";
  const encode = curl(`${origin}/${model}/encode?posterior=mode${plan}`, { body: shell(`@${name}`), type: "application/octet-stream", accept: "tensor/binary", out: "latent.bin", hasKey, more: " -D head.txt" });
  const decode = curl(`${origin}/${model}/decode?shape=$shape&dtype=$dtype${plan}`, { body: "@latent.bin", type: "tensor/binary", accept, out: `decoded.${format}`, hasKey });
  return `${encode}\nshape=$(grep -i ^shape: head.txt | tr -dc 0-9,)\ndtype=$(grep -i ^dtype: head.txt | tr -d '\\r' | cut -d' ' -f2)\n${decode}\n`;
}
