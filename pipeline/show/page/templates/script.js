"use strict";
// Tables are sorted by their columns, and images shown larger. Without this all of it can be read.
const SECONDS = { ms: 0.001, s: 1, min: 60, h: 3600, d: 86400 };
const value = (row, column) => {
  const text = row.cells[column].textContent.trim().replace(/−/g, "-").replace(/[,±]/g, "");
  if (/^(\d+(\.\d+)?\s(ms|s|min|h|d)\s?)+$/.test(text)) {
    return [...text.matchAll(/([\d.]+)\s([a-z]+)/g)].reduce((sum, part) => sum + part[1] * SECONDS[part[2]], 0);
  }
  const number = parseFloat(text);
  return Number.isNaN(number) ? text.toLowerCase() : number;
};
const compare = (a, b) => {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
};
for (const table of document.querySelectorAll("table.headed")) {
  const body = table.tBodies[0];
  // What has no name in its first column is no list of things.
  if (body.rows.length < 3 || !table.tHead.rows[0].cells[0].textContent.trim()) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort((a, b) => (up ? compare(a[0], b[0]) : compare(b[0], a[0])));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}
const dialog = document.createElement("dialog");
const large = document.createElement("img");
const words = document.createElement("p");
dialog.append(large, words);
dialog.addEventListener("click", () => dialog.close());
document.body.append(dialog);
for (const image of document.querySelectorAll(".thumbs img")) {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  const open = () => {
    large.src = image.src;
    large.alt = words.textContent = image.alt;
    dialog.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open();
    }
  });
}
