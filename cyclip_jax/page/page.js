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

// A link to a folded section opens it.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = target && (target.matches("details") ? target : target.querySelector(":scope > details"));
  if (fold) { fold.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", unfold);
unfold();

// What is under the pointer is told beside it: words of an element, points and cells of a figure.
const tip = document.createElement("div");
tip.className = "tip"; tip.id = "tip"; tip.setAttribute("role", "tooltip"); tip.hidden = true;
document.body.append(tip);
const hide = () => { tip.hidden = true; };
const show = (text, x, y) => {
  tip.textContent = text; tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${y + 16 + height > innerHeight ? Math.max(4, y - height - 10) : y + 16}px`;
};
for (const told of document.querySelectorAll("[data-tip]")) {
  const beside = () => {
    const { left, bottom } = told.getBoundingClientRect();
    show(told.dataset.tip, left - 12, bottom - 10);
  };
  told.setAttribute("aria-describedby", "tip");
  told.addEventListener("pointerenter", beside);
  told.addEventListener("focus", () => requestAnimationFrame(beside));  // after it is scrolled to
  told.addEventListener("pointerleave", hide);
  told.addEventListener("blur", hide);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

const cellAt = (grid, x, y) => {
  const [left, top, right, bottom] = grid.box;
  const across = (x - left) / (right - left), down = (y - top) / (bottom - top);
  if (across < 0 || across >= 1 || down < 0 || down >= 1) return null;
  const row = Math.floor(down * grid.rows.length), column = Math.floor(across * grid.columns.length);
  grid.bytes ??= Uint8Array.from(atob(grid.cells), (letter) => letter.charCodeAt(0));
  const share = grid.bytes[row * grid.columns.length + column] / 255;
  const told = { row: grid.rows[row], column: grid.columns[column],
                 value: (grid.low + share * (grid.high - grid.low)).toFixed(2) };
  return grid.form.replace(/\{(row|column|value)\}/g, (_, name) => told[name]);
};
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  let spots, grids;  // read when they are first asked for
  const dot = document.createElement("span");
  dot.className = "dot"; dot.hidden = true;
  chart.append(dot);
  const leave = () => { dot.hidden = true; hide(); };
  const tell = (event) => {
    spots ??= JSON.parse(chart.dataset.spots ?? "[]");
    grids ??= JSON.parse(chart.dataset.grids ?? "[]");
    const { left, top, width, height } = svg.getBoundingClientRect();
    const x = (event.clientX - left) / width * 1000, y = (event.clientY - top) / height * 1000;
    for (const grid of grids) {
      const text = cellAt(grid, x, y);
      if (text) return show(text, event.clientX, event.clientY);
    }
    let nearest = null, least = 32;  // pixels
    for (const spot of spots) {
      const away = Math.hypot((spot[0] - x) * width, (spot[1] - y) * height) / 1000;
      if (away < least) { nearest = spot; least = away; }
    }
    if (!nearest) return leave();
    dot.hidden = false;
    dot.style.left = `${svg.offsetLeft + nearest[0] * width / 1000}px`;
    dot.style.top = `${svg.offsetTop + nearest[1] * height / 1000}px`;
    show(nearest[2], event.clientX, event.clientY);
  };
  chart.addEventListener("pointermove", tell);
  chart.addEventListener("pointerdown", tell);
  chart.addEventListener("pointerleave", leave);
}

// Tables are copied with all their digits for programs, or as they are read for a paper.
const inLatex = (text) => text.trim()
  .replace(/[\\~^<>|&%$#_{}[]/g, (c) => ({ "\\": "\\textbackslash{}", "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
    "[": "{[}" })[c] ?? `\\${c}`)
  .replace(/↑/g, "$\\uparrow$").replace(/↓/g, "$\\downarrow$").replace(/−|(?<![\w.])-(?=\d)/g, "$-$");
const words = (cell) => {
  const copy = cell.cloneNode(true);
  for (const part of copy.querySelectorAll(".meter")) part.remove();
  return copy.textContent.replace(/\s+/g, " ").trim();
};
const asLatex = (table) => {
  const rows = [...table.rows].map((row) => [...row.cells].map((cell) => inLatex(words(cell))).join(" & ") + " \\\\");
  const kinds = [...table.rows[0].cells].map((_, n) =>
    [...table.tBodies[0].rows].some((row) => row.cells[n]?.classList.contains("number")) ? "r" : "l");
  return ["% needs \\usepackage{booktabs}", `\\begin{tabular}{${kinds.join("")}}`, "\\toprule", rows[0],
          "\\midrule", ...rows.slice(1), "\\bottomrule", "\\end{tabular}", ""].join("\n");
};
const asCsv = (table) => {
  const body = [...table.tBodies[0].rows], quoted = (text) =>
    /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  const ends = [...table.rows[0].cells].map((_, n) => body.some((row) => row.cells[n]?.dataset.low));
  const head = [...table.rows[0].cells].flatMap((cell, n) =>
    ends[n] ? [words(cell), `${words(cell)} low`, `${words(cell)} high`] : [words(cell)]);
  const lines = body.map((row) => [...row.cells].flatMap((cell, n) => {
    const told = cell.dataset.sort || words(cell);
    return ends[n] ? [told, cell.dataset.low ?? "", cell.dataset.high ?? ""] : [told];
  }));
  return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
};
const copied = async (text) => {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* an older browser */ }
  const field = document.createElement("textarea");
  field.value = text; document.body.append(field); field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
};
for (const table of document.querySelectorAll(".box > table")) {
  const tools = document.createElement("p");
  tools.className = "tools";
  for (const [name, written] of [["CSV", asCsv], ["LaTeX", asLatex]]) {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = `Copy as ${name}`;
    button.addEventListener("click", async () => {
      const done = await copied(written(table));
      button.textContent = done ? "Copied" : "The browser does not let a page copy";
      setTimeout(() => { button.textContent = `Copy as ${name}`; }, 2000);
    });
    tools.append(button);
  }
  table.closest(".box").after(tools);
}
