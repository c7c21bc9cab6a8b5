// Every table of data sorts by its headings and copies as tab-separated values. Without scripts it is a table.
"use strict";
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  const text = (cell) => cell.textContent.trim().replace(/\s+/g, " ");
  const key = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value ?? text(cell).replace(/,/g, "").match(/^[-+]?[\d.]+(e[-+]?\d+)?/i)?.[0];
    return number === undefined ? null : Number(number);
  };
  const sort = (column, descending) => {
    const rows = [...body.rows];
    const numeric = rows.some((row) => key(row, column) !== null);
    const compare = (a, b) => {
      if (!numeric) return text(a.cells[column]).localeCompare(text(b.cells[column]));
      const [x, y] = [key(a, column), key(b, column)];
      return x === null || y === null ? (x === null) - (y === null) : x - y;
    };
    const missing = (row) => numeric && key(row, column) === null;
    rows.sort((a, b) => (descending && !missing(a) && !missing(b) ? -compare(a, b) : compare(a, b)));
    body.append(...rows);
  };
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(column, descending);
    });
  });
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "copy";
  copy.textContent = "Copy as TSV";
  copy.addEventListener("click", async () => {
    const tsv = [...table.rows].map((row) => [...row.cells].map(text).join("\t")).join("\n");
    try {
      await navigator.clipboard.writeText(tsv);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "The browser refuses the clipboard";
    }
    setTimeout(() => (copy.textContent = "Copy as TSV"), 2000);
  });
  table.closest(".scroll").after(copy);
}
