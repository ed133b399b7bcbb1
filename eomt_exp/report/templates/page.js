// Sorting, and a method's lines alone while one of them is pointed at. The page reads without it.
document.documentElement.classList.add("js");

function sort(table, column, head) {
  const rows = [...table.tBodies[0].rows];
  const key = (row) => row.cells[column].dataset.v;
  const numeric = rows.every((row) => key(row) === "" || key(row) === "inf" || key(row) === "-inf" || !isNaN(key(row)));
  const value = (row) => Number(key(row).replace("inf", "Infinity"));
  // The best first: arrows in a heading say which way that is.
  const first = numeric && !head.textContent.includes("\u2193") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
    return sign * (numeric ? value(a) - value(b) : key(a).localeCompare(key(b), undefined, { numeric: true }));
  });
  for (const cell of head.parentNode.cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
  [...heads].forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(table, column, head));
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort(table, column, head);
    });
  });
}

for (const item of document.querySelectorAll(".chart [data-s]")) {
  const marks = item.closest("section").querySelectorAll(".chart [data-s]");
  const dim = (on) => marks.forEach((mark) => mark.classList.toggle("dim", on && mark.dataset.s !== item.dataset.s));
  item.addEventListener("pointerenter", () => dim(true));
  item.addEventListener("pointerleave", () => dim(false));
}
