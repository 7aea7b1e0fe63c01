// One line per run, opened for everything that is known of it. Only what is open is built.

const LINES = 25;

const show = (value) => value === null || value === undefined ? "–"
  : Array.isArray(value) ? value.map(show).join(", ") || "none"
    : typeof value === "object" ? JSON.stringify(value) : String(value);

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

const stateOf = (cell) => cell.state === "failed" ? "failed" : cell.collapse ? "collapsed" : "done";

function makeCells(section, host) {
  const state = { query: "", page: 0 };
  const list = el("div", { className: "runs" });
  const pages = pager((page) => { state.page = page; draw(); });
  const search = el("input", { type: "search", placeholder: "Filter by name, seed or state", "aria-label": "Filter runs",
    oninput: () => { state.query = search.value; state.page = 0; draw(); } });
  const text = (cell) => [section.groups[cell.group].label, `seed ${cell.seed}`, cell.name, cell.state,
    cell.collapse ? "collapsed" : ""].join(" ");
  const found = () => section.cells.filter((cell) => matches(text(cell), state.query));

  function line(cell, above) {
    const state = stateOf(cell);
    const inside = el("div", { className: "run-body" });
    const node = el("details", { className: "run", dataset: { cell: cell.name, state }, ontoggle: () => {
      if (node.open && !inside.firstChild) inside.append(...cellParts(section, cell, above));
    } }, el("summary", {}, el("span", { className: `state ${state}` }, state), name(section.groups[cell.group].label),
      el("span", { className: "seed" }, `seed ${cell.seed}`),
      el("span", { className: "brief" }, briefly(section, cell))), inside);
    return node;
  }

  function draw() {
    const all = found(), first = state.page * LINES;
    list.replaceChildren(...all.slice(first, first + LINES).map((cell, i) => line(cell, all[first + i - 1])));
    pages.show(state.page, LINES, all.length, section.cells.length, "runs");
  }

  /** Show the run, wherever it is in the list, open and in view. */
  function open(cell) {
    state.query = search.value = "";
    state.page = Math.floor(section.cells.indexOf(cell) / LINES);
    draw();
    const node = [...list.children].find((line) => line.dataset.cell === cell.name);
    node.open = true;
    node.scrollIntoView({ block: "start" });
    node.querySelector("summary").focus({ preventScroll: true });
  }

  host.replaceChildren(el("div", { className: "tools" }, search), list, pages.node);
  draw();
  return open;
}

/** The first scores of a run, or why it has none. */
function briefly(section, cell) {
  if (cell.error) return cell.error.message;
  return section.columns.slice(0, 3).map((column, i) => `${column.title.replace(/ [↑↓]$/, "")} ${cell.t[i]}`).join(" · ");
}

function cellParts(section, cell, above) {
  const group = section.groups[cell.group];
  return [
    cell.error ? failure(cell) : null,
    cell.collapse ? happened(cell) : null,
    el("div", { className: "parts" },
      part("Settings", changes(settingsOf(section, cell), above && settingsOf(section, above))),
      part("Scores", terms(cell.scores, (value) => value === null ? "–" : Number(value).toPrecision(5))),
      part("Where it ran", terms({ ...DATA.pool[cell.where], ...times(cell), finished: cell.finished })),
      part("Versions", terms(DATA.pool[cell.versions])),
      part("Files", files(cell)),
      part("Left open by the paper, chosen here", terms(group.open))),
    el("section", { className: "recipe" }, el("h4", {}, "Recipe"), terms(DATA.pool[cell.recipe])),
  ].filter(Boolean);
}

/** What happened to a run that collapsed, with its curves beside it. */
function happened(cell) {
  const picture = cell.figure && el("figure", {},
    el("button", { type: "button", "data-enlarge": "", "aria-label": "Enlarge: curves of this run" },
      el("img", { src: cell.figure.image, alt: cell.figure.caption })),
    el("figcaption", {}, cell.figure.caption));
  return el("div", { className: "problem happened" }, el("p", { dir: "auto" }, cell.collapse.said), picture);
}

const part = (title, content) => content && el("section", {}, el("h4", {}, title), content);

function settingsOf(section, cell) {
  const group = section.groups[cell.group];
  return { ...group.settings, seed: cell.seed };
}

function failure(cell) {
  const { type, message, hint, stage, log_tail: log } = cell.error;
  return el("div", { className: "problem" },
    el("p", {}, el("b", {}, `Failed${stage ? ` in ${stage}` : ""}: `), message, type ? ` (${type})` : ""),
    hint ? el("p", {}, el("b", {}, "What to do: "), hint) : null,
    log ? el("pre", { tabIndex: 0, "aria-label": "Last lines of the log" }, log) : null);
}

function terms(values, write = show) {
  const known = Object.entries(values || {}).filter(([, value]) => value !== undefined && value !== null);
  if (known.length === 0) return null;
  return el("dl", { className: "terms" }, known.map(([key, value]) =>
    el("div", {}, el("dt", {}, key), el("dd", { dir: "auto" }, write(value)))));
}

/** Settings with what differs from the line above marked, and what it was there. */
function changes(now, before) {
  const keys = [...new Set([...Object.keys(now), ...Object.keys(before || {})])];
  const differ = before ? keys.filter((key) => !same(now[key], before[key])) : [];
  const told = !before ? "The first line: nothing above it." : differ.length === 0 ? "The same as the line above."
    : `Differs from the line above in ${differ.length === 1 ? "one setting" : `${differ.length} settings`}.`;
  keys.sort((a, b) => differ.includes(b) - differ.includes(a));
  const shown = keys.filter((key) => !key.startsWith("recipe.") || differ.includes(key)); // the recipe stands below
  const rows = shown.map((key) => {
    const changed = differ.includes(key);
    return el("tr", { className: changed ? "changed" : "" }, el("th", { scope: "row" }, key), el("td", { dir: "auto" }, show(now[key])),
      el("td", { className: "was" }, changed ? `above: ${show(before[key])}` : ""));
  });
  return el("div", {}, el("p", { className: "told" }, told),
    el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Settings" },
      el("table", { className: "settings" }, el("tbody", {}, rows))));
}

function times(cell) {
  const found = Object.fromEntries(cell.times.map(([title, value, unit]) =>
    [`${title}, ${unit}`, Number(value).toLocaleString("en", { maximumFractionDigits: 1 })]));
  if (cell.memory) found["peak memory, MiB"] = Math.round(cell.memory / 2 ** 20).toLocaleString("en");
  return found;
}

function files(cell) {
  const rows = { run: cell.name, folder: cell.path, "spec hash": cell.hash };
  const list = terms(rows);
  if (cell.mlflow) {
    const where = cell.mlflow.link
      ? el("a", { href: cell.mlflow.link, rel: "noreferrer" }, `run ${cell.mlflow.run}`)
      : el("span", {}, `run ${cell.mlflow.run}, opened by `, el("code", {}, DATA.ui));
    list.append(el("div", {}, el("dt", {}, "MLflow"), el("dd", {}, where)));
  }
  return list;
}
