// A slider for each side of each layer: folded by block, found by name.
// Rows of one group share their channels, and so their value.

const FEW = 16; // sliders that need no folding

function make(tag, parent, properties) {
  const element = Object.assign(document.createElement(tag), properties);
  element.dataset.lmSuppressShortcuts = "true"; // keys move the slider, not the notebook
  return parent.appendChild(element);
}

function render({ model, el }) {
  el.classList.add("labkit-sliders");
  const search = make("input", el, { type: "search", placeholder: "Find a layer" });
  search.ariaLabel = search.placeholder;
  const box = make("div", el, { className: "labkit-blocks" });
  const [min, max] = model.get("range");
  const range = { type: "range", min, max, step: min };
  const rows = model.get("rows");
  const blocks = new Map();
  for (const row of rows) {
    if (!blocks.has(row.block)) {
      const open = rows.length <= FEW || blocks.size === 0;
      const block = make("details", box, { open, rows: [] });
      make("summary", block, { textContent: row.block || "Layers", title: row.block });
      blocks.set(row.block, block);
    }
    const block = blocks.get(row.block);
    const line = make("label", block, { title: row.name });
    make("span", line, { textContent: row.label });
    const slider = make("input", line, { ...range, ariaLabel: `${row.name} multiplier` });
    const value = make("output", line);
    const note = make("em", line);
    slider.oninput = () => {
      model.set("values", { ...model.get("values"), [row.group]: slider.valueAsNumber });
      model.save_changes();
    };
    block.rows.push({ ...row, line, slider, value, note });
  }

  function show() {
    const values = model.get("values");
    const notes = model.get("notes");
    for (const { name, group, slider, value, note } of [...blocks.values()].flatMap((b) => b.rows)) {
      slider.value = values[group] ?? 1;
      slider.ariaValueText = value.textContent = `× ${slider.value}`;
      note.textContent = notes[name] ?? "";
    }
  }
  search.oninput = () => {
    for (const block of blocks.values()) {
      for (const { name, line } of block.rows) {
        line.hidden = !name.toLowerCase().includes(search.value.toLowerCase());
      }
      block.hidden = block.rows.every(({ line }) => line.hidden);
      block.open ||= search.value !== "";
    }
  };
  model.on("change:values", show);
  model.on("change:notes", show);
  show();
  return () => model.off(null, show);
}

export default { render };
