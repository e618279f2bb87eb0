// How large a picture is shown: as it fits, or by a factor, in a box that scrolls; and the difference of two pictures.

const SIZES = { Fit: 0, "100 %": 1, "200 %": 2, "400 %": 4, "800 %": 8 };
const NAMES = Object.keys(SIZES);
let size = "Fit"; // stays for the next picture

/** Buttons for what `stage` shows; `difference` gives a canvas to lay over it, if there are two pictures. */
export function viewTools(stage, difference) {
  const buttons = NAMES.map((name) => button(name, () => zoom(name)));
  const zoom = (name) => {
    const [x, y] = [(stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth, (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight];
    size = name;
    stage.classList.toggle("zoomed", name !== "Fit");
    stage.style.setProperty("--zoom", SIZES[name]);
    for (const image of stage.querySelectorAll("img")) image.decode().then(() => {
      image.style.setProperty("--wide", image.naturalWidth);
      stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2); // the middle stays
    });
    for (const item of buttons) item.setAttribute("aria-pressed", String(item.textContent === name));
  };
  const step = (by) => zoom(NAMES[Math.min(NAMES.length - 1, Math.max(0, NAMES.indexOf(size) + by))]);
  stage.onwheel = (event) => {
    if (!event.ctrlKey) return; // which scrolls
    event.preventDefault();
    step(event.deltaY < 0 ? 1 : -1);
  };
  stage.onkeydown = ({ key }) => {
    if (key === "+" || key === "-") step(key === "+" ? 1 : -1);
  };
  zoom(size);
  return difference ? [...buttons, differenceButton(stage, difference)] : buttons;
}

function differenceButton(stage, difference) {
  const toggle = button("Difference x16", () => {
    const canvas = stage.querySelector(".difference");
    if (canvas) canvas.remove();
    else stage.querySelector(".compare").append(difference());
    toggle.setAttribute("aria-pressed", String(!canvas));
  });
  toggle.setAttribute("aria-pressed", "false");
  return toggle;
}

function button(text, onClick) {
  const element = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: text });
  element.addEventListener("click", onClick);
  return element;
}
