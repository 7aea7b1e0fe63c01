// The table of one protocol: methods or single runs, sorted, filtered, a page at a time.

const PAGE = 50;

/** What one row of the table shows, whether it stands for a method or for a run. Rows of one size stay together. */
function rowsOf(section, view) {
  if (view === "methods") {
    return section.groups.map((group, place) => ({
      ...group, place, name: group.label, tags: tagsOf(group), group: place, count: String(group.seeds),
      strips: section.columns.map((column, i) => column.strip ? section.bySeed[place][i] : []),
    }));
  }
  return section.cells.map((cell, place) => ({
    ...cell, place, name: section.groups[cell.group].label, tied: [], count: String(cell.seed), h: [],
    size: section.groups[cell.group].size,
    tags: [cell.state === "failed" ? "failed" : null, cell.collapse ? "collapsed" : null].filter(Boolean),
    strips: [],
  }));
}

function tagsOf(group) {
  const some = (n, word) => n === 0 ? null : n === group.cells ? word : `${n} of ${group.cells} ${word}`;
  return [some(group.failed, "failed"), some(group.collapsed, "collapsed")].filter(Boolean);
}

/** By method and column: the values of its seeds. */
function seedValues(section) {
  const found = section.groups.map(() => section.columns.map(() => []));
  for (const cell of section.cells) {
    cell.v.forEach((value, i) => { if (value !== null) found[cell.group][i].push(value); });
  }
  return found;
}

/** `openRun(row, view, state)` shows the run of a row, or the first of its runs, in that state if one is given. */
function makeTable(section, host, openRun) {
  section.bySeed = seedValues(section);
  const state = { view: "methods", key: null, direction: 1, query: "", hidden: new Set(), page: 0, size: PAGE };
  const rows = { methods: rowsOf(section, "methods"), cells: rowsOf(section, "cells") };
  const span = section.columns.map((_, i) => {
    const all = section.bySeed.flatMap((columns) => columns[i]);
    return [Math.min(...all), Math.max(...all)];
  });
  const head = el("tr"), body = el("tbody");
  const pages = pager((page) => { state.page = page; draw(); });
  const table = el("table", {}, el("caption", { className: "unseen" }, "Scores; press a column's title to sort by it"),
    el("thead", {}, head), body);

  const value = (row, key) => {
    if (key === "name") return row.name;
    if (key === "count") return Number(row.count);
    return row.v[section.columns.findIndex((column) => column.key === key)];
  };

  function sorted() {
    const found = rows[state.view].filter((row) => matches([row.name, ...row.tags].join(" "), state.query));
    if (state.key === null) return found;
    return found.sort((a, b) => {
      if (a.size !== b.size) return a.size - b.size;
      const x = value(a, state.key), y = value(b, state.key);
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place; // without a score: last
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return state.direction * order || a.place - b.place;
    });
  }

  function sortBy(key, better) {
    if (state.key === key) state.direction = -state.direction;
    else { state.key = key; state.direction = better === "higher" ? -1 : 1; } // the better first
    state.page = 0;
    draw();
  }

  function title(key, words, better, help) {
    const now = state.key === key ? (state.direction > 0 ? "ascending" : "descending") : "none";
    const button = el("button", { type: "button", title: help || "", onclick: () => {
      sortBy(key, better);
      head.querySelector(`[data-key="${CSS.escape(key)}"] button`).focus();
    } }, words, el("span", { className: "sort", "aria-hidden": "true" }));
    return el("th", { scope: "col", className: key === "name" ? "label" : "number", "aria-sort": now, dataset: { key } },
      button);
  }

  function drawHead() {
    head.replaceChildren(
      title("name", "method", "lower"),
      ...shown().map(({ column }) => title(column.key, column.title, column.better, column.gloss)),
      title("count", state.view === "methods" ? "n" : "seed", "higher",
        state.view === "methods" ? "seeds with scores" : "the seed of this run"));
  }

  const shown = () => section.columns.map((column, i) => ({ column, i })).filter(({ column }) => !state.hidden.has(column.key));

  function drawRow(row) {
    const label = el("th", { scope: "row", className: "label" },
      el("button", { type: "button", className: "open", onclick: () => openRun(row, state.view) }, name(row.name)),
      el("div", {}, row.tags.map((tag) => el("button", { type: "button", className: "tag",
        onclick: () => openRun(row, state.view, tag.split(" ").pop()) }, tag))));
    return el("tr", { dataset: { row: row.place } }, label, shown().map(({ column, i }) => {
      const best = row.tied.includes(column.key);
      return el("td", { className: best ? "number best" : "number", dataset: { key: column.key } },
        el("span", { className: "mean" }, row.t[i]),
        row.h[i] ? el("span", { className: "half" }, ` ± ${row.h[i]}`) : null,
        best ? el("span", { className: "unseen" }, " best, or not separated from the best") : null,
        row.strips[i] && row.strips[i].length ? strip(row.strips[i], span[i]) : null);
    }), el("td", { className: "number" }, row.count));
  }

  /** The rows, and above those of each size what it is, where the protocol has rows of several. */
  function drawRows(found) {
    return found.flatMap((row, i) => section.sizes.length && (i === 0 || found[i - 1].size !== row.size)
      ? [drawSize(row), drawRow(row)] : [drawRow(row)]);
  }

  function drawSize(row) {
    const words = section.sizes[row.size] || "without a score";
    return el("tr", { className: "size" },
      el("th", { scope: "rowgroup", colSpan: shown().length + 2 }, el("span", {}, words)));
  }

  function draw() {
    const found = sorted(), last = Math.max(0, Math.ceil(found.length / state.size) - 1);
    state.page = Math.min(state.page, last);
    drawHead();
    const first = state.page * state.size;
    body.replaceChildren(...drawRows(found.slice(first, first + state.size)));
    pages.show(state.page, state.size, found.length, rows[state.view].length, state.view === "methods" ? "methods" : "runs");
  }

  const printing = (size) => () => { state.size = size; draw(); };
  window.addEventListener("beforeprint", printing(Number.MAX_SAFE_INTEGER));
  window.addEventListener("afterprint", printing(PAGE));

  host.replaceChildren(
    toolbar(section, state, draw),
    el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of results" }, table),
    pages.node, meanings(section.columns));
  draw();
}

