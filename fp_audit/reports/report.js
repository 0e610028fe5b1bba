const table = document.getElementById("findings"), body = table.tBodies[0], filter = document.getElementById("filter");
const shown = document.getElementById("shown"), heads = [...table.tHead.rows[0].cells];

function key(row, column) {
  const cell = row.cells[column], value = cell.dataset.key;
  return value === undefined ? cell.textContent.trim().toLowerCase() : Number(value);
}

heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const rows = [...body.rows].map(row => [key(row, column), row]);
  rows.sort(([a], [b]) => sign * (a < b ? -1 : a > b ? 1 : 0));
  body.append(...rows.map(([, row]) => row));
}));

const texts = new Map([...body.rows].map(row => [row, row.dataset.text.toLowerCase()]));

function apply() {
  const words = filter.value.toLowerCase().split(/\s+/);
  let count = 0;
  texts.forEach((text, row) => { row.hidden = !words.every(word => text.includes(word)); count += !row.hidden; });
  shown.textContent = count === texts.size ? "" : `${count} of ${texts.size} shown`;
}

filter.addEventListener("input", apply);
document.querySelectorAll("button.count").forEach(button => button.addEventListener("click", () => {
  filter.value = filter.value === button.dataset.word ? "" : button.dataset.word;
  apply();
}));
