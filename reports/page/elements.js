// Small pieces that everything below is made of. Text goes in as text, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with properties, attributes (those with a dash, and role), listeners (on…) and children. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A label that a user chose: it may be long, and may run from right to left. */
function name(label, tag = "span") {
  return el(tag, { className: "name", dir: "auto", title: label }, label);
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Buttons of which one is pressed: [[value, title], …]; calls `choose(value)`. */
function choice(label, options, chosen, choose) {
  const buttons = options.map(([value, title]) =>
    el("button", { type: "button", "aria-pressed": String(value === chosen), dataset: { value },
      onclick: () => { press(value); choose(value); } }, title));
  const press = (value) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.value === value)));
  return el("div", { className: "choice", role: "group", "aria-label": label }, buttons);
}

let serial = 0;
const uniqueId = (prefix) => `${prefix}-${++serial}`;

/** A <select> under a label of its own. */
function select(title, options, chosen, choose) {
  const id = uniqueId("select");
  const box = el("select", { id, onchange: () => choose(Number(box.value)) },
    options.map((text, i) => el("option", { value: i, selected: i === chosen }, text)));
  return { box, node: el("label", { className: "field", for: id }, el("span", {}, title), box) };
}

/** Whether every word of the query is somewhere in the text. */
function matches(text, query) {
  const hay = text.toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => hay.includes(word));
}

/** Page numbers and the buttons to turn them. `turn(page)` is called with the page to show. */
function pager(turn) {
  const told = el("span", { className: "told", role: "status" });
  const step = (by) => () => turn(page + by);
  const back = el("button", { type: "button", onclick: step(-1) }, "Previous");
  const on = el("button", { type: "button", onclick: step(1) }, "Next");
  let page = 0;
  const show = (now, size, total, all, noun) => {
    page = now;
    const first = now * size, last = Math.min(total, first + size);
    const among = total < all ? ` (of ${all})` : "";
    told.textContent = total === 0 ? `no ${noun} matches` : total <= size ? `${total} ${noun}${among}`
      : `${first + 1}–${last} of ${total} ${noun}${among}`;
    back.hidden = on.hidden = total <= size;
    back.disabled = now === 0;
    on.disabled = last >= total;
  };
  return { node: el("div", { className: "pager" }, told, back, on), show };
}
