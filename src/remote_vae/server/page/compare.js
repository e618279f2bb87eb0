// A picture beside what came back: the slider, the difference, and PSNR in dB over all channels of 8 bits.

const GAIN = 16; // of the difference

/** Both pictures, `original` left of a line that is moved by a pointer or by keys. */
export function compareView(original, decoded, size) {
  const view = document.createElement("div");
  view.className = "compare";
  for (const [url, name] of [[decoded, "Decoded"], [original, "Original"]]) {
    const image = Object.assign(document.createElement("img"), { src: url, alt: name, ...size });
    image.classList.toggle("above", name === "Original");
    view.append(image);
  }
  for (const name of ["Original", "Decoded"]) view.append(Object.assign(document.createElement("b"), { textContent: name }));
  const slider = Object.assign(document.createElement("input"), { type: "range", className: "slider", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", "Share of the original, from the left, in percent");
  view.prepend(slider, Object.assign(document.createElement("i"), { className: "handle" }));
  slider.addEventListener("input", () => view.style.setProperty("--split", `${slider.value}%`));
  const follow = (event) => {
    if (event.pointerType === "mouse" && event.buttons !== 1) return;
    event.preventDefault(); // no selection, and no picture to drag away
    const { left, width } = view.getBoundingClientRect();
    slider.value = (100 * (event.clientX - left)) / width;
    slider.dispatchEvent(new Event("input"));
  };
  for (const type of ["pointerdown", "pointermove"]) view.addEventListener(type, follow);
  return view;
}

/** {psnr, resized, transparent, width, height, difference}; psnr is null for a picture with transparency, whose colours a browser mixes. */
export async function compare(original, decoded) {
  const [first, second] = await Promise.all([original, decoded].map((blob) => createImageBitmap(blob, { colorSpaceConversion: "none" })));
  const { width, height } = second;
  const [a, b] = [first, second].map((bitmap) => pixelsOf(bitmap, width, height));
  const transparent = [a, b].some((pixels) => pixels.some((value, index) => index % 4 === 3 && value < 255));
  const resized = first.width !== width || first.height !== height;
  return { psnr: transparent ? null : psnrOf(a, b), resized, transparent, width, height, difference: () => differenceOf(a, b, width, height) };
}

function pixelsOf(bitmap, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/** A canvas of how far the colours are apart, brightened so that small errors are seen. */
function differenceOf(a, b, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height, className: "difference" });
  const pixels = a.map((value, at) => (at % 4 === 3 ? 255 : GAIN * Math.abs(value - b[at]))); // clamped to a byte
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The difference, ${GAIN} times as bright`);
  return canvas;
}

function psnrOf(a, b) {
  let sum = 0;
  for (let at = 0; at < a.length; at += 4) {
    for (let channel = at; channel < at + 3; channel++) sum += (a[channel] - b[channel]) ** 2;
  }
  return 10 * Math.log10(255 ** 2 / (sum / ((a.length / 4) * 3)));
}
