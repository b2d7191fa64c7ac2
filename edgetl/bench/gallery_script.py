"""The script of the page over many reports: sorts and filters its tables. Without it the page shows the same."""

SCRIPT = """\
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, place) => {
    const text = row.cells[place].textContent.trim();
    const number = parseFloat(text.replace("[", ""));
    return /^[-+[]?[0-9]/.test(text) && !/^[0-9]{4}-/.test(text) ? number : text.toLowerCase();
  };
  const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => order(key(a, place), key(b, place)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
  if (body.rows.length < 6) continue;
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  input.type = "search";
  count.setAttribute("role", "status");
  label.className = "filter";
  label.append("Show rows with ", input);
  table.parentElement.before(label);
  label.after(count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/ +/).filter(Boolean);
    for (const row of body.rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    const shown = [...body.rows].filter(row => !row.hidden).length;
    count.textContent = words.length ? `${shown} of ${body.rows.length} rows` : "";
  });
}
"""
