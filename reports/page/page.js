// The page comes together: every protocol's parts, the theme, figures at full size.

const sections = document.querySelectorAll("[data-protocol]");
DATA.sections.forEach((section, i) => {
  const host = (part) => sections[i].querySelector(`[data-part="${part}"]`);
  const open = makeCells(section, host("cells"));
  makeTable(section, host("table"), (row, view, state) =>
    open(view === "cells" ? section.cells[row.place]
      : section.cells.find((cell) => cell.group === row.place && (!state || stateOf(cell) === state))));
  if (!makeSheets(section, host("sheets"))) host("sheets").closest("section").remove();
});

for (const link of document.querySelectorAll("nav a")) {
  if (!document.querySelector(link.getAttribute("href"))) link.remove(); // a part that this report does not have
}

const theme = document.getElementById("theme");
const dark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const sayTheme = () => {
  theme.setAttribute("aria-pressed", String(dark()));
};
const remember = (value) => {
  try { localStorage.setItem("vqbench-theme", value); } catch { /* a page in a frame may keep nothing */ }
};
try {
  const kept = localStorage.getItem("vqbench-theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
} catch { /* as above */ }
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  remember(document.documentElement.dataset.theme);
  sayTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", sayTheme);
sayTheme();

const viewer = document.getElementById("viewer");
document.addEventListener("click", (event) => { // also of figures that come when a run is opened
  const image = event.target.closest("[data-enlarge]")?.querySelector("img"), large = viewer.querySelector("img");
  if (!image) return;
  large.src = image.src;
  large.alt = image.alt;
  viewer.showModal();
});
viewer.addEventListener("click", (event) => { if (event.target !== viewer.querySelector("img")) viewer.close(); });
document.documentElement.dataset.ready = "yes";