/** The seeds of one method as dots, on the scale of the whole column. */
function strip(values, [low, high]) {
  const place = (v) => high > low ? 3 + 58 * (v - low) / (high - low) : 32;
  return svg("svg", { class: "strip", viewBox: "0 0 64 8", "aria-hidden": "true" },
    svg("line", { x1: 3, x2: 61, y1: 4, y2: 4 }),
    ...values.map((v) => svg("circle", { cx: place(v).toFixed(1), cy: 4, r: 2.4 })));
}

function toolbar(section, state, draw) {
  const change = (part) => (value) => { state[part] = value; state.page = 0; draw(); };
  const search = el("input", { type: "search", placeholder: "Filter by name or state", "aria-label": "Filter rows",
    oninput: () => change("query")(search.value) });
  const columns = section.columns.map((column) => {
    const box = el("input", { type: "checkbox", checked: true, onchange: () => {
      if (box.checked) state.hidden.delete(column.key); else state.hidden.add(column.key);
      draw();
    } });
    return el("label", {}, box, ` ${column.title}`);
  });
  return el("div", { className: "tools" },
    choice("Rows", [["methods", "Methods"], ["cells", "Single runs"]], "methods", change("view")),
    search,
    el("details", { className: "menu" }, el("summary", {}, "Columns"), el("div", {}, columns)));
}

function meanings(columns) {
  return el("details", { className: "meanings" }, el("summary", {}, "What the columns mean"),
    el("dl", { className: "terms" }, columns.flatMap((column) => [
      el("dt", {}, column.title),
      el("dd", {}, column.gloss ? `${column.gloss[0].toUpperCase()}${column.gloss.slice(1)}.` : "",
        column.definition ? el("p", { className: "exact" }, column.definition) : null),
    ])));
}
