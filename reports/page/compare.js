// Two pictures of one image: decoded pixels, their difference, the slider and the flicker.

const decoded = new Map();

/** Pixels of a data URI, each decoded once. */
function pixels(uri) {
  if (!decoded.has(uri)) {
    const image = new Image();
    image.src = uri;
    decoded.set(uri, image.decode().then(() => {
      const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, canvas.width, canvas.height);
    }));
  }
  return decoded.get(uri);
}

/** 10 log10(255² / MSE) over R, G and B; Infinity for identical images. */
function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.data.length; i += 4) {
    for (let c = i; c < i + 3; c++) sum += (a.data[c] - b.data[c]) ** 2;
  }
  const mse = sum / (a.data.length / 4 * 3);
  return 10 * Math.log10(255 ** 2 / mse);
}

const SCALES = [8, 16, 32, 64, 128, 255];

/** Mean absolute difference over R, G and B of each pixel. */
function errorsOf(a, b) {
  const found = new Float32Array(a.data.length / 4);
  for (let i = 0; i < found.length; i++) {
    for (let c = 4 * i; c < 4 * i + 3; c++) found[i] += Math.abs(a.data[c] - b.data[c]) / 3;
  }
  return found;
}

/** The far end of the error scale for one image: the least of SCALES that holds 98 % of all methods' pixels. */
async function errorScale(original, uris) {
  const first = await pixels(original);
  const every = (await Promise.all(uris.map(pixels))).map((other) => errorsOf(first, other));
  const all = new Float32Array(every.reduce((sum, one) => sum + one.length, 0));
  every.reduce((at, one) => { all.set(one, at); return at + one.length; }, 0);
  const high = all.sort()[Math.floor(0.98 * (all.length - 1))] || 0;
  return SCALES.find((scale) => scale >= high) || 255;
}

const HEAT = [[13, 8, 35], [84, 19, 109], [165, 44, 96], [229, 92, 48], [251, 164, 10], [252, 255, 164]];

function heat(share) {
  const place = Math.min(1, share) * (HEAT.length - 1), i = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[i].map((low, c) => Math.round(low + (HEAT[i + 1][c] - low) * (place - i)));
}

/** Mean absolute difference of each pixel, as a heat map on `canvas`; `full` is the far end of the scale. */
function drawError(canvas, a, b, full) {
  canvas.width = a.width;
  canvas.height = a.height;
  const out = new ImageData(a.width, a.height);
  errorsOf(a, b).forEach((error, i) => out.data.set([...heat(error / full), 255], 4 * i));
  canvas.getContext("2d").putImageData(out, 0, 0);
}

function heatScale() {
  const canvas = el("canvas", { width: 128, height: 1, className: "heat", "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 128; x++) {
    context.fillStyle = `rgb(${heat(x / 127).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
  const far = el("span");
  return { node: el("span", { className: "heat-scale" }, "0", canvas, far),
    say: (full) => { far.textContent = full < 255 ? `${full} or more of 255` : "255"; } };
}

/** The stage: one picture over another. `show(a, b, scale)` takes {label, uri} each; modes are slider, flicker, error. */
function makeStage() {
  const under = el("img", { alt: "", draggable: false }), over = el("img", { alt: "", draggable: false });
  const error = el("canvas", { "aria-hidden": "true" }), legend = heatScale();
  const line = el("span", { className: "line", "aria-hidden": "true" });
  const tagA = el("span", { className: "side left", dir: "auto" }), tagB = el("span", { className: "side right", dir: "auto" });
  const node = el("div", { className: "stage", role: "img" }, under, over, error, line, tagA, tagB);
  const range = el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Where the slider stands", oninput: place });
  const flip = el("button", { type: "button", onclick: () => { stop(); shownB = !shownB; place(); } }, "Flip");
  const play = el("button", { type: "button", "aria-pressed": "false", onclick: () => timer ? stop() : start() }, "Play");
  const controls = el("div", { className: "stage-controls" }, range, flip, play, legend.node);
  const said = el("p", { className: "said", role: "status" });
  let mode = "slider", shownB = false, timer = null, pair = null;

  function start() {
    timer = setInterval(() => { shownB = !shownB; place(); }, 600);
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Pause";
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play";
  }
  function place() {
    const at = mode === "slider" ? Number(range.value) : mode === "flicker" && shownB ? 0 : 100;
    over.style.clipPath = `inset(0 ${100 - at}% 0 0)`; // the first picture lies above, to the left of the line
    line.style.left = `${at}%`;
    node.dataset.mode = mode;
    node.dataset.at = at;
    node.dataset.shown = mode === "flicker" ? (shownB ? "second" : "first") : mode === "slider" ? "both" : "error";
    tagA.hidden = mode === "flicker" && shownB;
    tagB.hidden = mode === "flicker" && !shownB;
    const off = { slider: [false, true, true], flicker: [true, false, true], error: [true, true, false] }[mode];
    [range.hidden, flip.hidden, legend.node.hidden] = off;
    play.hidden = flip.hidden;
  }
  node.addEventListener("pointerdown", (event) => { node.setPointerCapture(event.pointerId); drag(event); });
  node.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  function drag(event) {
    if (mode !== "slider") return;
    const box = node.getBoundingClientRect();
    range.value = Math.round(100 * (event.clientX - box.left) / box.width);
    place();
  }

  async function show(a, b, scale) {
    pair = [a, b];
    over.src = a.uri;
    under.src = b.uri;
    tagA.textContent = a.label;
    tagB.textContent = b.label;
    node.setAttribute("aria-label", `${a.label} and ${b.label}`);
    const [first, second, full] = await Promise.all([pixels(a.uri), pixels(b.uri), scale]);
    if (pair[0] !== a || pair[1] !== b) return; // another was chosen meanwhile
    drawError(error, first, second, full);
    legend.say(full);
    const found = psnr(first, second);
    said.textContent = Number.isFinite(found) ? `PSNR between the two on this image: ${found.toFixed(2)} dB.` : "The two are identical on this image.";
    place();
  }
  function setMode(next) {
    mode = next;
    stop();
    if (mode === "flicker" && !matchMedia("(prefers-reduced-motion: reduce)").matches) start();
    place();
  }
  place();
  return { node: el("div", { className: "stage-box" }, node, controls, said), show, setMode };
}
