// A video that is shown while it comes: its boxes, the number of its frames, and a player for what is there.

const CODEC = "avc1.";

/** Takes an MP4 in fragments piece by piece. Without MediaSource it only counts frames. */
export class GrowingVideo {
  constructor(label) {
    this.frames = 0;
    this.element = Object.assign(document.createElement("video"), { controls: true, muted: true, autoplay: true, playsInline: true });
    this.element.setAttribute("aria-label", label);
    this.rest = new Uint8Array();
    this.waiting = [];
  }

  take(piece) {
    let data = join(this.rest, piece);
    for (let size = sizeOf(data); size && size <= data.length; size = sizeOf(data)) {
      this.takeBox(data.subarray(0, size));
      data = data.subarray(size);
    }
    this.rest = data.slice();
  }

  takeBox(box) {
    const type = typeOf(box);
    if (type === "moof") this.frames += uint32(box, find(box, "trun") + 8);
    this.waiting.push(box.slice());
    if (type === "moov") this.open(box);
    this.append();
  }

  open(moov) {
    const at = find(moov, "avcC") + 5; // profile, compatibility and level
    const type = `video/mp4; codecs="${CODEC}${[...moov.subarray(at, at + 3)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}"`;
    if (!globalThis.MediaSource?.isTypeSupported(type)) return;
    const source = new MediaSource();
    this.element.src = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(this.element.src);
      this.buffer = source.addSourceBuffer(type);
      this.buffer.addEventListener("updateend", () => this.append());
      this.append();
    }, { once: true });
  }

  append() {
    if (!this.buffer || this.buffer.updating || !this.waiting.length) return;
    try {
      this.buffer.appendBuffer(this.waiting.shift());
    } catch {
      this.buffer = undefined; // it has been taken off the page, or holds no more; the whole video comes at the end
    }
  }
}

const uint32 = (data, at) => new DataView(data.buffer, data.byteOffset).getUint32(at);
const sizeOf = (data) => (data.length < 8 ? 0 : uint32(data, 0));
const typeOf = (box) => String.fromCharCode(...box.subarray(4, 8));

/** Where the four letters begin. */
function find(box, name) {
  const letters = [...name].map((letter) => letter.charCodeAt(0));
  return box.findIndex((_, at) => letters.every((letter, index) => box[at + index] === letter));
}

function join(first, second) {
  const whole = new Uint8Array(first.length + second.length);
  whole.set(first);
  whole.set(second, first.length);
  return whole;
}
