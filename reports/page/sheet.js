// The same validation images by every method: small multiples beside the stage.

const MANY = 24; // small multiples at first
const SHEETS = ["Spread evenly", "Where methods differ most"]; // in the order in which a report chooses them

function makeSheets(section, host) {
  if (section.sheets.length === 0) return false;
  const state = { sheet: 0, image: 0, a: 0, b: 1, errors: false, all: false };
  const stage = makeStage();
  const where = el("span", { className: "told", role: "status" });
  const thumbs = el("div", { className: "thumbs", role: "group", "aria-label": "Images" });
  const grid = el("div", { className: "multiples" });
  const note = el("p", { className: "intro" });
  const pickers = el("div", { className: "pickers" });
  const sheet = () => section.sheets[state.sheet];
  const pictures = () => [
    { label: "original", uri: sheet().originals[state.image] },
    ...sheet().methods.map((method) => ({ label: method.label, uri: method.images[state.image] })),
  ];
  let multiples = [];

  const step = (by) => turnTo((state.image + by + sheet().ids.length) % sheet().ids.length);
  function turnTo(image) { state.image = image; update(); }

  /** What depends on the sheet: which images and which methods there are. */
  function build() {
    const why = sheet().reason;
    host.style.setProperty("--aspect", sheet().aspect); // of channels side by side
    note.textContent = `${why[0].toUpperCase()}${why.slice(1)}. ${sheet().left_out}`;
    thumbs.replaceChildren(...sheet().originals.map((uri, i) =>
      el("button", { type: "button", "aria-label": `image ${i + 1}`, onclick: () => turnTo(i) }, el("img", { src: uri, alt: "" }))));
    const labels = pictures().map((picture) => picture.label);
    state.a = Math.min(state.a, labels.length - 1);
    state.b = Math.min(state.b, labels.length - 1);
    multiples = (state.all ? labels : labels.slice(0, MANY)).map(multiple);
    grid.replaceChildren(...multiples.map(({ button }) => button));
    more.hidden = state.all || labels.length <= MANY;
    left = select("Left", labels, state.a, (i) => { state.a = i; update(); });
    right = select("Right", labels, state.b, (i) => { state.b = i; update(); });
    pickers.replaceChildren(left.node, right.node);
    update();
  }

  let left, right;

  function multiple(label, i) {
    const image = el("img", { alt: "" }), error = el("canvas", { "aria-hidden": "true", hidden: true });
    const told = el("span", { className: "db" });
    const button = el("button", { type: "button", className: "multiple", title: `${label}: show it on the right`,
      onclick: () => { state.b = i; update(); } }, el("span", { className: "frame" }, image, error), name(label), told);
    return { button, image, error, told };
  }

  /** What depends on the image and on the two that were chosen. */
  function update() {
    const all = pictures(), id = sheet().ids[state.image];
    where.textContent = `image ${state.image + 1} of ${sheet().ids.length}: ${id}`;
    host.dataset.image = id;
    [...thumbs.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.image)));
    right.box.value = state.b;
    const scale = errorScale(all[0].uri, all.slice(1).map((picture) => picture.uri));
    stage.show(all[state.a], all[state.b], scale);
    multiples.forEach((one, i) => {
      one.image.src = all[i].uri;
      one.button.setAttribute("aria-pressed", String(i === state.b));
      const errors = state.errors && i > 0;
      one.image.hidden = errors;
      one.error.hidden = !errors;
      if (i > 0) measure(one, all[0].uri, all[i].uri, scale);
    });
  }

  async function measure(one, original, uri, scale) {
    const [a, b, full] = await Promise.all([pixels(original), pixels(uri), scale]);
    if (one.image.src !== uri) return; // turned meanwhile
    if (!one.error.hidden) drawError(one.error, a, b, full);
    const found = psnr(a, b);
    one.told.textContent = Number.isFinite(found) ? `${found.toFixed(2)} dB` : "identical";
  }

  const errors = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
    state.errors = !state.errors;
    errors.setAttribute("aria-pressed", String(state.errors));
    update();
  } }, "Error maps");
  const more = el("button", { type: "button", onclick: () => { state.all = true; build(); } }, "Show all methods");
  const reasons = section.sheets.map((one, i) => [String(i), SHEETS[i] || one.reason]);
  host.replaceChildren(
    el("div", { className: "tools" },
      reasons.length > 1
        ? choice("Which images", reasons, "0", (i) => { state.sheet = Number(i); state.image = 0; build(); }) : null,
      el("div", { className: "turn" },
        el("button", { type: "button", "aria-label": "Previous image", onclick: () => step(-1) }, "←"),
        el("button", { type: "button", "aria-label": "Next image", onclick: () => step(1) }, "→"), where)),
    note, thumbs,
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
  build();
  return true;
}
