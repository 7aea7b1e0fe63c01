// The same validation images by every method: small multiples beside the stage.

const MANY = 24; // small multiples at first

function makeSheets(section, host) {
  if (section.sheets.length === 0) return false;
  const state = { sheet: 0, image: 0, a: 0, b: 1, errors: false, all: false };
  const stage = makeStage();
  const where = el("span", { className: "told", role: "status" });
  const strip = el("div", { className: "thumbs", role: "group", "aria-label": "Images" });
  const grid = el("div", { className: "multiples" });
  const note = el("p", { className: "intro" });
  const pickers = el("div", { className: "pickers" });
  const sheet = () => section.sheets[state.sheet];
  const pictures = () => [
    { label: "original", uri: sheet().originals[state.image] },
    ...sheet().methods.map((method) => ({ label: method.label, uri: method.images[state.image] })),
  ];

  const step = (by) => { state.image = (state.image + by + sheet().ids.length) % sheet().ids.length; draw(); };
  function chooseSheet(i) { state.sheet = i; state.image = 0; draw(); }

  function drawPickers() {
    const labels = pictures().map((picture) => picture.label);
    const first = select("Left", labels, state.a, (i) => { state.a = i; draw(); });
    const second = select("Right", labels, state.b, (i) => { state.b = i; draw(); });
    pickers.replaceChildren(first.node, second.node);
  }

  async function multiple(picture, i, original) {
    const canvas = el("canvas", { "aria-hidden": "true" }), image = el("img", { src: picture.uri, alt: "" });
    const told = el("span", { className: "db" });
    const button = el("button", { type: "button", className: "multiple", "aria-pressed": String(i === state.b),
      title: `${picture.label}: show it on the right`, onclick: () => {
        state.b = i;
        draw();
        grid.children[i].focus();
      } }, el("span", { className: "frame" }, state.errors && i > 0 ? canvas : image), name(picture.label), told);
    const [a, b] = await Promise.all([pixels(original), pixels(picture.uri)]);
    if (state.errors && i > 0) drawError(canvas, a, b);
    told.textContent = i === 0 ? "" : `${psnr(a, b).toFixed(2)} dB`;
    return button;
  }

  let turn = 0;
  async function draw() {
    const mine = ++turn, all = pictures(), shown = state.all ? all : all.slice(0, MANY);
    where.textContent = `image ${state.image + 1} of ${sheet().ids.length}: ${sheet().ids[state.image]}`;
    host.dataset.image = sheet().ids[state.image];
    note.textContent = sheet().left_out;
    note.hidden = !sheet().left_out;
    strip.replaceChildren(...sheet().originals.map((uri, i) =>
      el("button", { type: "button", "aria-label": `image ${i + 1}`, "aria-pressed": String(i === state.image),
        onclick: () => { state.image = i; draw(); strip.children[i].focus(); } }, el("img", { src: uri, alt: "" }))));
    drawPickers();
    stage.show(all[state.a], all[state.b]);
    const made = await Promise.all(shown.map((picture, i) => multiple(picture, i, all[0].uri)));
    if (mine !== turn) return; // a later choice overtook this one
    const focused = [...grid.children].indexOf(document.activeElement);
    grid.replaceChildren(...made);
    if (focused >= 0 && grid.children[focused]) grid.children[focused].focus();
    more.hidden = state.all || all.length <= MANY;
  }

  const errors = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
    state.errors = !state.errors;
    errors.setAttribute("aria-pressed", String(state.errors));
    draw();
  } }, "Error maps");
  const more = el("button", { type: "button", onclick: () => { state.all = true; draw(); } }, "Show all methods");
  const reasons = section.sheets.map((one, i) => [String(i), one.reason]);
  host.replaceChildren(
    el("div", { className: "tools" },
      reasons.length > 1 ? choice("Which images", reasons, "0", (i) => chooseSheet(Number(i))) : null,
      el("div", { className: "turn" },
        el("button", { type: "button", "aria-label": "Previous image", onclick: () => step(-1) }, "←"),
        el("button", { type: "button", "aria-label": "Next image", onclick: () => step(1) }, "→"), where)),
    note, strip,
    el("div", { className: "compare" },
      el("div", { className: "comparer" },
        choice("How to compare", [["slider", "Slider"], ["flicker", "Flicker"], ["error", "Error map"]], "slider", stage.setMode),
        pickers, stage.node),
      el("div", {}, el("div", { className: "tools" }, el("span", { className: "told" },
        "All methods, with the PSNR of this image. Press one to see it on the right."), errors), grid, more)));
  host.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      step(event.key === "ArrowLeft" ? -1 : 1);
      event.preventDefault();
    }
  });
  draw();
  return true;
}
