"use strict";
// Tables are sorted by a click on a heading; a method of a legend hides and shows its lines.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
      rows.sort(([a], [b]) => compare(a, b, down ? 1 : -1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function key(cell) {
  const text = cell.textContent.trim();
  if (cell.tagName === "TH" || cell.closest(".texts")) return text;
  if (text === "best") return 0;
  const number = parseFloat(text.replaceAll(",", "").replace("−", "-"));
  return Number.isNaN(number) ? null : number; // a dash stays last
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
}

for (const legend of document.querySelectorAll(".legend")) {
  const figure = legend.closest("section").querySelector(".curves");
  const lines = (button) => figure.querySelectorAll(`[data-line="${button.dataset.shows}"]`);
  for (const item of legend.querySelectorAll("li")) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.shows = item.dataset.shows;
    button.title = item.title;
    button.setAttribute("aria-pressed", "true");
    button.append(...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", shown);
      for (const line of lines(button)) line.classList.toggle("hidden", !shown);
    });
    const stress = (on) => {
      figure.classList.toggle("stress", on);
      for (const line of lines(button)) line.classList.toggle("stressed", on);
    };
    for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) {
      button.addEventListener(event, () => stress(on));
    }
  }
}
