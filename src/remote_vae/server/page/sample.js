// A picture for those who have none at hand, drawn here: soft colour, sharp edges, fine lines and letters.

const SIDE = 512;

export async function drawSample() {
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const pen = canvas.getContext("2d");
  const sky = pen.createLinearGradient(0, 0, 0, SIDE);
  for (const [at, colour] of [[0, "#22305f"], [0.45, "#b4658a"], [0.68, "#f4b77b"], [0.69, "#27486b"], [1, "#0d1d33"]]) sky.addColorStop(at, colour);
  pen.fillStyle = sky;
  pen.fillRect(0, 0, SIDE, SIDE);
  pen.fillStyle = "#fff3cf";
  pen.beginPath();
  pen.arc(150, 300, 34, 0, 7);
  pen.fill();
  pen.fillStyle = "#f6f4f1";
  pen.fill(new Path2D("M352 150 h44 l16 220 h-76 z"));
  pen.fillStyle = "#c8392f";
  for (const top of [180, 236, 292]) pen.fillRect(350 - (top - 180) / 14, top, 48 + (top - 180) / 7, 26);
  pen.fillRect(346, 128, 56, 24);
  pen.fillStyle = "#1a1c24";
  pen.fill(new Path2D("M250 372 q90 -34 262 -8 v148 h-320 q20 -90 58 -140 z"));
  pen.strokeStyle = "#ffffff66";
  for (let line = 0; line < 40; line++) {
    pen.lineWidth = 0.4 + line / 40;
    pen.beginPath();
    pen.moveTo(20 + ((line * 47) % 150), 362 + line * 3.6);
    pen.lineTo(70 + ((line * 71) % 160), 362 + line * 3.6);
    pen.stroke();
  }
  pen.fillStyle = "#ffffff";
  pen.font = "600 22px system-ui, sans-serif";
  pen.fillText("512 × 512 test picture", 24, 48);
  return new File([await canvas.convertToBlob({ type: "image/png" })], "test-picture.png", { type: "image/png" });
}
