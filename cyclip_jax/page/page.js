// A click on a column's head sorts by it; a second one turns the order round.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[head.cellIndex];
      return cell.dataset.sort === undefined ? cell.textContent : parseFloat(cell.dataset.sort);
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (typeof x === "string" || typeof y === "string")
        return String(x).localeCompare(String(y), undefined, { numeric: true }) * (falling ? -1 : 1);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // last
      return (x - y) * (falling ? -1 : 1);
    };
    body.append(...[...body.rows].sort(compare));
  });
}
