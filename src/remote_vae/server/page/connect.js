// How programs reach a model: its address, and lines to paste for each program.

import { hasFrames } from "./models.js";

const $ = (id) => document.getElementById(id);
const quote = JSON.stringify;

const WAYS = {
  diffusers: (url) => `from diffusers import DiffusionPipeline\nfrom remote_vae import RemoteVAE\n\nvae = RemoteVAE(${quote(url)})\npipe = DiffusionPipeline.from_pretrained("OWNER/MODEL", vae=vae)\n`,
  ComfyUI: (url, { name }) => `REMOTE_VAE_ENDPOINT=${url.slice(0, -name.length - 1)}   # set for ComfyUI's process\nLoad Remote VAE > model: ${name}\n`,
  curl: (url, _, key) => `curl --fail-with-body "${url}/encode" \\\n  -H 'Content-Type: application/octet-stream' -H 'Accept: tensor/binary'${key ? ' \\\n  -H "Authorization: Bearer $REMOTE_VAE_API_KEY"' : ""} \\\n  --data-binary @photo.jpg -o latent.bin -D head.txt\n`,
  JavaScript: (url, card, key) => `const query = "shape=1,${card.latent_channels},${hasFrames(card) ? "1," : ""}64,64&dtype=float32&do_scaling=True";\nconst reply = await fetch(${quote(`${url}/decode?`)} + query, {\n  method: "POST",\n  headers: { "content-type": "tensor/binary", accept: "image/png"${key ? ", authorization: `Bearer ${key}`" : ""} },\n  body: latent, // a Float32Array\n});\nconst picture = await reply.blob();\n`,
};
const HINTS = {
  diffusers: "The pipeline needs no VAE of its own: it hands its latents to this server.",
  ComfyUI: "With the nodes of integrations/comfyui in ComfyUI's custom_nodes.",
  curl: "A picture to a latent. Its shape and dtype are in head.txt.",
  JavaScript: "A page of another site may do this if the server was started with --allow-origin and the site's address.",
};
let chosen = "diffusers";

export function showConnect(url, card, hasKey) {
  const show = () => {
    $("address").textContent = url;
    $("way").textContent = WAYS[chosen](url, card, hasKey);
    $("way-hint").textContent = `${HINTS[chosen]}${hasKey ? " The key is read from REMOTE_VAE_API_KEY, or is yours to fill in." : ""}`;
    for (const button of $("ways").children) button.setAttribute("aria-pressed", String(button.textContent === chosen));
  };
  $("ways").replaceChildren(...Object.keys(WAYS).map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: name });
    button.addEventListener("click", () => {
      chosen = name;
      show();
    });
    return button;
  }));
  show();
}
